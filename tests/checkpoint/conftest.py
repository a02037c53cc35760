"""What the tests of files share."""

import pytest
import torch
from tests.support.small_networks import packed, trained
from torch import nn

import dctps


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Models and their files: seeded, packed, half precision, dense."""
    folder = tmp_path_factory.mktemp("files")
    dense = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    models = {"seeded": trained(), "packed": packed(), "half": packed(), "dense": dense}
    made = {}
    for name, model in models.items():
        half = torch.float16 if name == "half" else None
        dctps.save_pretrained(model, folder / name, values_dtype=half)
        if half:
            dctps.load_pretrained_(model, folder / name)
        made[name] = model, (folder / name / "model.safetensors").read_bytes()
    return made
