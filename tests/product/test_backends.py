"""Which path a layer takes: explained, overridden, measured."""

import re

import pytest
import torch
from torch import nn

import dctps
from dctps.kernels import variant
from dctps.nn import DpSConv2d, DpSLinear
from dctps.product.machine import list_machines, use_machine
from dctps.product.paths import PATHS
from dctps.product.rule import environment_backend

native = pytest.mark.skipif(variant() == "off", reason="no native kernels here")


def network() -> nn.Module:
    layers = (nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(512, 64))
    return dctps.sparsify_(nn.Sequential(*layers, nn.BatchNorm1d(64), nn.Dropout(0.5)), 0.05)


@pytest.fixture
def from_environment(monkeypatch):
    def set_to(value):
        monkeypatch.setenv("DCTPS_BACKEND", value)
        environment_backend.cache_clear()

    yield set_to
    monkeypatch.undo()
    environment_backend.cache_clear()


def test_explain_sees_every_call_and_changes_nothing() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(0)
    state = torch.get_rng_state()
    found = dctps.explain(model, torch.zeros(2, 3, 8, 8), batch_size=32)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert model[6].training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.modules())
    assert [(row.name, row.kind, row.input) for row in found.rows] == [
        ("0", "DpSConv2d", (32, 3, 8, 8)),
        ("2", "DpSConv2d", (32, 8, 8, 8)),
        ("4", "DpSLinear", (32, 512)),
    ]
    assert {(row.chosen_by, row.dtype) for row in found.rows} == {("rule", "float32")}
    lines = str(found).splitlines()
    assert len(lines) == 5
    columns = re.split(r"  +", lines[0])[7:]
    assert columns[:2] == ["path", "chosen by"] and {"dense (us)", "transform (us)"} <= set(columns)
    assert lines[-1].startswith("estimates: profile '") and "fitted on" in lines[-1]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the paths in the order in which they compute."""
    names: list[str] = []
    for path in PATHS:

        def forward(*arguments, path=path, real=path.forward):
            names.append(path.name)
            return real(*arguments)

        monkeypatch.setattr(path, "forward", forward)
    return names


@pytest.mark.parametrize("machine", list_machines())
def test_explain_prints_the_paths_that_really_run(machine: str, taken: list[str]) -> None:
    layers = [DpSConv2d(16, 16, 3, padding=1, groups=16, density=0.1), DpSConv2d(16, 64, 1, density=0.01)]
    model = nn.Sequential(
        *layers, DpSConv2d(64, 64, 3, 2, 1, density=0.4), nn.Flatten(), DpSLinear(1024, 64, density=0.01)
    )
    use_machine(machine)
    try:
        for batch in (1, 4, 40):
            x = torch.zeros(batch, 16, 8, 8).contiguous(memory_format=torch.channels_last)
            explained = [row.path for row in dctps.explain(model, x[:1], batch_size=batch).rows]
            taken.clear()
            model(x)
            assert taken == explained
            with torch.no_grad():
                explained = [row.path for row in dctps.explain(model, x).rows]
                taken.clear()
                model(x)
                assert taken == explained
        assert machine in str(dctps.explain(model, x))
    finally:
        use_machine(None)


def test_explain_at_a_batch_size_is_explain_of_such_a_batch() -> None:
    layer = DpSLinear(256, 256, density=0.01)
    for batch in (1, 5, 64, 2048):
        (direct,) = dctps.explain(layer, torch.zeros(batch, 7, 256)).rows
        (scaled,) = dctps.explain(layer, torch.zeros(2, 7, 256), batch_size=batch).rows
        assert direct == scaled
    last = torch.zeros(4, 16, 8, 8).contiguous(memory_format=torch.channels_last)
    (row,) = dctps.explain(DpSConv2d(16, 16, 1, density=0.1), last, batch_size=12).rows
    assert (row.layout, row.input) == ("channels last", (12, 16, 8, 8))
    with pytest.raises(ValueError, match="batch_size needs a tensor"):
        dctps.explain(nn.Identity(), None, batch_size=2)


def test_explain_knows_shared_compiled_autocast_and_foreign_calls() -> None:
    layer = DpSLinear(32, 32, density=0.1)
    model = torch.compile(nn.Sequential(layer, nn.ReLU(), layer), backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        rows = dctps.explain(model, torch.zeros(4, 32)).rows
    assert [(row.name, row.dtype) for row in rows] == [("0", "bfloat16")] * 2
    double = layer.double()
    (row,) = dctps.explain(double, torch.zeros(4, 32).double()).rows
    assert set(row.costs) <= {"dense", "transform"}
    assert row.name == ""
    assert str(dctps.explain(nn.Linear(2, 2), torch.zeros(1, 2))).startswith("no layer has")


@pytest.mark.parametrize(
    ("word", "path"),
    [
        ("dense", "dense"),
        ("transform", "transform"),
        pytest.param("native", "rows", marks=native),
        pytest.param("rows", "rows", marks=native),
    ],
)
def test_a_layers_backend_and_the_environment(word: str, path: str, from_environment) -> None:
    layer = DpSLinear(64, 48, density=0.1)
    x = torch.zeros(3, 64)
    layer.backend = word
    (row,) = dctps.explain(layer, x).rows
    assert (row.path, row.chosen_by) == (path, "layer")
    layer.backend = "auto"
    from_environment(word)
    (row,) = dctps.explain(layer, x).rows
    assert (row.path, row.chosen_by) == (path, "DCTPS_BACKEND")
    layer.backend = "dense"  # the layer's own word is the nearer one
    assert dctps.explain(layer, x).rows[0].path == "dense"


def test_a_path_that_cannot_be_is_refused_with_layer_and_remedy(from_environment) -> None:
    model = network()
    model[0].backend = "transform"
    with pytest.raises(ValueError, match=r"layer '0': only 1 x 1 .*backend='transform' asks.*backend='auto'"):
        model(torch.zeros(2, 3, 8, 8))
    dctps.set_backends_(model, "auto")
    from_environment("transform")
    with pytest.raises(ValueError, match=r"layer '0': .*DCTPS_BACKEND=transform asks for it: unset it"):
        model(torch.zeros(2, 3, 8, 8))
    model[0].backend = "dense"
    model(torch.zeros(2, 3, 8, 8))
    from_environment("fast")
    with pytest.raises(ValueError, match="DCTPS_BACKEND='fast': choose from auto, dense, transform, native"):
        model(torch.zeros(2, 3, 8, 8))


def test_set_backends_by_name_or_for_all() -> None:
    model = network()
    dctps.set_backends_(model, {"4": "dense"})
    assert [model[i].backend for i in (0, 2, 4)] == ["auto", "auto", "dense"]
    for wrong, message in (
        ({"2": "dense", "5": "dense"}, "no DpS layer '5': choose from '0', '2', '4'"),
        ({"2": "dense", "4": "fast"}, "layer '4': unknown backend 'fast'"),
    ):
        with pytest.raises(ValueError, match=message):
            dctps.set_backends_(model, wrong)
        assert model[2].backend == "auto"


@native
def test_a_rowwise_convolution_of_channels_first_has_all_paths() -> None:
    x = torch.randn(2, 16, 5, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    for offset in ("dct", "hadamard"):
        layer = DpSConv2d(16, 16, 1, offset=offset, density=0.1)
        results = []
        for path in ("dense", "transform", "native"):
            layer.backend = path
            y = layer(x)
            results.append((y, *torch.autograd.grad(y.square().sum(), (x, layer.values, layer.alpha))))
        for other in results[1:]:
            for a, b in zip(results[0], other, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_tune_fixes_every_layer_and_changes_nothing_else() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    model[0].values.register_hook(lambda g: pytest.fail("a gradient hook was called"))
    found = dctps.tune_(model, torch.zeros(4, 3, 8, 8), rounds=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    own = {"native"} if variant() != "off" else set()
    assert {name: set(measured.milliseconds) for name, measured in found.items()} == {
        "0": {"dense"} | own,
        "2": {"dense", "transform"} | own,
        "4": {"dense", "transform"} | own,
    }
    for name, measured in found.items():
        assert measured.milliseconds[measured.backend] == min(measured.milliseconds.values())
        assert model[int(name)].backend == measured.backend
    with pytest.raises(ValueError, match="rounds must be at least 1"):
        dctps.tune_(model, torch.zeros(4, 3, 8, 8), rounds=0)
