"""Runs on a part of the images."""

import torch

from dctps.data import load_dataset
from dctps.experiments.config import RunConfig, resolve, run_name
from dctps.experiments.parts import split
from dctps.experiments.session import Session

CPU = torch.device("cpu")


def rows(part):
    return {bytes(image.numpy().tobytes()) for image in part.images}


def test_a_part_is_of_the_same_images_and_is_in_the_name():
    dataset = load_dataset("digits")
    whole = split(resolve(RunConfig()), dataset, CPU)
    config = resolve(RunConfig(train_images=100, eval_images=30))
    few = split(config, dataset, CPU)
    assert [len(part) for part in few] == [100, 30, 30]
    assert all(rows(a) <= rows(b) for a, b in zip(few, whole, strict=True))
    assert not rows(few.train) & rows(whole.validation)
    assert run_name(config) == "lenet5-digits-dctps-0.01-seed0-trainimages100-evalimages30"
    assert Session(config, dataset, CPU).trainer.steps == 4
    most = split(resolve(RunConfig(train_images=10**6, eval_images=10**6)), dataset, CPU)
    assert [len(part) for part in most] == [len(part) for part in whole]
