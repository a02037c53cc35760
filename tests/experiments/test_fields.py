"""The type of every field is checked at every door, and a choice without effect is said."""

import json
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dctps.cli import main
from dctps.experiments import RunConfig
from dctps.experiments.config import field_types, from_dict, resolve, run_name, to_dict
from dctps.experiments.fields import of_type, read_word
from dctps.experiments.folder import RunFolder
from dctps.experiments.run import run
from dctps.experiments.unused import refuse_unused, unused
from dctps.sweeps.grid import grid, parse_fields, read_tables

WRONG = [
    ("bias", "False"), ("bias", "no"), ("bias", 0), ("augment", "off"), ("alpha_trainable", None),
    ("density", "0.1"), ("density", True), ("density", [0.1]), ("lr", "fast"), ("alpha", "mach"),
    ("alpha", True),
    ("epochs", 1.0), ("epochs", "3"), ("epochs", None), ("seed", True), ("seed", 1.5), ("seed", b"1"),
    ("milestones", "half"), ("milestones", [0.5, "x"]), ("options", [1]), ("amp", "bf8"), ("norm", 3),
    ("model", 5), ("method", ["dctps"]), ("offset", False), ("clip_norm", {"a": 1}), ("clip_norm", "none"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_value_of_another_type_is_refused_at_every_door(tmp_path, name, value):
    refused = pytest.raises(ValueError, match=rf"{name}.*(wrong type|choose from|did you mean)")
    with refused:
        RunConfig(**{name: value})
    with refused:
        from_dict(to_dict(RunConfig()) | {name: value})
    if not isinstance(value, list | bytes | dict | None):
        (tmp_path / "sweep.toml").write_text(f"{name} = {json.dumps(value)}")
        shared, tables = read_tables(tmp_path / "sweep.toml")
        with refused:
            grid(*tables, shared=shared)


@pytest.mark.parametrize(
    "word", ["bias=no", "bias=off", "bias=0", "density=x", "epochs=1.0", "seed=1e3", "lr="]
)
def test_a_word_that_writes_no_value_names_field_and_value(word):
    name, _, value = word.partition("=")
    with pytest.raises(ValueError, match=rf"{name} has the wrong type: .* is wanted, got '{value}'"):
        grid(parse_fields([word]))


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("density=.05", 0.05), ("lr=.006", 0.006), ("lr=5e-2", 0.05), ("seed=01", 1),
        ("clip_norm=none", None),
        ("clip_norm=1", 1), ("bias=False", False), ("bias=false", False), ("nesterov=TRUE", True),
        ("milestones=.5", (0.5,)), ("alpha=match", "match"), ("alpha=.5", 0.5), ("flip=None", None),
        ("options=steps=5", ("steps=5",)), ("augment=true", True),
    ],
)  # fmt: skip
def test_words_are_read_as_their_field_has_them(word, value):
    ((name, read),) = parse_fields([word]).items()
    found = getattr(RunConfig(**{name: read}), name)
    assert found == value and type(found) is type(value)


@given(st.sampled_from(list(field_types())), st.text(max_size=8))
def test_any_word_is_a_value_or_an_error_that_names_the_field(name, word):
    kind = field_types()[name]
    try:
        value = of_type(name, kind, read_word(kind, word))
    except ValueError as error:
        assert name in str(error)
    else:
        assert value is None or isinstance(value, bool | int | float | str | tuple)


@pytest.mark.parametrize("number", [np.int64, np.uint8, np.int32, torch.tensor, int])
def test_whole_numbers_of_other_libraries_become_pythons(number):
    config = RunConfig(seed=number(3), epochs=number(2), milestones=(np.float32(0.5),), bias=np.bool_(False))
    assert [type(x) for x in (config.seed, config.epochs, config.bias)] == [int, int, bool]
    assert config == RunConfig(seed=3, epochs=2, milestones=[0.5], bias=False)
    assert from_dict(to_dict(config)) == config and run_name(config) == run_name(RunConfig(
        seed=3, epochs=2, milestones=(0.5,), bias=False))  # fmt: skip


@pytest.mark.parametrize("number", [np.float64, np.float32, torch.tensor, float])
def test_numbers_of_other_libraries_become_pythons(number):
    config = RunConfig(density=number(0.25), lr=number(0.5))
    assert type(config.density) is float and config == RunConfig(density=0.25, lr=0.5)
    assert math.isinf(RunConfig(lr=number(math.inf)).lr)


IDLE = [
    ({"method": "dense", "density": 0.1}, "density 0.1 would have no effect .*trains every weight"),
    ({"method": "dense", "density": 0}, "density 0.* would have no effect .*trains every weight"),
    ({"method": "norms", "density": 0.1}, "density 0.1 would have no effect .*trains no weight"),
    ({"method": "dctps", "init": "fan-in"}, "init fan-in would have no effect .*S starts at 0"),
    ({"method": "norms", "init": "fan-in"}, "init fan-in .*start from the dense initialisation"),
    ({"method": "imp", "init": "fan-in"}, "init fan-in .*start from the dense initialisation"),
    ({"criterion": "nonzero"}, "whatever the density, and got density 0.01: give density 1"),
    ({"momentum": 0.5}, "momentum 0.5 would have no effect .*optimizer adam has none; sgd"),
    ({"optimizer": "adamw", "momentum": 0.5}, "momentum 0.5 .*adamw has none"),
    ({"milestones": (0.5,)}, "milestones .*schedule onecycle has none; multistep"),
    ({"milestones": (0.5,), "schedule": "constant"}, "milestones"),
    ({"flip": True}, "flip True .*augmentation, which this run does without"),
    ({"method": "snip", "alpha": "match"}, "alpha match .*offset zero"),
    ({"method": "dense", "alpha": 0.5}, "alpha 0.5 .*no offset"),
    ({"method": "hyperplane", "alpha": "match"}, "alpha match .*no offset"),
]


@pytest.mark.parametrize(("change", "message"), IDLE)
def test_a_choice_without_effect_is_refused_where_a_run_is_asked_for(tmp_path, capfd, change, message):
    config = RunConfig(**change)
    with pytest.raises(ValueError, match=message):
        refuse_unused(config)
    flags = [f"--{k} {v[0] if isinstance(v, tuple) else v}" for k, v in change.items() if v is not True]
    flags += [f"--{k}" for k, v in change.items() if v is True]
    assert main(["train", *" ".join(flags).split(), "--out", str(tmp_path / "run")]) == 2
    assert re.search(message, capfd.readouterr().err)
    if "density" not in change:  # which stands in loops and grids for all methods
        with pytest.raises(ValueError, match=message):
            run(config, out=tmp_path / "run")
        with pytest.raises(ValueError, match=message):
            grid(change | {k: [list(v)] for k, v in change.items() if isinstance(v, tuple)})
    assert not (tmp_path / "run").exists()
    # A folder of an older version that has such a choice is still the same run, and can be read.
    old, new = (
        resolve(config),
        resolve(RunConfig(**{k: v for k, v in change.items() if k not in unused(config)})),
    )
    assert from_dict(to_dict(old)) == old
    if "criterion" not in change:
        folder = RunFolder(tmp_path / "old", old)
        with folder.writing():
            folder.begin({"sha256": {}})
        assert RunFolder(tmp_path / "old", new).finished() is None


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": "sgd", "momentum": 0.5}, {"schedule": "multistep", "milestones": (0.5,)},
        {"augment": True, "flip": False}, {"alpha": "match", "decay_alpha": False}, {"method": "dense"},
        {"method": "dense", "alpha_trainable": False}, {"method": "snip", "decay_alpha": False},
        {"flip": False}, {"momentum": 0.0},
        {"criterion": "nonzero", "density": 1.0}, {"method": "hyperplane", "density": 0.1},
    ],
)  # fmt: skip
def test_a_choice_with_an_effect_is_not(change):
    refuse_unused(RunConfig(**change))
    refuse_unused(resolve(RunConfig(**change)))


def test_a_density_beside_methods_without_one():
    names = list(grid(parse_fields(["method=dctps,dense", "density=.1"])))
    assert names == ["lenet5-digits-dctps-0.1-seed0", "lenet5-digits-dense-seed0"]
    with pytest.raises(ValueError, match=r"density 0.1 would have no effect"):
        grid(parse_fields(["method=dense", "density=.1"]))


def test_what_a_recipe_decides_and_a_flag_leaves_idle_is_nobodys_mistake(monkeypatch):
    from dctps.cli import program

    seen = []
    monkeypatch.setattr(program, "_perform", lambda command, argv: seen.append(command.run) or 0)
    assert main(["train", "--recipe", "force", "--schedule", "constant"]) == 0
    assert main(["train", "--recipe", "fixup", "--method", "dctps", "--offset", "zero"]) == 0
    for config in seen:
        refuse_unused(config)
    assert main(["train", "--recipe", "force", "--schedule", "constant", "--milestones", ".3"]) == 0
    with pytest.raises(ValueError, match="milestones"):
        refuse_unused(seen[-1])
