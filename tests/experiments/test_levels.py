"""Iterative magnitude pruning: against dense networks with masked gradients, and cut short anywhere."""

import copy
import json
import shutil
from dataclasses import replace

import pytest
import torch
from tests.support.faults import TINY, outcome, stop_after, tiny_dataset, train_tiny

from dctps.analysis.runs import read_runs
from dctps.experiments.config import differences, resolve
from dctps.experiments.folder import LAST, REWIND, STATE, RunFolder, RunFolderError
from dctps.experiments.levels import Levels, level_nnz
from dctps.experiments.network import restore_network
from dctps.experiments.records import read_config, read_summary
from dctps.experiments.run import describe_run, evaluate_run, run
from dctps.experiments.session import Session
from dctps.experiments.state import read_state, write_state
from dctps.nn import DpSLayer
from dctps.sweeps.sweep import look_ahead
from dctps.training import Processes

IMP = replace(TINY, method="imp", levels=3, density=0.1, epochs=3)
WEIGHTS = 4 * 9 + 144 * 3


def levels_of(config, folder):
    config = resolve(config)
    return Levels(config, RunFolder(folder, config), tiny_dataset(None, False), Processes())


def train_masked(dense, masks):
    """Hold the weights outside the masks at 0: their values, and their gradients."""
    weights = {name: dense.get_submodule(name).weight for name in masks}
    handles = [weights[name].register_hook(lambda g, m=mask: g * m) for name, mask in masks.items()]
    with torch.no_grad():
        for name, mask in masks.items():
            weights[name].mul_(mask)
    return handles


@pytest.mark.parametrize("rewind", [0, 1])
@pytest.mark.parametrize("choices", [{}, {"optimizer": "sgd", "lr": 0.05}])
def test_equals_masked_dense_networks(tmp_path, rewind, choices):
    config = replace(IMP, rewind_epoch=rewind, **choices)
    run(config, out=tmp_path, threads=1)
    description = tiny_dataset(None, False).description
    ours = restore_network(resolve(config), description, tmp_path / LAST, torch.device("cpu"))

    plain = resolve(replace(config, method="dense", levels=None, rewind_epoch=None))
    torch.manual_seed(config.seed)
    dense = Session(plain, tiny_dataset(None, False), torch.device("cpu"))
    masks = {name: torch.ones_like(dense.model[int(name)].weight) for name in ("0", "5")}
    rewound = copy.deepcopy(dense.state())
    for level in range(4):
        while not dense.finished:
            dense.train_epoch(progress=False, between=lambda: None)
            if level == 0 and len(dense.records) == rewind:
                rewound = copy.deepcopy(dense.state())
        if level == 3:
            break
        count = level_nnz(0.1, WEIGHTS, level + 1, 3)
        weights = {name: dense.model[int(name)].weight.detach().abs() for name in masks}
        scores = torch.cat([(weights[name] * mask).flatten() for name, mask in masks.items()])
        kept = torch.zeros(WEIGHTS)
        kept[scores.sort(descending=True, stable=True).indices[:count]] = 1
        masks = {"0": kept[:36].reshape(4, 1, 3, 3), "5": kept[36:].reshape(3, 144)}
        torch.manual_seed(0)
        dense = Session(plain, tiny_dataset(None, False), torch.device("cpu"))
        dense.load_state(copy.deepcopy(rewound))
        train_masked(dense.model, masks)
        for parameter, mask in ((dense.model[0].weight, masks["0"]), (dense.model[5].weight, masks["5"])):
            for slot in dense.trainer.optimizer.state[parameter].values():
                if slot.dim():
                    slot.mul_(mask)
    for name, mask in masks.items():
        layer = ours[int(name)]
        assert torch.equal(layer.support, mask.flatten().nonzero().squeeze(1))
        torch.testing.assert_close(
            layer.to_dense().detach(), dense.model[int(name)].weight.detach(), rtol=1e-3, atol=1e-5
        )
    assert sum(int(mask.sum()) for mask in masks.values()) == round(0.1 * WEIGHTS)


def test_counts_and_cost(tmp_path):
    summary = run(IMP, out=tmp_path / "run", threads=1)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == list(range(1, 13))
    assert [record["level"] for record in records] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    # 468 * 0.1^(1/3) = 217.2, 468 * 0.1^(2/3) = 100.8, round(46.8) = 47
    assert [record["nnz"] for record in records[::3]] == [None, 217, 101, 47]
    run(replace(TINY, method="dense", density=None, epochs=3), out=tmp_path / "dense", threads=1)
    dense = [json.loads(line) for line in (tmp_path / "dense" / "metrics.jsonl").read_text().splitlines()]
    for ours, theirs in zip(records[:3], dense, strict=True):
        assert {**ours, **theirs, "seconds": 0} == {**ours, "seconds": 0}  # level 0 is the dense run
    assert summary["imp"]["epochs_trained"] == 12
    assert summary["imp"]["steps_trained"] == 36
    assert [level["nnz"] for level in summary["imp"]["levels"]] == [None, 217, 101, 47]
    assert summary["report"]["nnz"] == 47
    assert summary["best_epoch"] > 9
    again = evaluate_run(tmp_path / "run", threads=1)
    assert again["last"].accuracy == summary["last_test_accuracy"]
    assert again["best"].accuracy == summary["best_test_accuracy"]


@pytest.mark.parametrize("rewind", [0, 1])
def test_supports_are_nested_and_values_go_back(tmp_path, rewind):
    config = replace(IMP, rewind_epoch=rewind)
    stop_after(30 - 6 * rewind, tmp_path, config=config)  # in the last level
    start = read_state(tmp_path / REWIND)["model"]
    ours, before = levels_of(config, tmp_path), None
    for level in (1, 2, 3):
        session = ours._begin(level, tiny_dataset(None, False), torch.device("cpu"), Processes())
        layers = {n: m for n, m in session.model.named_modules() if isinstance(m, DpSLayer)}
        now = {name: set(layer.support.tolist()) for name, layer in layers.items()}
        for name, layer in layers.items():
            assert torch.equal(layer.values, start[f"{name}.weight"].flatten()[layer.support])
            assert before is None or now[name] <= before[name]
        assert sum(map(len, now.values())) == level_nnz(0.1, WEIGHTS, level, 3)
        before = now


def test_each_level_is_an_ordinary_run(tmp_path):
    run(IMP, out=tmp_path / "run", threads=1)
    plain = replace(TINY, method="dense", density=None, epochs=3)
    run(plain, out=tmp_path / "dense", threads=1)
    assert outcome(tmp_path / "run" / "level0") == outcome(tmp_path / "dense")
    assert differences(read_config(tmp_path / "run" / "level0"), resolve(plain)) == {}
    for level, nnz in ((1, 217), (2, 101), (3, 47)):
        folder = tmp_path / "run" / f"level{level}"
        assert describe_run(folder).nnz == nnz
        found = evaluate_run(folder, threads=1)
        assert found["last"].accuracy == read_summary(folder)["last_test_accuracy"]
    assert not list((tmp_path / "run").rglob("*state*")) and not (tmp_path / "run" / REWIND).exists()


def test_a_finished_run_of_one_folder_is_read_as_before(tmp_path):
    """Earlier versions did all levels in one folder, whose files were the same when the run was finished."""
    summary = run(IMP, out=tmp_path / "run", threads=1)
    for level in range(4):
        shutil.rmtree(tmp_path / "run" / f"level{level}")
    assert run(IMP, out=tmp_path / "run", threads=1) == summary
    assert describe_run(tmp_path / "run").nnz == 47
    assert evaluate_run(tmp_path / "run", threads=1)["last"].accuracy == summary["last_test_accuracy"]
    (found,) = read_runs(tmp_path)
    assert found.weights_trained == 47 and len(found.records) == 3


def test_an_unfinished_run_of_one_folder_is_refused(tmp_path):
    stop_after(4, tmp_path / "run", config=IMP)
    (tmp_path / "run" / "level0" / STATE).rename(tmp_path / "run" / STATE)
    with pytest.raises(RunFolderError, match="begun by an earlier version of dctps"):
        run(IMP, out=tmp_path / "run", threads=1)


def test_mistakes_leave_nothing_behind(tmp_path):
    with pytest.raises(ValueError, match="schedule"):
        run(replace(IMP, schedule="steps"), out=tmp_path / "run", threads=1)
    assert not (tmp_path / "run" / "config.json").exists()
    run(IMP, out=tmp_path / "run", threads=1)


@pytest.mark.parametrize(("density", "levels"), [(0.8, 1), (0.79, 2), (0.01, 21), (1e-4, 42), (1.0, 1)])
def test_each_level_takes_at_most_a_fifth(density, levels):
    assert resolve(replace(IMP, density=density, levels=None)).levels == levels


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": 0}, "levels must be at least 1"),
        ({"rewind_epoch": -1}, "rewind_epoch must be 0 or more"),
        ({"rewind_epoch": 3}, "rewind_epoch must be below the 3 epochs, got 3"),
        ({"offset": "dct"}, "imp has the offset 'zero', not 'dct'"),
        ({"allocation": "erk"}, "imp has the allocation 'global'"),
        ({"update_interval": 5}, "update_interval belongs to the dynamics rigl or set or dsr"),
    ],
)
def test_bad_choices(change, message):
    with pytest.raises(ValueError, match=message):
        resolve(replace(IMP, **change))


@pytest.mark.parametrize("steps", [2, 9, 11, 17])
@pytest.mark.parametrize("rewind", [0, 2])
def test_a_stopped_run_ends_like_an_uninterrupted_one(tmp_path, steps, rewind):
    config = replace(IMP, rewind_epoch=rewind)
    run(config, out=tmp_path / "whole", threads=1)
    stop_after(steps, tmp_path / "run", config=config)
    notes = []
    run(config, out=tmp_path / "run", threads=1, on_note=notes.append)
    assert "/level" in notes[0]
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("rewind.safetensors", lambda s: s.clear()),
        ("rewind.safetensors", lambda s: s["model"].popitem()),
        ("rewind.safetensors", lambda s: s["schedule"].clear()),
        ("rewind.safetensors", lambda s: s.update(records=[{}])),
        ("level1/state.safetensors", lambda s: s["session"].pop("model")),
        (
            "level1/state.safetensors",
            lambda s: s["session"]["epoch"].clear(),
        ),
        ("level1/state.safetensors", lambda s: s.update(config={"method": "dense"})),
    ],
)
def test_a_state_that_does_not_fit(tmp_path, file, change):
    stop_after(14, tmp_path / "run", config=IMP)
    path = tmp_path / "run" / file
    state = read_state(path)
    change(state)
    write_state(path, state)
    with pytest.raises(RunFolderError, match=rf"{file} cannot be used") as info:
        train_tiny(tmp_path / "run", IMP)
    assert "\n" not in str(info.value)
    path.unlink()
    if file == "rewind.safetensors":
        with pytest.raises(RunFolderError, match=rf"{file} cannot be used"):
            train_tiny(tmp_path / "run", IMP)


@pytest.mark.parametrize("rewind", [0, 2])
def test_a_sweep_counts_the_epochs_of_all_levels(tmp_path, rewind):
    config = resolve(replace(IMP, rewind_epoch=rewind))
    runs = {"imp": config}
    before = look_ahead(runs, tmp_path, trial=lambda config: 2.0)
    stop_after(17, tmp_path / "imp", config=config)
    done = len((tmp_path / "imp" / "metrics.jsonl").read_text().splitlines())
    begun = look_ahead(runs, tmp_path)
    assert (begun.begun, begun.epochs) == (["imp"], before.epochs - done)
    assert before.seconds == 2.0 * before.epochs
    summary = run(config, out=tmp_path / "imp", threads=1)
    assert summary["imp"]["epochs_trained"] == before.epochs == 3 + 3 * (3 - rewind)
