"""What a run is, as plain values. This module does not import torch, so that `--help` is quick."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Literal, get_type_hints

from dctps.experiments.fields import check_range, of_type, plain_types, refuse_density_0
from dctps.experiments.methods import METHODS
from dctps.experiments.options import DYNAMICS, numbers_of, resolve_options
from dctps.names import lookup
from dctps.plugins import full_name, load_plugins, loaded_plugins

_LEVEL_KEEPS = 0.8  # the share of the weights that a level of imp keeps at least
_LEARNING_RATES = {"sgd": 0.1, "adam": 6e-3, "adamw": 6e-3}
# P has columns of norm 1: a dimension moves each of D weights by 1 / sqrt(D) of itself. docs/hyperplane.md.
_PROJECTED_RATE = 10


@dataclass(frozen=True)
class RunConfig:  # noqa: PLW1641 (as a frozen dataclass it has a hash)
    """What a run is: every choice that decides its numbers.

    Raises:
        ValueError: a value that is not of its field's type.
    """

    model: str = "lenet5"
    """the network: lenet5, resnet18, resnet50, vgg19, mobilenetv2, fixup-resnet110, ..."""
    dataset: str = "digits"
    """digits (comes with the program), cifar10, cifar100, tinyimagenet; folder and arrays are your own"""
    method: str = "dctps"
    """what is trained: dctps, sdctps, dctps-rigl, sdctps-rigl, random-uniform, random-epl, random-epf,
    random-erk, snip, grasp, force, iter-snip, synflow, magnitude, imp, rigl, set, dsr, hyperplane, norms,
    dense"""
    density: float | None = 0.01
    """trained share of the weights, in [0, 1], 0 under an offset alone; of a hyperplane, dimensions over
    weights; norms and dense have none"""
    seed: int = 0
    """of the initialisation, the supports, the order of the data and its augmentation"""
    batch_seed: int | None = None
    """of the order of the data and its augmentation alone (None: the seed)"""
    epochs: int = 20
    """passes through the training images"""

    offset: str | None = None
    """D: zero, dct, sdct, hadamard, gaussian (None: the method's)"""
    allocation: str | None = None
    """weights per layer: uniform, epl, epf, erk, narrow, global, or a criterion's (None: the method's)"""
    criterion: str | None = None
    """which weights: random, magnitude, snip, grasp, force, iter-snip, synflow, offset-snip, offset-gradient
    (None: the method's)"""
    alpha: Literal["one", "match"] | float = "one"
    """first value of each layer's alpha: 1, the dense initialisation's norm over D's, or a number"""
    alpha_trainable: bool = True
    """train alpha"""
    init: Literal["dense", "fan-in"] = "dense"
    """first values under the offset zero: the dense initialisation's, or drawn for each output by its own
    number of weights"""
    zero_head: bool = False
    """let the classifier begin at 0: its alpha, or its weights without an offset, and its bias"""
    norm: Literal["affine", "plain", "shared"] = "affine"
    """scale and shift of normalisation layers: each its own, none, or one for a stage and width"""
    bias: bool = True
    """give linear and convolutional layers their biases"""

    projection: str | None = None
    """of a hyperplane: dense, sparse, fastfood, auto (None: auto for the method hyperplane)"""

    optimizer: str = "adam"
    """sgd, adam, adamw"""
    lr: float | None = None
    """learning rate, the peak of onecycle (None: 0.1 for sgd, 6e-3 for adam and adamw; for a hyperplane ten
    times that)"""
    momentum: float = 0.9
    """of sgd"""
    nesterov: bool = False
    """Nesterov's momentum, for sgd"""
    weight_decay: float | None = None
    """L2 penalty (sgd, adam) or decoupled decay (adamw) (None: 5e-4, for a hyperplane 0)"""
    decay_alpha: bool = True
    """weight decay on alpha"""
    decay_norm_bias: bool = True
    """weight decay on biases and normalisation layers"""
    schedule: str = "onecycle"
    """of the learning rate: constant, multistep, cosine, onecycle"""
    milestones: tuple[float, ...] = (0.6, 0.8)
    """where multistep divides the rate by 10, as shares of the run"""
    batch_size: int | None = None
    """images per step (None: 32 for digits, 128 otherwise)"""
    clip_norm: float | None = None
    """largest norm of the gradient over all parameters (None: no limit)"""
    amp: Literal["off", "bf16", "fp16"] = "off"
    """mixed precision; it changes the numbers, so it is part of the run"""

    validation_size: float = 0.1
    """share of the training images held out for validation, in [0, 1)"""
    data_seed: int = 0
    """of the choice of validation images; also of test images, where the data have none of their own"""
    train_images: int | None = None
    """train on at most so many of the training images that are not held out (None: on all)"""
    eval_images: int | None = None
    """evaluate on at most so many validation images and as many test images (None: on all)"""
    image_size: int | None = None
    """crop all images to their middle square and resize it to this side (None: as they are)"""
    augment: bool | None = None
    """pad by 4, crop at random, and mirror (None: not for digits, else yes)"""
    flip: bool | None = None
    """let the augmentation mirror (None: where the data set's classes allow it; folder and arrays: no)"""
    mixup: float = 0.0
    """train on pairs of images mixed by Beta(mixup, mixup), up to 4; 1 is usual, 0 none"""

    dynamics: str | None = None
    """how the supports change: rigl, set, dsr, imp (None: the method's)"""
    update_interval: int | None = None
    """steps between two changes of the supports (None: 100)"""
    drop_fraction: float | None = None
    """share of the weights that move at a change, the first for rigl and set (None: 0.3; dsr 0.1)"""
    dynamics_end: float | None = None
    """share of the run after which the supports stay, in (0, 1] (None: 0.75)"""
    levels: int | None = None
    """prunings of imp, each followed by a training (None: so many that each takes at most 20%)"""
    rewind_epoch: int | None = None
    """epoch at whose end imp's weights are taken up again (None: 0, the initialisation)"""
    options: tuple[str, ...] = ()
    """what else criterion and dynamics let one choose, as name=value: steps, rounds, temperature, mode, loss,
    images_per_class, shuffle; decay, at_least_one, regrow_dropped, drop, threshold"""
    start: str | None = None
    """digest of the network that a run which continues another begins with; `--resume` sets it"""
    plugin: tuple[str, ...] = dataclasses.field(default_factory=loaded_plugins, compare=False)
    """modules or .py files of your own that register offsets, methods, networks, ...; every command takes
    it. No part of what the run is, but recorded with it"""

    def __post_init__(self) -> None:
        for name, kind in field_types().items():
            value = self.__dict__[name]
            if type(value) not in plain_types(kind):
                object.__setattr__(self, name, of_type(name, kind, value))
        object.__setattr__(self, "plugin", tuple(map(full_name, self.plugin)))

    def __eq__(self, other: object) -> bool:  # also of a `ResolvedConfig` and another
        return isinstance(other, RunConfig) and not differences(self, other)


@dataclass(frozen=True, eq=False)
class ResolvedConfig(RunConfig):
    """What `resolve` makes of a configuration: checked, and with all that the others decide put in.

    Two configurations are the same run exactly where their resolved forms are equal.
    """

    # Never None here. The defaults are never used: a dataclass wants them, as earlier fields have some.
    lr: float = 0.0
    weight_decay: float = 0.0
    batch_size: int = 1
    augment: bool = False


@cache
def field_types() -> dict[str, Any]:
    """The annotation of each field."""
    return get_type_hints(RunConfig)


def resolve(config: RunConfig) -> ResolvedConfig:
    """Check `config`, and put the choices of the method, the optimizer and the data set where it has None.

    The configuration's plugins are loaded first, as names may be theirs. `image_size` and `flip` may stay
    None, as the data themselves then decide.

    Raises:
        ValueError: a value out of range, an unknown method or optimizer, or choices that exclude each other.
    """
    load_plugins(*config.plugin)
    for name, value in vars(config).items():
        check_range(name, value)
    method = lookup("method", METHODS, config.method)
    lr = lookup("optimizer", _LEARNING_RATES, config.optimizer)
    if config.nesterov and (config.optimizer != "sgd" or config.momentum == 0):
        raise ValueError("nesterov needs the optimizer sgd and momentum: change those, or say --no-nesterov")

    chosen: dict[str, Any] = {"density": config.density}
    for name, value in method._asdict().items():
        if value is None and name != "dynamics" and getattr(config, name) is not None:
            raise ValueError(f"the method {config.method!r} has no {name}: leave it out")
        chosen[name] = getattr(config, name) or value
    dynamics = chosen["dynamics"]
    if chosen["offset"] is None and chosen["projection"] is None:
        chosen["density"] = None
    elif config.density is None:
        raise ValueError(f"the method {config.method!r} needs a density, such as 0.01")
    elif config.density == 0:
        refuse_density_0(chosen["offset"], dynamics)
    if dynamics is not None and chosen["offset"] is None:
        raise ValueError(f"the method {config.method!r} has no dynamics: leave it out")
    for name, value in METHODS["imp"]._asdict().items() if dynamics == "imp" else ():
        if chosen[name] != value:
            raise ValueError(f"imp has the {name} {value!r}, not {chosen[name]!r}: leave it out")
    scoring = () if dynamics == "imp" else (chosen["criterion"], chosen["allocation"])
    chosen["options"] = resolve_options(config.options, (*scoring, dynamics))
    projected = method.projection is not None
    # 1,437 images make few steps: small batches make more of them, and crops would ask for more.
    few_images = config.dataset == "digits"
    usual = {
        "lr": lr * _PROJECTED_RATE if projected else lr,
        "weight_decay": 0.0 if projected else 5e-4,
        "batch_size": 32 if few_images else 128,
        "augment": not few_images,
    }
    left_open = {name: value for name, value in usual.items() if getattr(config, name) is None}
    numbers = _numbers_of_dynamics(config, dynamics, chosen["density"])
    return ResolvedConfig(**vars(config) | chosen | left_open | numbers)


def _numbers_of_dynamics(
    config: RunConfig, dynamics: str | None, density: float | None
) -> dict[str, float | None]:
    """The fields that the dynamics of a run has, as given or by default."""
    numbers = {} if dynamics is None else dict(numbers_of(dynamics))
    for name in dict.fromkeys(name for table in DYNAMICS.values() for name in table):
        if (value := getattr(config, name)) is None:
            continue
        if name not in numbers:
            owners = " or ".join(owner for owner, table in DYNAMICS.items() if name in table)
            raise ValueError(
                f"{name} belongs to the dynamics {owners}, and the method {config.method!r} has "
                f"{dynamics or 'none'}: leave it out"
            )
        numbers[name] = value
    if (numbers.get("rewind_epoch") or 0) >= config.epochs:
        raise ValueError(f"rewind_epoch must be below the {config.epochs} epochs, got {config.rewind_epoch}")
    if dynamics == "imp" and numbers["levels"] is None and density is not None:
        numbers["levels"] = max(1, math.ceil(math.log(density, _LEVEL_KEEPS) - 1e-9))
    return numbers


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The fields as JSON holds them."""
    lists = ("milestones", "options", "plugin")
    values = asdict(config) | {name: list(getattr(config, name)) for name in lists}
    return {name: value for name, value in values.items() if value or name not in ("plugin", "start")}


def from_dict(values: Mapping[str, Any]) -> RunConfig:
    """The inverse of `to_dict`; a field that is missing, since it is younger than the file, has its default.

    Raises:
        ValueError: an unknown field, or a value that no run can have.
    """
    unknown = values.keys() - field_types().keys()
    if unknown:
        raise ValueError(f"unknown field {min(unknown)!r}: was this written by a newer version of dctps?")
    config = RunConfig(**values)
    resolve(config)
    return config


def differences(config: RunConfig, other: RunConfig) -> dict[str, tuple[Any, Any]]:
    """The fields in which two configurations differ, with both values, in the order of the fields.

    Plugins are not compared: the same run may have its plugin in another place.
    """
    ours, theirs = vars(config), vars(other)
    return {n: (ours[n], theirs[n]) for n in ours if n != "plugin" and ours[n] != theirs[n]}


def run_name(config: RunConfig) -> str:
    """A folder's name for a run: model, data set, method, density, seed, and what else is not the default.

    `lenet5-digits-dctps-0.01-seed0`, or with five epochs `lenet5-digits-dctps-0.01-seed0-epochs5`.
    """
    config = resolve(config)
    density = [] if config.density is None else [repr(config.density or 0)]  # 0.0 is 0 too
    parts = [config.model, config.dataset, config.method, *density, f"seed{config.seed}"]
    if config.optimizer != RunConfig.optimizer:
        parts.append(config.optimizer)
    named = ("model", "dataset", "method", "density", "seed", "optimizer")
    usual = resolve(RunConfig(**{name: getattr(config, name) for name in named}))
    for name, (value, _) in differences(config, usual).items():
        if name == "start":
            parts.append(f"start{value[:12]}")
            continue
        if name == "options":
            parts += [option.replace("_", "").replace("=", "") for option in value]
            continue
        text = "_".join(map(str, value)) if isinstance(value, tuple) else str(value)
        parts.append(f"{name.replace('_', '')}{text}")
    return "-".join(parts)


def total_epochs(config: RunConfig) -> int:
    """Passes through the training images until the run is finished; for imp, of all levels together."""
    config = resolve(config)
    again = config.epochs - (config.rewind_epoch or 0)
    return config.epochs + (config.levels or 0) * again
