"""What must hold of a network that is converted, and of a module left alone; the rows that tests cover."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import dctps
from dctps import DpSLinear, merge_, report, sparsify_
from dctps.checkpoint import CheckpointError
from dctps.nn.layer import DpSLayer

ROWS: dict[str, Callable[..., None]] = {}


def row(cell: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def put(test: Callable[..., None]) -> Callable[..., None]:
        ROWS[cell] = test
        return test

    return put


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def converts(make: Callable[[], nn.Module], call: Callable[[nn.Module], Tensor], tmp_path: Path) -> nn.Module:
    """All that must hold of a network that is converted; returns it after one step of training."""
    torch.manual_seed(3)
    dense = make().eval()
    kinds = [type(module) for module in dense.modules()]

    # With every weight in S the network is the dense one, and so it is merged.
    whole = sparsify_(copy.deepcopy(dense), offset="zero", criterion="nonzero")
    assert report(whole).density == pytest.approx(1, abs=0.01)
    assert torch.allclose(call(whole), call(dense), atol=1e-5)
    norms = {name: m.to_dense().norm() for name, m in whole.named_modules() if isinstance(m, DpSLayer)}
    merged = merge_(whole)
    assert [type(module) for module in merged.modules()] == kinds
    assert merged.state_dict().keys() == dense.state_dict().keys()
    assert all(torch.equal(merged.state_dict()[key], tensor) for key, tensor in dense.state_dict().items())

    # Under alpha="match" every layer keeps the norm of its own part of the dense weights.
    matched = sparsify_(copy.deepcopy(dense), 0.1, alpha="match", offset="sdct")
    found = report(matched)
    assert found.nnz == round(0.1 * found.weights)
    for name, norm in norms.items():
        assert torch.allclose(matched.get_submodule(name).to_dense().norm(), norm, rtol=1e-4)

    # Nothing as large as a converted weight trains, and something moves.
    model = sparsify_(copy.deepcopy(dense), 0.05, seed=4).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    before = copy.deepcopy(model.state_dict())
    loss = call(model).square().mean()
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, DpSLayer)}
    for name, layer in layers.items():
        sizes = {parameter.numel() for parameter in layer.parameters()}
        sizes |= {parameter.grad.numel() for parameter in layer.parameters()}
        sizes |= {t.numel() for p in layer.parameters() for t in optimizer.state[p].values()}
        assert sizes <= {layer.nnz, 1, layer.offset.out_features}, name
    moved = [name for name in layers if not torch.equal(before[f"{name}.values"], layers[name].values)]
    assert moved == [name for name in layers if layers[name].nnz]

    # Every way to keep it gives the same numbers again, bit for bit.
    model.eval()
    y = call(model)
    other = sparsify_(make(), 0.05, seed=4)
    other.load_state_dict(model.state_dict())
    same = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), other]
    dctps.save_pretrained(model, tmp_path)
    assert report(model).disk_bytes == (tmp_path / "model.safetensors").stat().st_size
    same += [dctps.load_pretrained_(target, tmp_path) for target in (make(), copy.deepcopy(other))]
    for again in same:
        assert torch.equal(call(again.eval()), y)
    assert all(p.dtype == torch.float64 for p in copy.deepcopy(model).double().parameters())
    close = call(merge_(copy.deepcopy(model)))
    assert torch.allclose(close, y, atol=1e-4)

    # A file that is refused leaves a plain network as it was, class for class.
    target = make()
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError):
        dctps.load_pretrained_(target, tmp_path)
    assert [type(module) for module in target.modules()] == kinds
    return model


def one(module: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Identity(), module)


def left_alone(module: nn.Module, kind: str, weights: int, reason: str, name: str = "1") -> nn.Module:
    """The module stays what it is beside a layer that is converted, and the report says why."""
    model = nn.Sequential(nn.Linear(4, 4), module)
    state = copy.deepcopy(module.state_dict())
    with pytest.raises(ValueError, match="has nothing to convert") as error:
        sparsify_(nn.Sequential(nn.Identity(), module), 0.5)
    sparsify_(model, 0.5)
    assert isinstance(model[0], DpSLinear) and model[1] is module
    for key, tensor in state.items():
        if not isinstance(tensor, nn.parameter.UninitializedTensorMixin):
            assert torch.equal(module.state_dict()[key], tensor)
    (found,) = [r for r in report(model).rows if r.name == name]
    assert (found.kind, found.weights, found.nnz) == (kind, weights, weights)
    assert reason in found.reason and reason in str(report(model)) and reason in str(error.value)
    return model
