"""Files of format 1: the library and a reader written from docs/checkpoint.md alone must agree."""

import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import scipy.fft
import torch
from tests.support import oracles
from torch import nn

import dctps

DATA = Path(__file__).parent / "data"
NAMES = ("seeded", "packed", "half")
NUMPY = {"F32": "<f4", "F16": "<f2", "I64": "<i8", "U8": "u1"}
X = np.cos(np.arange(3 * 12)).reshape(3, 12)


def independent_read(content: bytes):
    """The layers' W and the other tensors of a file, with plain Python and NumPy."""
    (length,) = struct.unpack("<Q", content[:8])
    assert content[8:48] == rb'{"__metadata__":{"dctps":"{\"sha256\":\"'
    blank = content[:48] + b"0" * 64 + content[112:]
    assert hashlib.sha256(blank).hexdigest() == content[48:112].decode()
    table = json.loads(content[8 : 8 + length])
    fields = json.loads(table.pop("__metadata__")["dctps"])
    tensors = {}
    for name, entry in table.items():
        begin, end = (8 + length + at for at in entry["data_offsets"])
        tensors[name] = np.frombuffer(content[begin:end], NUMPY[entry["dtype"]]).reshape(entry["shape"])

    weights = {}
    bits = "".join(f"{byte:08b}" for byte in tensors.pop("support", []))
    values, alphas = tensors.pop("values").astype(float), list(tensors.pop("alpha"))
    for short in fields["layers"]:
        layer = {**fields["common"], **short}
        (outputs, inputs), nnz = layer["shape"], layer["nnz"]
        size = outputs * inputs
        assert layer["offset"] == "dct"
        if layer["rice"] is None:
            text = f"{layer['seed']}/{layer['draws'] or layer['name']}/support"
            support = oracles.sample(text, nnz, size)
        else:
            support, bits = rice(bits, size, nnz, layer["rice"])
        D = scipy.fft.dct(np.eye(max(outputs, inputs)), norm="ortho", axis=0)[:outputs, :inputs]
        W = (float(alphas.pop(0)) * D).reshape(-1)
        W[support] += values[:nnz]
        values = values[nnz:]
        weights[layer["name"]] = W.reshape(outputs, inputs)
    assert not len(values) and not alphas and len(bits) < 8 and "1" not in bits
    return weights, {name: tensor.astype(float) for name, tensor in tensors.items()}, fields


def rice(bits: str, size: int, nnz: int, k: int):
    m = min(nnz, size - nnz)
    remainders = [int(bits[i * k : i * k + k] or "0", 2) for i in range(m)]
    bits, position, positions = bits[m * k :], -1, []
    for remainder in remainders:
        quotient = bits.index("1")
        bits = bits[quotient + 1 :]
        position += 1 + (quotient << k) + remainder
        positions.append(position)
    return (positions if m == nnz else sorted(set(range(size)) - set(positions))), bits


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4, bias=False))


def expected_output(weights, others) -> np.ndarray:
    h = X @ weights["0"].T + others["0.bias"]
    if "1.scale" in others:
        h = h * others["1.scale"] + others["1.shift"]
    else:
        deviation = np.sqrt(others["1.running_var"] + 1e-5)
        h = (h - others["1.running_mean"]) / deviation * others["1.weight"] + others["1.bias"]
    return np.maximum(h, 0) @ weights["3"].T


@pytest.mark.parametrize("name", NAMES)
def test_the_library_and_an_independent_reader_agree(tmp_path, name):
    content = (DATA / f"{name}.safetensors").read_bytes()
    assert len(content) < 4096
    weights, others, fields = independent_read(content)
    assert fields["user"] == {"golden": name} and fields["inference_only"] is (name == "half")

    (tmp_path / "model.safetensors").write_bytes(content)
    with torch.device("meta"):
        meta = network()
    for target in (network(), meta):
        model = dctps.load_pretrained_(target.eval(), tmp_path)
        for layer, W in weights.items():
            np.testing.assert_allclose(model[int(layer)].weight.detach(), W, atol=1e-6)
        y = model(torch.tensor(X, dtype=torch.float32)).detach()
        np.testing.assert_allclose(y, expected_output(weights, others), atol=1e-5)


def test_the_files_hold_what_they_are_to_show():
    read = {name: independent_read((DATA / f"{name}.safetensors").read_bytes()) for name in NAMES}
    codes = {name: [{**f["common"], **r}["rice"] for r in f["layers"]] for name, (_, _, f) in read.items()}
    assert codes["seeded"] == [None, None] and all(k is not None for k in codes["packed"])
    # one support below one half and one above, which is coded by its complement
    assert [r["nnz"] for r in read["packed"][2]["layers"]] == [15, 25]
    assert set(read["half"][1]) == {"0.bias", "1.scale", "1.shift"}
    for weights, others, _ in read.values():  # trained: nothing is as it was initialised
        alphas = [np.abs(W).max() for W in weights.values()]
        assert min(alphas) > 0 and all(np.abs(tensor).min() > 0 for tensor in others.values())


@pytest.mark.parametrize("name", ["seeded", "packed"])
def test_the_same_model_is_written_as_the_same_bytes(tmp_path, name):
    content = (DATA / f"{name}.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content)
    model = dctps.load_pretrained_(network(), tmp_path)
    dctps.save_pretrained(model, tmp_path, metadata={"golden": name})
    assert (tmp_path / "model.safetensors").read_bytes() == content
