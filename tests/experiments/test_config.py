import inspect
import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest

from dctps.dynamic.base import find_dynamics
from dctps.experiments import METHODS, RunConfig
from dctps.experiments.config import (
    DYNAMICS,
    ResolvedConfig,
    differences,
    from_dict,
    resolve,
    run_name,
    to_dict,
)

EVERY_KIND = RunConfig(
    method="sdctps", density=0.1 + 0.2, alpha=0.7, milestones=(1 / 3,), clip_norm=1.0, lr=1e-17, seed=2**62
)


@pytest.mark.parametrize("config", [RunConfig(), EVERY_KIND, resolve(EVERY_KIND), RunConfig(alpha="match")])
def test_json_round_trip_is_exact(config):
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_a_field_younger_than_the_file_has_its_default():
    values = to_dict(RunConfig(seed=3))
    del values["clip_norm"]
    assert from_dict(values) == RunConfig(seed=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"densty": 1}, "unknown field 'densty'"),
        ({"epochs": "many"}, "wrong type"),
        ({"epochs": 0}, "at least 1"),
    ],
)
def test_values_that_no_run_has_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        from_dict(to_dict(RunConfig()) | change)


# What the methods of the papers are: offset, allocation, criterion, projection, dynamics.
MEANING = {
    "dctps": ("dct", "epl", "random", None, None),
    "sdctps": ("sdct", "epl", "random", None, None),
    "dctps-rigl": ("dct", "epl", "random", None, "rigl"),
    "sdctps-rigl": ("sdct", "epl", "random", None, "rigl"),
    **{f"random-{a}": ("zero", a, "random", None, None) for a in ("uniform", "epl", "epf", "erk")},
    **{
        criterion: ("zero", "global", criterion, None, None)
        for criterion in ("snip", "grasp", "force", "iter-snip", "synflow", "magnitude")
    },
    **{dynamics: ("zero", "erk", "random", None, dynamics) for dynamics in ("rigl", "set", "dsr")},
    "imp": ("zero", "global", "magnitude", None, "imp"),
    "hyperplane": (None, None, None, "auto", None),
    "norms": (None, None, None, None, None),
    "dense": (None, None, None, None, None),
}


def test_every_method_is_in_the_table():
    assert set(METHODS) == set(MEANING)


@pytest.mark.parametrize("method", MEANING)
def test_a_method_is_its_choices(method):
    config = resolve(RunConfig(method=method))
    fields = ("offset", "allocation", "criterion", "projection", "dynamics")
    assert tuple(getattr(config, field) for field in fields) == MEANING[method]
    assert (config.density is None) == (method in ("norms", "dense"))
    assert resolve(config) == config


def test_each_flag_overrides_the_method():
    config = resolve(RunConfig(method="random-erk", offset="hadamard"))
    assert (config.offset, config.allocation, config.criterion) == ("hadamard", "erk", "random")
    assert resolve(RunConfig(method="random-erk", dynamics="set")).dynamics == "set"


@pytest.mark.parametrize(("method", "fraction"), [("rigl", 0.3), ("set", 0.3), ("dsr", 0.1)])
def test_dynamics_have_numbers_of_their_own(method, fraction):
    config = resolve(RunConfig(method=method))
    assert (config.update_interval, config.drop_fraction, config.dynamics_end) == (100, fraction, 0.75)
    config = resolve(RunConfig(method=method, update_interval=7, drop_fraction=0.2, dynamics_end=1.0))
    assert (config.update_interval, config.drop_fraction, config.dynamics_end) == (7, 0.2, 1.0)


@pytest.mark.parametrize("method", ["rigl", "set", "dsr"])
def test_the_numbers_of_a_dynamics_are_those_of_its_class(method):
    """They stand twice, because `dctps --help` must not import torch."""
    arguments = inspect.signature(find_dynamics(method)).parameters
    for name in ("update_interval", "drop_fraction"):
        assert DYNAMICS[method][name] == arguments[name].default


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 0.1), ("adam", 6e-3), ("adamw", 6e-3)])
def test_the_learning_rate_is_the_optimizers_unless_given(optimizer, lr):
    assert resolve(RunConfig(optimizer=optimizer)).lr == lr
    assert resolve(RunConfig(optimizer=optimizer, lr=0.5)).lr == 0.5
    assert resolve(RunConfig(method="hyperplane", optimizer=optimizer)).lr == pytest.approx(10 * lr)
    assert resolve(RunConfig(method="hyperplane", optimizer=optimizer, lr=0.5)).lr == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"density": 2.0}, r"density must be in \[0, 1\], .*got 2.0"),
        ({"density": -0.1}, "density must be"),
        ({"method": "snip", "density": 0}, "density 0 trains no weight, and without an offset"),
        (
            {"method": "dctps", "offset": "zero", "density": 0.0},
            "choose a density above 0, or an offset such",
        ),
        ({"method": "imp", "density": 0}, "density 0 trains no weight"),
        ({"method": "hyperplane", "density": 0}, "a hyperplane of density 0 has no dimension"),
        ({"method": "dctps-rigl", "density": 0}, "rigl moves weights, and at density 0 there are none"),
        ({"dynamics": "set", "density": 0}, "set moves weights, and at density 0"),
        ({"init": "orthogonal"}, "unknown init .orthogonal.: choose from dense, fan-in"),
        ({"density": math.nan}, "density must be"),
        ({"density": None}, "needs a density"),
        ({"seed": -1}, "seed must be"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"alpha": math.inf}, "alpha must be"),
        ({"lr": 0.0}, "lr must be above 0"),
        ({"lr": math.inf}, "lr must be above 0"),
        ({"momentum": 1.0}, "momentum must be"),
        ({"weight_decay": -1e-4}, "weight_decay must be"),
        ({"milestones": (0.8, 0.6)}, "milestones must be rising"),
        ({"milestones": (0.5, 1.0)}, "milestones must be rising"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"clip_norm": 0.0}, "clip_norm must be"),
        ({"validation_size": 1.0}, "validation_size must be"),
        ({"data_seed": -1}, "data_seed must be"),
        ({"mixup": -0.1}, "mixup must be from 0 to 4, got -0.1"),
        ({"mixup": 4.5}, "mixup must be"),
        ({"image_size": 0}, "image_size must be from 1 to 4096 pixels, got 0"),
        ({"nesterov": True}, "nesterov needs the optimizer sgd"),
        ({"nesterov": True, "optimizer": "sgd", "momentum": 0.0}, "nesterov needs"),
        ({"method": "dctsp"}, "unknown method 'dctsp': did you mean 'dctps'"),
        ({"optimizer": "adma"}, "unknown optimizer 'adma': did you mean 'adam'"),
        ({"method": "dense", "offset": "dct"}, "'dense' has no offset"),
        ({"method": "hyperplane", "criterion": "random"}, "'hyperplane' has no criterion"),
        ({"method": "hyperplane", "density": None}, "'hyperplane' needs a density"),
        ({"projection": "fastfood"}, "'dctps' has no projection"),
        ({"method": "dense", "dynamics": "rigl"}, "'dense' has no dynamics"),
        ({"dynamics": "rgil"}, "unknown dynamics 'rgil': did you mean 'rigl'"),
        (
            {"update_interval": 10},
            "belongs to the dynamics rigl or set or dsr, and the method 'dctps' has none",
        ),
        ({"method": "rigl", "update_interval": 0}, "update_interval must be at least 1"),
        ({"method": "rigl", "drop_fraction": 0.0}, "drop_fraction must be in"),
        ({"method": "rigl", "dynamics_end": 1.1}, "dynamics_end must be a share of the run"),
    ],
)
def test_bad_values_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        resolve(replace(RunConfig(), **change))


@pytest.mark.parametrize(
    ("dataset", "batch_size", "augment"),
    [("digits", 32, False), ("cifar10", 128, True), ("folder", 128, True)],
)
def test_the_data_set_decides_batch_and_augmentation_unless_they_are_given(dataset, batch_size, augment):
    config = resolve(RunConfig(dataset=dataset))
    assert (config.batch_size, config.augment) == (batch_size, augment)
    given = RunConfig(dataset=dataset, batch_size=7, augment=not augment)
    assert (resolve(given).batch_size, resolve(given).augment) == (7, not augment)
    assert run_name(RunConfig(dataset=dataset, batch_size=batch_size)) == run_name(RunConfig(dataset=dataset))


@pytest.mark.parametrize(("method", "decay"), [("hyperplane", 0.0), ("dctps", 5e-4), ("dense", 5e-4)])
def test_weight_decay_is_the_methods_unless_given(method, decay):
    assert resolve(RunConfig(method=method)).weight_decay == decay
    assert resolve(RunConfig(method=method, weight_decay=0.1)).weight_decay == 0.1


def test_differences_have_both_values():
    assert differences(RunConfig(lr=0.1, seed=1), RunConfig(lr=0.2, seed=1)) == {"lr": (0.1, 0.2)}


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (RunConfig(), "lenet5-digits-dctps-0.01-seed0"),
        (RunConfig(method="dense", seed=4), "lenet5-digits-dense-seed4"),
        (RunConfig(offset="dct", lr=6e-3), "lenet5-digits-dctps-0.01-seed0"),
        (RunConfig(optimizer="sgd"), "lenet5-digits-dctps-0.01-seed0-sgd"),
        (RunConfig(method="rigl", update_interval=50), "lenet5-digits-rigl-0.01-seed0-updateinterval50"),
        (
            RunConfig(density=1e-4, epochs=5, offset="sdct", milestones=(0.5, 0.7)),
            "lenet5-digits-dctps-0.0001-seed0-epochs5-offsetsdct-milestones0.5_0.7",
        ),
    ],
)
def test_a_run_is_named_by_what_it_differs_in(config, name):
    assert run_name(config) == name


def test_configuration_does_not_import_torch():
    code = "import sys, dctps.cli, dctps.experiments; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_resolved_configuration_is_a_type_of_its_own():
    config = RunConfig(method="dense", density=None)
    whole = resolve(config)
    assert isinstance(whole, ResolvedConfig) and not isinstance(config, ResolvedConfig)
    assert None not in (whole.lr, whole.weight_decay, whole.batch_size, whole.augment)
    assert whole != config and resolve(whole) == whole
    plain = RunConfig(**vars(whole))
    assert plain == whole and hash(plain) == hash(whole) and {plain: 1}[whole] == 1
