import itertools

import pytest

from dctps.experiments import RunConfig
from dctps.experiments.config import resolve
from dctps.sweeps.grid import grid, parse_fields, read_tables


def test_a_grid_is_every_combination_under_its_name():
    runs = grid({"method": ["dctps", "random-epl"], "density": [0.1, 0.01], "seed": [0, 1]})
    expected = [
        resolve(RunConfig(method=method, density=density, seed=seed))
        for method, density, seed in itertools.product(["dctps", "random-epl"], [0.1, 0.01], [0, 1])
    ]
    assert list(runs.values()) == expected
    assert next(iter(runs)) == "lenet5-digits-dctps-0.1-seed0"


def test_a_run_that_comes_up_twice_is_one():
    assert list(grid({"method": "dense", "density": [0.1, 0.01]}, {"method": "dense"})) == [
        "lenet5-digits-dense-seed0"
    ]


def test_adding_runs_renames_none():
    few = grid({"density": [0.1]}, shared={"epochs": 3})
    many = grid({"density": [0.1, 0.01], "seed": [0, 1]}, {"optimizer": ["sgd"]}, shared={"epochs": 3})
    assert few.items() <= many.items()


def test_names_are_distinct_and_short():
    shared = {
        "offset": "hadamard", "allocation": "erk", "criterion": "random", "alpha": 0.1234567890123,
        "lr": 0.0012345678901, "weight_decay": 0.000123456789, "schedule": "multistep",
        "milestones": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9], "clip_norm": 1.23456789,
        "validation_size": 0.123456789, "batch_size": 77, "epochs": 123,
    }  # fmt: skip
    runs = grid({"density": [0.1, 0.01], "data_seed": [1, 2]}, shared=shared)
    assert len(runs) == 4
    assert max(len(name.encode()) for name in runs) <= 180


def test_a_field_whose_value_is_a_list_takes_lists_in_turn():
    one = grid({"schedule": "multistep", "milestones": [0.3, 0.6]})
    two = grid({"schedule": "multistep", "milestones": [[0.3, 0.6], [0.5]]})
    assert [config.milestones for config in one.values()] == [(0.3, 0.6)]
    assert [config.milestones for config in two.values()] == [(0.3, 0.6), (0.5,)]


def test_assignments():
    assert parse_fields(["method=dctps,dense", "density=0.05", "nesterov=true", "seed=0,1"]) == {
        "method": ["dctps", "dense"], "density": 0.05, "nesterov": True, "seed": [0, 1],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("assignment", "message"), [("method", "write name=value"), ("metod=dctps", "did you mean 'method'")]
)
def test_bad_assignments(assignment, message):
    with pytest.raises(ValueError, match=message):
        parse_fields([assignment])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"density": [0.1, 2]}, "density=2.*must be in"),
        ({"method": ["dctps", "dctp"]}, "method=dctp.*did you mean"),
        ({"epochs": "three"}, "epochs=three"),
        ({"seed": []}, "at least one run"),
    ],
)
def test_bad_grids(table, message):
    with pytest.raises(ValueError, match=message):
        grid(table)


def test_a_sweep_file(tmp_path):
    (tmp_path / "sweep.toml").write_text(
        'epochs = 3\n[[runs]]\nmethod = ["dctps", "sdctps"]\n[[runs]]\nmethod = "dense"\nepochs = 5\n'
    )
    shared, tables = read_tables(tmp_path / "sweep.toml")
    epochs = [(config.method, config.epochs) for config in grid(*tables, shared=shared).values()]
    assert epochs == [("dctps", 3), ("sdctps", 3), ("dense", 5)]


@pytest.mark.parametrize("text", ["epochs = ", "[runs]\nmethod = 1\n", "runs = [1]\n"])
def test_bad_sweep_files(tmp_path, text):
    (tmp_path / "sweep.toml").write_text(text)
    with pytest.raises(ValueError, match="the sweep file"):
        read_tables(tmp_path / "sweep.toml")
    with pytest.raises(ValueError, match="cannot be read"):
        read_tables(tmp_path / "missing.toml")
