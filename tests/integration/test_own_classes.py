"""Rows of the table in docs/any-network.md: classes of a user's own, with a conversion of their own."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.support.conversions import converts, draw, one, row
from torch import Tensor, nn

import dctps
from dctps import DpSLinear, merge_, report, sparsify_
from dctps.networks import conversion


class Fused(nn.Module):
    """A user's layer with two projections in one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_and_value = nn.Parameter(torch.randn(10, 8) / 3)
        self.odd = False

    def forward(self, x: Tensor) -> Tensor:
        gate, value = F.linear(x, self.gate_and_value).chunk(2, -1)
        return gate.sigmoid() * value


class Split(nn.Module):
    def __init__(self, gate: nn.Linear, value: nn.Linear) -> None:
        super().__init__()
        self.gate, self.value = gate, value

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(x).sigmoid() * self.value(x)


def expand_fused(fused: nn.Module) -> nn.Module:
    if fused.odd:
        raise ValueError("an odd one")
    layers = []
    for half in fused.get_parameter("gate_and_value").detach().chunk(2):
        layer = nn.Linear(8, 5, bias=False, device="meta")
        layer.weight = nn.Parameter(half)
        layers.append(layer)
    return Split(*layers)


def collapse_fused(split: nn.Module) -> nn.Module:
    fused = Fused()
    fused.gate_and_value = nn.Parameter(torch.cat([split.gate.weight, split.value.weight]).detach())
    return fused


@row("a class of your own, by `register_conversion`")
def test_a_users_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "CONVERSIONS", copy.copy(conversion.CONVERSIONS))
    dctps.register_conversion(Fused, collapse=collapse_fused)(expand_fused)
    called: list[str] = []
    model = converts(lambda: one(Fused()), lambda m: m(draw(4, 8)), tmp_path)
    assert [r.name for r in report(model).rows] == ["1.gate", "1.value"]

    dense = one(Fused()).eval()
    handle = dense[1].register_forward_hook(lambda *_: called.append("hook"))
    model = sparsify_(dense, 0.5)
    model(draw(4, 8))
    assert called == ["hook"] and not model[1].gate.training  # hooks and mode come along, there and back
    merge_(model)(draw(4, 8))
    handle.remove()
    model(draw(4, 8))
    assert called == ["hook", "hook"] and type(model[1]) is Fused and not model[1].training

    dense[1] = Fused()
    dense[1].odd = True
    with pytest.raises(ValueError, match=r"'1' \(Fused\): an odd one"):
        sparsify_(dense, 0.5)
    with pytest.raises(ValueError, match="already taken"):
        dctps.register_conversion(Fused)(collapse_fused)
    with pytest.raises(ValueError, match="torch.nn.modules.linear.Linear has a DpS layer already"):
        dctps.register_conversion(nn.Linear)(expand_fused)


def test_an_error_leaves_every_class_as_it_was() -> None:
    dense = nn.Sequential(nn.MultiheadAttention(8, 2), nn.Linear(8, 2))
    before = [type(m) for m in dense.modules()]
    state = copy.deepcopy(dense.state_dict())
    for wrong in ({"density": 2.0}, {"offset": "dtc"}, {"criterion": {"1": torch.arange(3)}}):
        with pytest.raises(ValueError):
            sparsify_(dense, **wrong)
        assert [type(m) for m in dense.modules()] == before
        assert all(torch.equal(state[key], tensor) for key, tensor in dense.state_dict().items())


def test_conversions_within_conversions(monkeypatch: pytest.MonkeyPatch) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.mix = nn.MultiheadAttention(8, 2), nn.Parameter(torch.randn(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x)[0] @ self.mix.T

    class Opened(nn.Module):
        def __init__(self, block: Block) -> None:
            super().__init__()
            self.attention, self.mix = block.attention, nn.Linear(8, 8, bias=False, device="meta")
            self.mix.weight = nn.Parameter(block.mix.detach())

        def forward(self, x: Tensor) -> Tensor:
            return self.mix(self.attention(x, x, x)[0])

    monkeypatch.setattr(conversion, "CONVERSIONS", copy.copy(conversion.CONVERSIONS))
    dctps.register_conversion(Block)(Opened)
    dense = nn.Sequential(Block())
    y = dense(draw(5, 3, 8))

    def impatient(module: nn.Module, name: str) -> bool:
        if name == "0.attention":
            raise KeyError(name)
        return True

    for wrong in ({"filter_fn": impatient}, {"offset": "dtc"}):
        with pytest.raises((KeyError, ValueError)):
            sparsify_(dense, 0.5, **wrong)
        assert type(dense[0]) is Block and type(dense[0].attention) is nn.MultiheadAttention
    model = sparsify_(dense, offset="zero", criterion="nonzero")
    assert isinstance(model[0].attention.q_proj, DpSLinear) and isinstance(model[0].mix, DpSLinear)
    assert torch.allclose(model(draw(5, 3, 8)), y, atol=1e-5)
    merge_(model)
    assert type(model[0]) is Opened and type(model[0].attention) is nn.MultiheadAttention
