"""Ways to adapt a network at an equal number of trained parameters, for `benchmarks/adapters.py`."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from adapter_tasks import Task
from torch import nn

import dctps
from dctps.adapters import load_adapter_, save_adapter
from dctps.adapters.targets import matches
from dctps.networks import freeze_except_norms_
from dctps.nn.adapter import can_adapt, is_transposed

Make = Callable[[Task, nn.Module, int], nn.Module]


def random(task: Task, model: nn.Module, seed: int) -> nn.Module:
    """Ours, r (m + n) positions of each layer at random."""
    return dctps.adapt_(model, r=task.r, target_modules=task.targets, modules_to_save=task.saved, seed=seed)


def gradient(task: Task, model: nn.Module, seed: int) -> nn.Module:
    """Ours, as many positions in all, where the loss has the largest gradients on ten batches."""
    layers = _layers(task, model)
    nnz = sum(task.r * (w.shape[0] + w[0].numel()) for w in (layer.weight for layer in layers))
    return _by_gradient(task, model, seed, nnz=nnz)


def layerwise(task: Task, model: nn.Module, seed: int) -> nn.Module:
    """Ours, r (m + n) positions of each layer by gradient."""
    return _by_gradient(task, model, seed, r=task.r)


def _by_gradient(task: Task, model: nn.Module, seed: int, **count: int) -> nn.Module:
    return dctps.adapt_(
        model,
        target_modules=task.targets,
        modules_to_save=task.saved,
        seed=seed,
        criterion="gradient",
        loss=task.loss,
        batches=list(islice(task.batches(seed), 10)),
        **count,
    )


def lora(task: Task, model: nn.Module, seed: int, alpha: int = 8) -> nn.Module:
    """PEFT's LoRA of rank r, with its default scale alpha / r."""
    import peft  # noqa: PLC0415 (an extra)

    torch.manual_seed(seed)
    names = _names(task, model)
    config = peft.LoraConfig(
        r=task.r,
        lora_alpha=alpha,
        target_modules=names,
        modules_to_save=task.saved or None,
        fan_in_fan_out=all(is_transposed(layer) for layer in _layers(task, model)),
    )
    return peft.get_peft_model(model, config)


def lora_unscaled(task: Task, model: nn.Module, seed: int) -> nn.Module:
    """PEFT's LoRA with the scale 1, so that a rate that suits a new head may suit it, too."""
    return lora(task, model, seed, alpha=task.r)


def shira(task: Task, model: nn.Module, seed: int) -> nn.Module:
    """PEFT's SHiRA, random positions."""
    import peft  # noqa: PLC0415 (an extra)

    config = peft.ShiraConfig(
        r=task.r, target_modules=_names(task, model), modules_to_save=task.saved or None, random_seed=seed
    )
    return peft.get_peft_model(model, config)


def norms(task: Task, model: nn.Module, seed: int) -> nn.Module:
    """Scales and shifts of the norms, and what is saved as a whole."""
    freeze_except_norms_(model)
    return _with_head(task, model)


def head(task: Task, model: nn.Module, seed: int) -> nn.Module:
    """The head alone."""
    return _with_head(task, model.requires_grad_(False))


def full(task: Task, model: nn.Module, seed: int) -> nn.Module:
    """All weights."""
    return model


RIVALS: dict[str, dict[str, Make]] = {
    "images": {
        "random": random,
        "layerwise": layerwise,
        "lora": lora,
        "lora-unscaled": lora_unscaled,
        "norms": norms,
        "head": head,
        "full": full,
    },
    "text": {"random": random, "gradient": gradient, "shira": shira, "lora": lora},
    "gpt2": {"random": random, "lora": lora, "lora-unscaled": lora_unscaled},
    "pitch": {"random": random, "lora": lora, "lora-unscaled": lora_unscaled, "norms": norms, "full": full},
}


def train(task: Task, make: Make, seed: int, rate: float) -> dict[str, Any]:
    """Adapt by Adam and a cosine to zero; the scores, and for ours those of the file in half precision."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's of sparse tensors
        model = make(task, task.base(seed), seed)
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(parameters, rate)
        batches = list(task.batches(seed + 1000))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
        model.train()
        for batch in batches:
            optimizer.zero_grad()
            task.loss(model, batch).backward()
            optimizer.step()
            schedule.step()
        found: dict[str, Any] = {"trained": sum(p.numel() for p in parameters), **task.scores(model)}
        if make in (random, gradient, layerwise):
            with tempfile.TemporaryDirectory() as folder:
                save_adapter(model, folder, values_dtype=torch.float16)
                found["half_bytes"] = (Path(folder) / "adapter.safetensors").stat().st_size
                found["half"] = task.scores(load_adapter_(task.base(seed), folder))["test"]
    return found


def _layers(task: Task, model: nn.Module) -> list[Any]:
    modules = dict(model.named_modules())
    return [modules[name] for name in _names(task, model)]


def _names(task: Task, model: nn.Module) -> list[str]:
    """The layers that ours adapts, by their whole names: PEFT takes every module with such an end."""
    return [
        name for name, module in model.named_modules() if can_adapt(module) and matches(name, task.targets)
    ]


def _with_head(task: Task, model: nn.Module) -> nn.Module:
    for name in task.saved:
        model.get_submodule(name).requires_grad_(True)
    return model
