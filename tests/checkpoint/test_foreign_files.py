"""Sound files that are of another model, and what is no checkpoint at all."""

import copy
import os

import pytest
from tests.support.small_networks import packed, plain, same_state, trained
from torch import nn

import dctps
from dctps.checkpoint import CheckpointError, load_state


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: plain(4), r"layer '5' has shape \[3, 24\] in the file and \[4, 24\] in the model"),
        (lambda: dctps.sparsify_(plain(), 0.1), "layer '0' has nnz"),
        (lambda: packed(offset="sdct"), "layer '0' has name 'dct' in the file and 'sdct' in the model"),
        (lambda: packed(seed=1), "layer '0' has seed 0 in the file and 1 in the model"),
        (lambda: plain()[:5], "the model has no layer '5'"),
        (lambda: nn.Sequential(*plain(), nn.PReLU()), "'6.weight' is in the model and not in the file"),
        (lambda: nn.Sequential(*plain()[:1], nn.ReLU(), *plain()[2:]), "'1.bias' is in the file and not"),
        (lambda: nn.Sequential(*plain()[:5], nn.Bilinear(3, 3, 3)), "is a Bilinear in the model"),
    ],
)
def test_another_architecture(files, tmp_path, make, message):
    (tmp_path / "model.safetensors").write_bytes(files["packed"][1])
    target = make()
    before = copy.deepcopy(target)
    with pytest.raises(CheckpointError, match=f"of another architecture: .*{message}"):
        dctps.load_pretrained_(target, tmp_path)
    assert same_state(before, target) and str(before) == str(target)


def test_a_dense_file_into_a_converted_network(tmp_path):
    dctps.save_pretrained(plain(), tmp_path)
    with pytest.raises(CheckpointError, match="layer '0' is dense in the file"):
        dctps.load_pretrained_(trained(), tmp_path)


def test_integers_of_another_dtype(tmp_path):
    a, b = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    b.num_batches_tracked = b.num_batches_tracked.int()
    dctps.save_pretrained(a, tmp_path)
    with pytest.raises(CheckpointError, match=r"'num_batches_tracked' is torch.int64 in the file"):
        dctps.load_pretrained_(b, tmp_path)


def test_what_is_no_file_at_all(files, tmp_path):
    model = files["seeded"][0]
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load_state(model, tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="is no file"):
        load_state(model, tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="is no file"):
        load_state(model, tmp_path / "pipe")
    (tmp_path / "plain.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match="a plain state dict"):
        load_state(model, tmp_path / "plain.safetensors")
    (tmp_path / "noise").write_bytes((2).to_bytes(8, "little") + b"{]")
    with pytest.raises(CheckpointError, match="does not begin as one"):
        load_state(model, tmp_path / "noise")
