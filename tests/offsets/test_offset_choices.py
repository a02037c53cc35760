"""`offset=` as a name, a class, a function and an object, in layers, `from_dense` and `sparsify_`."""

import copy
import json
from functools import partial

import pytest
import torch
from torch import nn

import dctps
from dctps.offsets import DCTOffset, HadamardOffset, Offset, ZeroOffset, build_offset, list_offsets
from dctps.testing import OffsetContract


class Flat(Offset):
    """Every entry `level`; not registered, and with an option in its spec."""

    def __init__(self, shape, *, level=0.5, **options):
        super().__init__(shape, **options)
        self.level = level

    @property
    def spec(self):
        return {**super().spec, "level": self.level}

    def to_dense(self, *, dtype=torch.float32, device="cpu"):
        return torch.full(self.shape, self.level, dtype=dtype, device=device)


class Other(Flat):
    """Another class, which must not be taken for `Flat`."""


class TestFlat(OffsetContract):
    name = f"{__name__}.Flat"


LAYERS = {
    "linear": (nn.Linear(6, 8), (8, 6), 1),
    "conv1d": (nn.Conv1d(6, 8, 3), (8, 6, 1, 3), 1),
    "conv2d": (nn.Conv2d(6, 8, 3, groups=2), (8, 3, 3, 3), 2),
}


def make(dense, **options):
    """The layer by its constructor."""
    kind = {nn.Linear: dctps.DpSLinear, nn.Conv1d: dctps.DpSConv1d, nn.Conv2d: dctps.DpSConv2d}[type(dense)]
    arguments = kind._arguments_of(dense)
    return kind(**arguments, nnz=3, **options)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_takes_each(layer):
    dense, shape, groups = LAYERS[layer]
    named = make(dense, offset="hadamard", seed=5)
    for offset in (
        HadamardOffset,
        partial(HadamardOffset),
        lambda shape, groups, seed, layer: HadamardOffset(shape, groups=groups, seed=seed, layer=layer),
        HadamardOffset(shape, groups=groups, seed=5),
    ):
        assert make(dense, offset=offset, seed=5).offset == named.offset
        converted = type(named).from_dense(dense, offset=offset, nnz=3, seed=5)
        assert converted.offset == named.offset
    assert make(dense, offset=ZeroOffset).alpha is None
    mine = make(dense, offset=partial(Flat, level=2.0))
    assert torch.equal(mine.weight, torch.full_like(dense.weight, 2.0))
    with pytest.raises(ValueError, match="does not fit a weight of shape"):
        make(dense, offset=DCTOffset((9, 9)))
    for wrong in (3, nn.Linear, lambda shape, **options: "dct", None):
        with pytest.raises(TypeError, match="an offset is a name .*, a subclass of dctps.Offset"):
            make(dense, offset=wrong)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 3)
    )


def outputs(model):
    return model(torch.linspace(-1, 1, 32).reshape(1, 2, 4, 4))


@pytest.mark.parametrize("name", ["dct", "sdct", "hadamard", "gaussian"])
def test_a_network_takes_each(name):
    expected = outputs(dctps.sparsify_(network(), 0.1, offset=name, seed=3))
    kind = type(build_offset(name, (2, 2)))
    for offset in (kind, partial(kind), kind((5, 5), seed=3), kind((16, 16), seed=3, layer="elsewhere")):
        model = dctps.sparsify_(network(), 0.1, offset=offset, seed=3)
        assert torch.equal(outputs(model), expected)
    data = [(torch.randn(4, 2, 4, 4), torch.randint(3, (4,)))]
    found = dctps.sparsify_(network(), 0.1, offset=kind, criterion="offset-snip", batches=data)
    assert found[2].offset == build_offset(name, (16, 16), layer="2")


def test_a_class_without_a_registered_name_works_in_memory(tmp_path):
    model = dctps.sparsify_(network(), 0.1, offset=Flat((1, 1), level=0.25))
    assert [layer.offset.level for layer in model if hasattr(layer, "offset")] == [0.25] * 4
    assert model[0].offset != Other(model[0].offset.shape, layer="0", level=0.25)
    other = dctps.sparsify_(network(), 0.1, offset=partial(Flat, level=0.25))
    with torch.no_grad():
        model[0].values.normal_()
    other.load_state_dict(model.state_dict())
    assert torch.equal(outputs(other), outputs(model))
    assert torch.equal(outputs(copy.deepcopy(model)), outputs(model))
    assert build_offset(**json.loads(json.dumps(model[0].offset.spec))) == model[0].offset
    assert not any("Flat" in name for name in list_offsets())
    with pytest.raises(ValueError, match="layer '0' has an offset without a registered name: name one with"):
        dctps.save_pretrained(model, str(tmp_path))


def test_a_subclass_of_the_librarys_is_not_saved_as_its_base(tmp_path):
    class Half(DCTOffset):
        def to_dense(self, *, dtype=torch.float32, device="cpu"):
            return super().to_dense(dtype=dtype, device=device) / 2

    assert Half((4, 4)) != DCTOffset((4, 4))
    model = nn.Sequential(dctps.DpSLinear(4, 4, offset=Half, nnz=2))
    with pytest.raises(ValueError, match="an offset without a registered name"):
        dctps.save_pretrained(model, str(tmp_path))


def test_state_files_by_text(tmp_path):
    from dctps.checkpoint import load_state, save_state
    from dctps.experiments.state import read_state, write_state

    model = dctps.sparsify_(network(), 0.1)
    path = str(tmp_path / "state.safetensors")
    save_state(model, path, {"epoch": 3})
    again = network()
    assert load_state(again, path) == {"epoch": 3}
    assert torch.equal(outputs(again), outputs(model))
    write_state(path, {"steps": 4, "x": torch.ones(2)})
    assert read_state(path)["steps"] == 4
