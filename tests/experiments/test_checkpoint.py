import pytest
import torch
from torch import nn

from dctps.checkpoint import load_state, save_state


def network(width=3):
    return nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width))


def test_round_trip_of_a_trained_model_and_its_metadata(tmp_path):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(4, 2)).square().sum().backward()
    optimizer.step()
    save_state(model, tmp_path / "m.safetensors", {"epoch": 3, "config": {"lr": 0.1}})
    other = network()
    assert load_state(other, tmp_path / "m.safetensors") == {"epoch": 3, "config": {"lr": 0.1}}
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            network(4),
            r"'0.bias' is torch.float32 of shape \(3,\) in the file and torch.float32 of shape \(4,\)",
        ),
        (network()[0], "'0.bias' is torch.float32 .* in the file and absent in the model"),
        (network().double(), "'0.bias' is torch.float32 of .* torch.float64"),
    ],
)
def test_another_architecture(tmp_path, other, message):
    save_state(network(), tmp_path / "m.safetensors", {})
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(ValueError, match=f"another architecture: {message}"):
        load_state(other, tmp_path / "m.safetensors")
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match="there is no checkpoint"):
        load_state(network(), tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b[:20], lambda b: b"", lambda b: b"\xff" + b[1:]]
)
def test_a_damaged_file(tmp_path, damage):
    path = tmp_path / "m.safetensors"
    save_state(network(), path, {})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="no readable checkpoint"):
        load_state(network(), path)


def test_an_unwritable_place_leaves_the_old_file(tmp_path):
    path = tmp_path / "m.safetensors"
    save_state(network(), path, {"epoch": 1})
    (tmp_path / ".m.safetensors.tmp").mkdir()
    with pytest.raises(OSError):
        save_state(network(), path, {"epoch": 2})
    assert load_state(network(), path) == {"epoch": 1}


def test_a_layer_used_twice(tmp_path):
    shared = nn.Linear(2, 2)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    save_state(model, tmp_path / "m.safetensors", {})
    other = nn.Sequential(twice := nn.Linear(2, 2), nn.ReLU(), twice)
    load_state(other, tmp_path / "m.safetensors")
    assert other[0] is other[2]
    assert torch.equal(other[0].weight, shared.weight)
