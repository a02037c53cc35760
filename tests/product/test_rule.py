"""The rule that picks paths: how good it is on measured cells, its profiles, and what it is told."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from dctps.kernels import variant
from dctps.offsets import build_offset
from dctps.product.geometry import ROWS, conv_geometry
from dctps.product.machine import (
    PROFILES,
    current_machine,
    follow,
    list_machines,
    machine_of,
    recorded,
    use_machine,
)
from dctps.product.path import Call
from dctps.product.paths import PATHS
from dctps.product.rule import decide, estimates, paths_of

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def profile():
    yield use_machine
    use_machine(None)


def linear(m: int, n: int, rows: int, nnz: int, *, training: bool = True, native: bool = True) -> Call:
    offset = build_offset("dct", (m, n))
    which = "avx512" if native else "off"
    shape = rows, n
    return Call(offset, ROWS, shape, True, False, torch.float32, "cpu", nnz, native, training, 1, which)


def convolution(
    m: int, channels: int, side: int, nnz: int, *, taps: int = 3, groups: int = 1, last: bool = True
) -> Call:
    offset = build_offset("sdct", (m, channels // groups, taps, taps), groups=groups)
    geometry = conv_geometry(offset.shape, (1, 1), (taps // 2, taps // 2), (1, 1), groups)
    shape = (32, channels, side, side)
    return Call(offset, geometry, shape, last, last, torch.float32, "cpu", nnz, True, True, 1, "avx512")


@pytest.mark.parametrize("name", [name for name in list_machines() if name != "cuda"])
def test_sparse_layers_take_native_paths_and_dense_ones_make_w(name: str, profile) -> None:
    profile(name)
    assert decide(linear(1024, 1024, 256, 1000), "auto").name == "rows"
    assert decide(linear(1024, 1024, 256, 1_000_000), "auto").name == "dense"
    assert decide(linear(2048, 2048, 256, 4000, native=False), "auto").name == "transform"
    assert decide(convolution(64, 64, 32, 37), "auto").name == "strips"
    assert decide(convolution(64, 64, 32, 36_000), "auto").name in ("dense", "made", "kept")
    assert decide(convolution(512, 512, 2, 400_000), "auto").name == "taps"


@pytest.mark.parametrize("name", list_machines())
def test_a_profile_has_constants_of_terms_that_its_paths_have(name: str) -> None:
    content = json.loads((PROFILES / f"{name}.json").read_text())
    assert content["command"]
    cells = [linear(20, 20, rows, 7) for rows in (4, 40)]
    cells += [convolution(20, 20, 4, 9, taps=taps, last=last) for taps in (1, 3) for last in (False, True)]
    cells += [convolution(20, 20, 4, 9, groups=20, last=last) for last in (False, True)]
    for path in PATHS:
        known = {term for call in cells if not path.refusal(call) for term in path.terms(call)}
        for constants in content["costs"].get(path.name, {}).values():
            assert min(constants.values()) > 0 and set(constants) <= known, path.name


def test_a_machine_without_a_profile_takes_the_nearest_and_says_so(profile, monkeypatch) -> None:
    exact = machine_of("cpu", "avx512")
    assert exact.name.endswith("-avx512")
    monkeypatch.setattr("dctps.product.machine._maker", lambda: "other")
    use_machine(None)
    other = machine_of("cpu", "avx512")
    assert other.name.endswith("-avx512") and not other.exact and other.kind == "other-avx512"
    assert "the nearest, since this machine (other-avx512) has none" in str(other)
    assert machine_of("xpu", "avx512").name == "generic"
    assert "not fitted yet" in str(machine_of("cuda", "avx512"))
    monkeypatch.setenv("DCTPS_MACHINE", "amd-avx512")
    use_machine(None)
    assert current_machine().name == "amd-avx512"
    monkeypatch.setenv("DCTPS_MACHINE", "abacus")
    use_machine(None)
    with pytest.raises(ValueError, match="DCTPS_MACHINE='abacus': choose from amd-avx512, avx2"):
        current_machine()
    with pytest.raises(ValueError, match="no profile 'abacus'"):
        use_machine("abacus")


def test_a_recorded_profile_is_followed_if_it_is_unchanged(profile) -> None:
    profile("amd-avx512")
    record = recorded()
    profile(None)
    own = recorded()
    assert follow(record.replace(record.split()[1], "0" * 12)) == own
    assert follow("abacus 123456789012") == own
    assert follow(record) == record


def test_words_stand_for_paths() -> None:
    call = convolution(64, 64, 32, 37)
    assert set(estimates(call, "native")) == {"strips"}
    assert set(estimates(call, "dense")) <= set(paths_of("dense"))
    assert list(estimates(call, "kept")) == ["kept"]  # named alone it is taken, whatever its memory
    for path in PATHS:
        if path.name != "dense" and not path.refusal(call):
            assert decide(call, path.name) is path
    with pytest.raises(ValueError, match="unknown backend 'fast'"):
        decide(call, "fast")
    with pytest.raises(ValueError, match="no native kernel"):
        decide(linear(8, 8, 1, 2, native=False), "native")


def test_whether_gradients_are_wanted_and_threads_count() -> None:
    for call in (linear(512, 512, 64, 2000), convolution(64, 64, 16, 40)):
        for name, cost in estimates(call, "auto").items():
            path = next(path for path in PATHS if path.name == name)
            assert path.cost(call, current_machine()) == cost
    training, inference = linear(512, 512, 64, 2000), linear(512, 512, 64, 2000, training=False)
    machine = machine_of("cpu", "avx512")
    costs = [PATHS[-2].cost(call, machine) for call in (training, inference)]
    assert costs[0] >= costs[1]


def fit_rule():
    pytest.importorskip("scipy")
    spec = importlib.util.spec_from_file_location("fit_rule", BENCHMARKS / "fit_rule.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_regret_on_measured_cells(profile) -> None:
    """Cells that fitted no constants: `fit_rule.py check` measured them, and nothing is timed here."""
    rule = fit_rule()
    for run in json.loads(rule.REGRET.read_text())["runs"]:
        machine = machine_of("cpu", run["kernels"])
        profile(run["profile"])
        found = rule.regrets(run["cells"], machine_of("cpu", run["kernels"]))
        assert machine.name in list_machines() and len(run["cells"]) >= 200
        summary = rule.summary(found)
        assert summary["median"] <= 1.03, summary
        assert summary["p95"] <= 1.5, summary


@pytest.mark.skipif(variant() == "off", reason="the native kernels were not compiled")
def test_fitting_recovers_constants_from_times_that_follow_them(profile) -> None:
    rule = fit_rule()
    machine = machine_of("cpu", "avx512")
    generator = rule.random.Random(3)
    cells = [{**rule.draw(generator), "variant": "avx512"} for _ in range(60)]
    for cell in cells:
        cell["seconds"] = {
            path.name: {m: path.cost(rule.call_of(cell, m == "training"), machine) / 1e9 for m in rule.MODES}
            for path in PATHS
            if not path.refusal(rule.call_of(cell, True)) and path.name in machine.costs
        }
    found = rule.regrets(cells, rule.Machine("fitted", "", "", "", True, rule.fit(cells)))
    assert rule.summary(found)["p95"] <= 1.05
