"""Numbers of NumPy and torch at every door: as Python's own, saved as JSON; and wrong ones."""

import json
import math
import re

import numpy as np
import pytest
import torch
from torch import nn

import dctps
from dctps.arguments import flag, real, whole
from dctps.dynamic import DSR, SET, RigL
from dctps.nn import DpSLayer
from dctps.selection import allocate, shuffle_
from dctps.subspace import build_projection

WHOLE = [np.int64, np.int8, np.uint16, np.array, torch.tensor]
LAYERS = {
    "linear": lambda **options: dctps.DpSLinear(6, 8, **options),
    "conv1d": lambda **options: dctps.DpSConv1d(6, 8, 3, **options),
    "conv2d": lambda **options: dctps.DpSConv2d(6, 8, 3, groups=2, **options),
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 4))


@pytest.mark.parametrize("kind", WHOLE)
def test_whole_numbers(kind):
    assert type(whole("seed", kind(7))) is int
    assert whole("seed", kind(7)) == 7


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.array, torch.tensor, np.longdouble])
def test_real_numbers_are_the_decimals_that_were_written(kind):
    found = real("density", kind(0.1))
    assert type(found) is float
    assert found == pytest.approx(0.1, rel=1e-3 if kind is np.float16 else 1e-15)
    assert real("density", np.float32(0.1)) == real("density", torch.tensor(0.1)) == 0.1


@pytest.mark.parametrize("kind", [bool, np.bool_, np.array, torch.tensor])
def test_flags(kind):
    assert flag("bias", kind(True)) is True
    assert flag("bias", kind(False)) is False


@pytest.mark.parametrize(
    "value", [1.0, 1.5, np.float32(2), "1", None, True, np.bool_(1), math.nan, [1], np.ones(1, int),
              torch.ones(1, dtype=torch.int64), torch.tensor(1.0), torch.tensor(1, device="meta"), 1j],
)  # fmt: skip
def test_what_is_no_whole_number_is_shown(value):
    with pytest.raises(ValueError, match=r"seed must be a whole number, got .*\(" + type(value).__name__):
        whole("seed", value)


@pytest.mark.parametrize(
    "value", ["0.1", None, True, math.nan, math.inf, torch.ones(1), np.float32("nan"), 1j]
)
def test_what_is_no_finite_number_is_shown(value):
    with pytest.raises(ValueError, match="density must be a finite number, got"):
        real("density", value)
    with pytest.raises(ValueError, match="bias must be True or False, got 'no'"):
        flag("bias", "no")
    with pytest.raises(ValueError, match="rounds must be at least 1, got -2"):
        whole("rounds", np.int64(-2), least=1)


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("offset", ["dct", "sdct", "hadamard", "gaussian", "zero"])
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_a_layer_is_the_same_and_its_offset_is_json(make, offset, kind):
    found, expected = make(offset=offset, nnz=kind(5), seed=kind(3)), make(offset=offset, nnz=5, seed=3)
    assert json.loads(json.dumps(found.offset.spec)) == expected.offset.spec
    assert type(found.seed) is int
    assert torch.equal(found.weight, expected.weight)
    assert torch.equal(make(density=np.float32(0.1)).support, make(density=0.1).support)


@pytest.mark.parametrize("kind", WHOLE)
def test_a_network_is_the_same_and_saved(tmp_path, kind):
    model = dctps.sparsify_(
        network(), torch.tensor(0.1), seed=kind(3), alpha=np.float32(0.5), alpha_trainable=np.bool_(False)
    )
    expected = dctps.sparsify_(network(), 0.1, seed=3, alpha=0.5, alpha_trainable=False)
    dctps.save_pretrained(model, str(tmp_path))
    loaded = dctps.load_pretrained_(network(), str(tmp_path))
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])
        assert torch.equal(tensor, loaded.state_dict()[name])
    shuffle_(model, seed=kind(5))
    shuffle_(expected, seed=5)
    assert torch.equal(model[0].support, expected[0].support)
    moved = dctps.project_(network(), kind(4), seed=kind(2))
    assert json.dumps(moved.projection.spec)
    assert moved.projection == build_projection("auto", moved.projection.size, 4, 2)


@pytest.mark.parametrize("kind", WHOLE)
def test_allocations(kind):
    shapes = {"a": (4, 5), "b": (5, 6)}
    for name in dctps.selection.list_allocations():
        assert allocate(name, shapes, kind(9), seed=kind(1)) == allocate(name, shapes, 9, seed=1)
    counts = allocate(lambda shapes, total, seed: {"a": kind(4), "b": kind(5)}, shapes, 9)
    assert counts == {"a": 4, "b": 5} and {type(n) for n in counts.values()} == {int}
    assert allocate({"a": np.float32(0.5), "b": torch.tensor(1)}, shapes, 9) == {"a": 3, "b": 6}


@pytest.mark.parametrize("dynamics", [RigL, SET, DSR])
def test_dynamics(dynamics):
    model = dctps.sparsify_(network(), 0.2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    found = dynamics(
        model, optimizer, update_interval=np.int64(2), end=torch.tensor(9), drop_fraction=np.float32(0.3)
    )
    assert type(found.update_interval) is int and found.drop_fraction == 0.3 and found.end == 9
    found.load_state_dict({**found.state_dict(), "steps": np.int32(4)})
    assert json.dumps(found.state_dict())
    wrong = {"update_interval": 1.5, "end": "9", "drop_fraction": math.nan} | (
        {} if dynamics is RigL else {"seed": 1.5}
    )
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=f"{name} must be .*, got {re.escape(repr(value))}"):
            dynamics(model, optimizer, **{"end": 9, name: value})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": 1.5}, "seed must be a whole number, got 1.5 .float"),
        ({"seed": "1"}, "seed must be a whole number, got '1' .str"),
        ({"density": math.nan}, r"density must be in .0, 1., got nan"),
        ({"density": "0.1"}, "density must be a number, got '0.1'"),
        ({"density": -0.1}, r"density must be in \[0, 1\], got -0.1"),
        ({"alpha": math.inf}, "alpha must be a finite number, got inf"),
        ({"alpha_trainable": "yes"}, "alpha_trainable must be True or False, got 'yes'"),
    ],
)
def test_wrong_numbers_at_the_doors_of_networks_and_layers(arguments, message):
    model = network()
    with pytest.raises(ValueError, match=message):
        dctps.sparsify_(model, **arguments)
    assert not any(isinstance(module, DpSLayer) for module in model.modules())
    for make in LAYERS.values():
        with pytest.raises(ValueError, match=message):
            make(**{"density": 0.1, **arguments})


def test_wrong_numbers_at_the_other_doors():
    whole_number = "must be a whole number, got 1.5"
    for call in (
        lambda: dctps.build_offset("dct", (4, 4), seed=1.5),
        lambda: dctps.build_offset("hadamard", (4, 1.5)),
        lambda: dctps.build_offset("gaussian", (4, 4), groups=1.5),
        lambda: dctps.DpSLinear(1.5, 4, nnz=1),
        lambda: dctps.DpSLinear(4, 4, nnz=1.5),
        lambda: build_projection("dense", 10, 1.5),
        lambda: build_projection("fastfood", 10, 2, seed=1.5),
        lambda: allocate("uniform", {"a": (4, 5)}, 1.5),
        lambda: allocate("epl", {"a": (4, 5)}, 1, seed=1.5),
        lambda: shuffle_(dctps.sparsify_(network(), 0.1), seed=1.5),
        lambda: dctps.sparsify_(network(), 0.1, seed=1.5),
    ):
        with pytest.raises(ValueError, match=whole_number):
            call()
