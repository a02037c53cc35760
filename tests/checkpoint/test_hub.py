"""The hub's mixin on a local folder, without a network."""

import copy
import json
import subprocess
import sys
import textwrap

import pytest
import torch
from tests.support.small_networks import same_state, train
from torch import nn

import dctps
from dctps.checkpoint import CheckpointError
from dctps.checkpoint.hub import DpSHubMixin


class Network(nn.Module, DpSHubMixin):
    def __init__(self, width: int = 8, classes: int = 3):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, classes))

    def forward(self, x):
        return self.body(x)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return train(dctps.sparsify_(Network(width=12), 0.3), torch.randn(5, 6))


def test_save_and_load_from_a_folder(tmp_path, model):
    model.save_pretrained(tmp_path / "mine")
    assert {file.name for file in (tmp_path / "mine").iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
    }
    assert json.loads((tmp_path / "mine" / "config.json").read_text()) == {"width": 12, "classes": 3}
    loaded = Network.from_pretrained(tmp_path / "mine")
    assert same_state(loaded, model)
    x = torch.randn(4, 6)
    assert torch.equal(loaded.eval()(x), model(x))
    assert same_state(train(loaded, x), train(copy.deepcopy(model), x))


def test_the_card_names_the_library(tmp_path, model):
    model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "library_name: dctps" in card and "- sparse-training" in card


def test_a_damaged_file_is_refused(tmp_path, model):
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="SHA-256 does not match"):
        Network.from_pretrained(tmp_path)


def test_a_class_that_is_no_module(tmp_path):
    class Lost(DpSHubMixin):
        pass

    with pytest.raises(TypeError, match="Lost must be an nn.Module"):
        Lost().save_pretrained(tmp_path)


def test_without_the_extra_the_error_names_it():
    program = textwrap.dedent(
        """
        import sys
        sys.modules["huggingface_hub"] = None
        import dctps.checkpoint
        try:
            import dctps.checkpoint.hub
        except ImportError as error:
            print(error)
        """
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install 'dctps[hub]'" in done.stdout
