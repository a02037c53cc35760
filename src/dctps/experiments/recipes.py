"""Full configurations under a name: how others trained, and what does for a small budget.

A recipe is a function of model, data set and method to a `RunConfig`, and its defaults are what its source
trained. A run does not remember which recipe it came from. This module does not import torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from dctps.experiments.config import RunConfig
from dctps.experiments.methods import METHODS
from dctps.names import Registry, lookup

RECIPES: Registry[Callable[..., RunConfig]] = Registry("recipe")


def build_recipe(
    name: str, *, model: str | None = None, dataset: str | None = None, method: str | None = None
) -> RunConfig:
    """The configuration of the recipe called `name`.

    Args:
        name: one of `list_recipes()`.
        model: the network (None: the recipe's own).
        dataset: the data set (None: the recipe's own).
        method: what is trained (None: the recipe's own).

    Raises:
        ValueError: no recipe or no method has that name; the message gives the nearest.
    """
    chosen = {"model": model, "dataset": dataset, "method": method}
    return RECIPES.find(name)(**{key: value for key, value in chosen.items() if value is not None})


def list_recipes() -> list[str]:
    """The names, sorted."""
    return sorted(RECIPES)


def recipe_text(name: str) -> list[str]:
    """What the recipe called `name` is: a summary in the first line, then the details."""
    return inspect.cleandoc(RECIPES.find(name).__doc__ or name).splitlines()


_USUAL: dict[str, Any] = {
    "weight_decay": 5e-4, "batch_size": 128, "validation_size": 0.1, "augment": True,
}  # fmt: skip


@RECIPES.register("short")
def short(model: str = "lenet5", dataset: str = "digits", method: str = "dctps") -> RunConfig:
    """Few epochs: Adam and one cycle of the rate, 20 epochs; what `dctps train` does by itself.

    `docs/worth.md` has LeNet-5 trained so by every method, on CIFAR-10.
    """
    return RunConfig(model=model, dataset=dataset, method=method)


@RECIPES.register("few")
def few(model: str = "resnet20", dataset: str = "cifar10", method: str = "dctps") -> RunConfig:
    """Few trained numbers: Adam and one cycle up to 2e-2, a classifier that begins at zero; 20 epochs.

    From 2% of the weights down to none the best rate of an offset's values is 1.5e-2 to 2e-2, whatever the
    density and the network (`docs/worth.md`). With a classifier at zero the first steps are not spent on
    making the loss smaller. The alphas of a Fixup network match its initialisation. Methods without an
    offset train as under `short`; the values of random supports and of SNIP begin at the variance that their
    fan-in asks for, which the others gain nothing by.
    """
    if not _has_offset(method):
        begins_sparse = METHODS[method].criterion in ("random", "snip")
        return replace(short(model, dataset, method), init="fan-in" if begins_sparse else "dense")
    alpha: Literal["one", "match"] = "match" if model.startswith("fixup") else "one"
    return RunConfig(model=model, dataset=dataset, method=method, lr=2e-2, zero_head=True, alpha=alpha)


@RECIPES.register("paper")
def paper(model: str = "resnet50", dataset: str = "cifar100", method: str = "dctps") -> RunConfig:
    """Price and Tanner 2021: 200 epochs; Adam at a constant 1e-3 under an offset, SGD in steps otherwise.

    Batches of 128, weight decay 5e-4 on everything (in Adam an L2 penalty), 45,000 images to train and 5,000
    to choose the best epoch by; the alphas of a Fixup network match its initialisation (section 5.3). Adam's
    rate and the missing schedule come from the command that the authors' code documents for DCTpS. SGD's
    are its defaults with its optional schedule: a tenth after 119 epochs and again after 159, as its
    scheduler steps at the beginning of an epoch. The choices of each experiment, in the supplement, were not
    at hand.

    Reference: arXiv 2102.07655, section 5; https://github.com/IlanPrice/DCTpS.
    """
    if not _has_offset(method):
        return _sgd(model, dataset, method, epochs=200, milestones=(119, 159))
    alpha = "match" if model.startswith("fixup") else "one"
    adam = {"optimizer": "adam", "lr": 1e-3, "schedule": "constant", "alpha": alpha}
    return RunConfig(**_USUAL | adam, model=model, dataset=dataset, method=method, epochs=200)


@RECIPES.register("force")
def force(model: str = "resnet50", dataset: str = "cifar10", method: str = "force") -> RunConfig:
    """De Jorge et al. 2021 (FORCE): SGD at 0.1, a tenth at 150 and 250 of 350 epochs; Tiny ImageNet 300.

    Batches of 128, weight decay 5e-4, a tenth of the training images held out. On Tiny ImageNet 300 epochs
    with steps at 150 and 225. The authors' supports come from the logits without a softmax, and from 1, 10 or
    20 batches in each step (CIFAR-10, CIFAR-100, Tiny ImageNet): `--options loss=nll_on_logits
    images_per_class=13` is that, except for their augmentation.

    Reference: "Progressive Skeletonization", ICLR 2021; https://github.com/naver/force.
    """
    if dataset == "tinyimagenet":
        return _sgd(model, dataset, method, epochs=300, milestones=(150, 225))
    return _sgd(model, dataset, method, epochs=350, milestones=(150, 250))


@RECIPES.register("synflow")
def synflow(model: str = "vgg16", dataset: str = "cifar100", method: str = "synflow") -> RunConfig:
    """Tanaka et al. 2020 (SynFlow): SGD with Nesterov's momentum at 0.1, a tenth at 60 and 120 of 160 epochs.

    Batches of 128, weight decay 1e-4, nothing held out.

    Reference: "Pruning neural networks without any data", NeurIPS 2020;
    https://github.com/ganguli-lab/Synaptic-Flow.
    """
    choices = {"nesterov": True, "weight_decay": 1e-4, "validation_size": 0.0}
    return _sgd(model, dataset, method, epochs=160, milestones=(60, 120), **choices)


@RECIPES.register("fixup")
def fixup(model: str = "fixup-resnet110", dataset: str = "cifar10", method: str = "dense") -> RunConfig:
    """Zhang et al. 2019 (Fixup): mixup, SGD at 0.1, a tenth at 100 and 150 of 200 epochs.

    Batches of 128, weight decay 1e-4, nothing held out; scales and biases train at a tenth of the rate. Under
    an offset each layer's alpha matches its initialisation, 0 where that is 0.

    Reference: "Fixup Initialization", ICLR 2019; https://github.com/hongyi-zhang/Fixup.
    """
    alpha = "match" if _has_offset(method) else "one"
    choices = {"weight_decay": 1e-4, "validation_size": 0.0, "mixup": 1.0, "alpha": alpha}
    return _sgd(model, dataset, method, epochs=200, milestones=(100, 150), **choices)


def _sgd(
    model: str, dataset: str, method: str, *, epochs: int, milestones: tuple[int, ...], **choices: Any
) -> RunConfig:
    """SGD as most train with it: 0.1, momentum 0.9, batches of 128, crops and flips; milestones in epochs."""
    steps = {"schedule": "multistep", "milestones": tuple(epoch / epochs for epoch in milestones)}
    sgd = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, **steps}
    return RunConfig(**_USUAL | sgd | choices, model=model, dataset=dataset, method=method, epochs=epochs)


def _has_offset(method: str) -> bool:
    return lookup("method", METHODS, method).offset not in (None, "zero")
