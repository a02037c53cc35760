"""Do the networks learn at all at extreme densities? 100 steps on real CIFAR-10, loss on images held out.

    DCTPS_DATA=... python benchmarks/networks_learn.py resnet18 vgg19 mobilenetv2 fixup-resnet110

Each network is built on the meta device, converted with `--method` at `--density`, and trained by one
one-cycle schedule of as many steps. Chance is ln 10. BatchNorm's running averages lag behind a network that
learns this fast, so its statistics are taken anew, on training images, before the loss is. Networks that are
in the result file already, made by the same choices, are kept.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import dctps
from dctps.benchmarking.record import commit, processor
from dctps.data import batches, load_dataset, split_validation
from dctps.experiments.config import RunConfig, resolve
from dctps.experiments.network import build_network
from dctps.training import (
    Precision,
    build_optimizer,
    build_schedule,
    evaluate,
    parameter_groups,
    train_epoch,
)

NETWORKS = ("resnet18", "vgg19", "mobilenetv2", "fixup-resnet110")
HELD_OUT = 1000
REFRESH = 1000  # training images
TARGET = math.log(10) - 0.1
RESULT = Path(__file__).parent / "results" / "networks_learn.json"


@torch.no_grad()
def refresh_statistics(model: nn.Module, images: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Give BatchNorm the statistics of the trained network in place of averages over its last steps."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    model.train()
    for batch, _ in images:
        model(batch)


def learn(config: RunConfig, steps: int) -> dict[str, Any]:
    """Train for `steps` steps, and give the losses."""
    dataset = load_dataset(config.dataset)
    train, held_out = split_validation(dataset.train, HELD_OUT, config.data_seed)
    normalisation = {"mean": dataset.mean, "std": dataset.std}
    generator = torch.Generator().manual_seed(config.seed)
    stream = batches(
        train,
        config.batch_size,
        generator=generator,
        shuffle=True,
        augment=True,
        flip=dataset.flip,
        **normalisation,
    )
    torch.manual_seed(config.seed)
    model = build_network(config, dataset.description, torch.device("cpu"))
    assert config.lr is not None
    assert config.weight_decay is not None
    groups = parameter_groups(model, config.weight_decay, decay_norm_bias=True)
    optimizer = build_optimizer(config.optimizer, groups, lr=config.lr)
    schedule = build_schedule(config.schedule, optimizer, total_steps=steps)
    precision = Precision("off", "cpu")
    before = evaluate(model, batches(held_out, 250, **normalisation), precision=precision)
    start = time.perf_counter()
    trained = train_epoch(model, islice(stream, steps), optimizer, schedule, epoch=1, precision=precision)
    seconds = time.perf_counter() - start
    lagging = evaluate(model, batches(held_out, 250, **normalisation), precision=precision)
    refresh_statistics(model, batches(train.select(torch.arange(REFRESH)), 250, **normalisation))
    after = evaluate(model, batches(held_out, 250, **normalisation), precision=precision)
    report = dctps.report(model).to_dict()
    return {
        "model": config.model,
        "alpha": config.alpha,
        "lr": config.lr,
        "weights": report["weights"],
        "trainable": report["trainable"],
        "held_out_loss_before": before.loss,
        "train_loss": trained.loss,
        "held_out_loss_by_running_averages": lagging.loss,
        "held_out_loss": after.loss,
        "held_out_accuracy": after.accuracy,
        "below_target": after.loss < TARGET,
        "seconds": round(seconds, 1),
    }


def main() -> None:
    """Train what is missing, one network after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="*", default=NETWORKS)
    parser.add_argument("--method", default="sdctps")
    parser.add_argument("--density", type=float, default=1e-3)
    parser.add_argument("--alpha", default="match")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=6e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--result", type=Path, default=RESULT)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.set_flush_denormal(True)

    alpha = given.alpha if given.alpha in ("one", "match") else float(given.alpha)
    common = resolve(
        RunConfig(
            dataset="cifar10",
            method=given.method,
            density=given.density,
            alpha=alpha,
            batch_size=given.batch_size,
            lr=given.lr,
        )
    )
    choices = {
        "method": common.method,
        "density": common.density,
        "steps": given.steps,
        "batch_size": common.batch_size,
        "optimizer": common.optimizer,
        "schedule": common.schedule,
        "weight_decay": common.weight_decay,
        "seed": common.seed,
        "held_out_images": HELD_OUT,
        "target": TARGET,
    }
    earlier = json.loads(given.result.read_text()) if given.result.exists() else {}
    rows = {row["model"]: row for row in earlier.get("rows", []) if earlier["choices"] == choices}
    for model in given.models:
        if model in rows and (rows[model]["alpha"], rows[model]["lr"]) == (alpha, common.lr):
            continue
        rows[model] = learn(replace(common, model=model), given.steps)
        result = {
            "command": "python benchmarks/networks_learn.py "
            f"--alpha {alpha} --steps {given.steps} --batch-size {common.batch_size} --lr {common.lr}",
            "commit": commit(),
            "hardware": f"{platform.machine()}, {processor()}, {given.threads} threads",
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "choices": choices,
            "rows": list(rows.values()),
        }
        given.result.parent.mkdir(exist_ok=True)
        given.result.write_text(json.dumps(result, indent=1) + "\n")
        print(json.dumps(rows[model]), flush=True)


if __name__ == "__main__":
    main()
