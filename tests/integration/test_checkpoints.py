"""Other people's checkpoints carry a whole network: torch.distributed.checkpoint, accelerate, safetensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

import dctps
from dctps import project_, sparsify_

X = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))


def network(seed: int, offset: str = "sdct") -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 5))
    sparsify_(model, 0.2, offset=offset, allocation="erk", seed=seed)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_()
    return model


def plane(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = project_(nn.Sequential(nn.Linear(16, 5)), 7, seed=seed)
    with torch.no_grad():
        model.theta_d.normal_()
    return model


def empty(seed: int) -> nn.Module:
    with torch.device("meta"):
        return network(seed).to_empty(device="cpu")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("saved", "other"),
    [
        (lambda: network(7), lambda: network(1234567)),
        (lambda: network(7), lambda: empty(3)),
        (lambda: network(0, "dct"), lambda: network(12, "sdct")),
        (lambda: network(5, "zero"), lambda: network(10**9, "zero")),
        (lambda: network(7, "gaussian"), lambda: network(1234567, "hadamard")),
        (lambda: plane(7), lambda: plane(1234567)),
    ],
)
@pytest.mark.parametrize("way", ["state_dict", "helpers"])
def test_distributed_checkpoints_between_seeds(saved, other, way: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model, target = saved(), other()
    get, put = (
        (get_model_state_dict, set_model_state_dict)
        if way == "helpers"
        else (lambda m: m.state_dict(), lambda m, s: m.load_state_dict(s))
    )
    dcp.save({"model": get(model)}, checkpoint_id=tmp_path)
    state = {"model": get(target)}
    dcp.load(state, checkpoint_id=tmp_path)
    put(target, state["model"])
    assert torch.equal(target(X), model(X))
    assert all(
        torch.equal(a, b)
        for a, b in zip(target.state_dict().values(), model.state_dict().values(), strict=True)
    )


@pytest.mark.filterwarnings("ignore")
def test_a_distributed_checkpoint_that_is_not_taken_over_is_refused(tmp_path: Path) -> None:
    model, target = network(7), network(8)
    dcp.save({"model": model.state_dict()}, checkpoint_id=tmp_path)
    dcp.load({"model": target.state_dict()}, checkpoint_id=tmp_path)  # in place, and no load_state_dict
    with pytest.raises(ValueError, match=r"layer '0'.*load_state_dict"):
        target(X)


PLACES: dict[str, tuple[object, bool]] = {
    "one device": ({"": "cpu"}, False),
    "by layers": ({"0": "cpu", "1": "cpu", "2": "cpu"}, False),
    "automatic": ("auto", False),
    "none": (None, False),
    # accelerate reads no buffer of a module on disk unless it is told to
    "on disk": ({"0": "cpu", "1": "cpu", "2": "disk"}, True),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("start", ["real", "meta"])
def test_accelerate_loads_and_dispatches(start: str, place: str, tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    model, (device_map, offload) = network(7), PLACES[place]
    accelerate.Accelerator(cpu=True).save_model(model, str(tmp_path))
    if start == "meta":
        with accelerate.init_empty_weights(include_buffers=True):
            other = network(1234567)
    else:
        other = network(1234567)
        other(X)
    other = accelerate.load_checkpoint_and_dispatch(
        *(other, str(tmp_path / "model.safetensors")),
        device_map=device_map,
        offload_folder=str(tmp_path / "offload"),
        offload_buffers=offload,
    )
    for _ in range(2):
        assert torch.equal(other(X), model(X))
    if place != "on disk":
        optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
        moves = dctps.RigL(other, optimizer, update_interval=1, end=10)
        other(X).sum().backward()
        optimizer.step()
        moves.step()
        assert other[0].offset.seed == 7
        again = network(3)
        again.load_state_dict(other.state_dict())
        assert torch.equal(again(X), other(X))


def test_safetensors_save_and_load_a_model(tmp_path: Path) -> None:
    model, other = network(7), network(1234567)
    safetensors.torch.save_model(model, str(tmp_path / "model.safetensors"))
    safetensors.torch.load_model(other, str(tmp_path / "model.safetensors"))
    assert torch.equal(other(X), model(X))
    with pytest.raises(dctps.CheckpointError, match=r"plain state dict.*sparsify_.*load_file\('.*'\)\)$"):
        dctps.load_pretrained_(nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 5)), tmp_path)


def written(path: Path, kind: str) -> None:
    if kind == "torch.save":
        torch.save(network(7).state_dict(), path)
    elif kind == "git lfs":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    else:
        tensors: dict[str, Tensor] = {"0.weight": torch.zeros(24, 16)}
        safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("kind", ["torch.save", "git lfs", "a plain state dict"])
def test_foreign_files_are_named(kind: str, tmp_path: Path) -> None:
    written(tmp_path / "model.safetensors", kind)
    wanted = kind.replace("git lfs", "pointer of Git LFS")
    with pytest.raises(dctps.CheckpointError, match=wanted) as error:
        dctps.load_pretrained_(network(0), tmp_path)
    assert "train again" not in str(error.value) and "\n" not in str(error.value)
