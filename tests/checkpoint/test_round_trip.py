import copy
import runpy
import tracemalloc
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.support.small_networks import IMAGES, packed, plain, same_state, train, trained
from torch import nn

import dctps
from dctps.checkpoint import CheckpointError, file_size, load_state, save_state


def targets(model, offset="dct", density=0.2):
    """The three kinds of model that a file is loaded into, each with other numbers than `model`."""
    torch.manual_seed(99)
    with torch.device("meta"):
        meta = plain()
    converted = copy.deepcopy(model)
    for parameter in converted.parameters():
        parameter.data.normal_()
    for layer in (m for m in converted.modules() if hasattr(m, "support")):
        layer.support.copy_(torch.arange(layer.nnz))
    return {"plain": plain(), "meta": meta, "converted": converted}


@pytest.mark.parametrize("offset", ["dct", "sdct", "hadamard", "gaussian", "zero"])
@pytest.mark.parametrize("make", [trained, packed])
def test_every_offset_into_every_target(tmp_path, offset, make):
    model = make(offset=offset, seed=5)
    dctps.save_pretrained(model, tmp_path)
    for target in targets(model).values():
        loaded = dctps.load_pretrained_(target, tmp_path)
        assert loaded is target
        assert same_state(loaded, model)
        assert all(tensor.device.type == "cpu" for tensor in loaded.state_dict().values())
        assert torch.equal(loaded.eval()(IMAGES), model(IMAGES))
        # and it goes on training as the original would
        assert same_state(train(loaded), train(copy.deepcopy(model)))


def test_a_seeded_support_costs_no_bytes_and_a_packed_one_does(tmp_path):
    sizes = {}
    for make in (trained, packed):
        dctps.save_pretrained(make(), tmp_path / make.__name__)
        sizes[make] = safetensors.torch.load_file(tmp_path / make.__name__ / "model.safetensors")
    assert "support" not in sizes[trained]
    assert sizes[packed]["support"].dtype == torch.uint8


def test_a_loaded_model_keeps_its_seed_and_saves_to_the_same_bytes(tmp_path):
    for make in (trained, packed):
        model = make(seed=7)
        save_state(model, tmp_path / "a", {"epoch": 3})
        for target in targets(model).values():
            assert load_state(target, tmp_path / "a") == {"epoch": 3}
            save_state(target, tmp_path / "b", {"epoch": 3})
            assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.floats(0.001, 1),
    st.booleans(),
    st.sampled_from(["dct", "sdct", "zero"]),
    st.booleans(),
)
def test_drawn_shapes(tmp_path_factory, inputs, outputs, density, bias, offset, seeded):
    folder = tmp_path_factory.mktemp("drawn")
    options = {"density": density} if seeded else {"support": torch.arange(0, inputs * outputs, 3)}
    layer = dctps.DpSLinear(inputs, outputs, bias, offset=offset, seed=3, **options)
    assume(layer.nnz or bias or offset != "zero")  # or there is nothing to train
    model = nn.Sequential(train(layer, torch.randn(4, inputs)))
    dctps.save_pretrained(model, folder)
    assert (folder / "model.safetensors").stat().st_size == file_size(model)
    with torch.device("meta"):
        target = nn.Sequential(nn.Linear(inputs, outputs, bias))
    assert same_state(dctps.load_pretrained_(target, folder), model)


@given(st.sampled_from([1, 2, 4]), st.integers(1, 3), st.integers(1, 3), st.floats(0.05, 1), st.booleans())
def test_drawn_convolutions(tmp_path_factory, groups, outputs, kernel, density, padded):
    folder = tmp_path_factory.mktemp("drawn")
    torch.manual_seed(0)
    dense = nn.Conv2d(4, groups * outputs, kernel, groups=groups, padding="same" if padded else 0)
    model = nn.Sequential(dense, nn.Flatten())
    model = train(dctps.sparsify_(model, density, offset="sdct"), IMAGES_4)
    dctps.save_pretrained(model, folder)
    target = nn.Sequential(copy.deepcopy(dense), nn.Flatten())
    loaded = dctps.load_pretrained_(target, folder).eval()
    assert same_state(loaded, model) and torch.equal(loaded(IMAGES_4), model(IMAGES_4))


IMAGES_4 = torch.cat([IMAGES, IMAGES.flip(-1)], 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("make", [trained, packed])
def test_half_precision_values(tmp_path, dtype, make):
    model = make()
    dctps.save_pretrained(model, tmp_path, values_dtype=dtype)
    for target in targets(model).values():
        loaded = dctps.load_pretrained_(target, tmp_path)
        for name, tensor in model.state_dict().items():
            expected = tensor.to(dtype).to(tensor.dtype) if name.endswith("values") else tensor
            assert torch.equal(loaded.state_dict()[name], expected)


def test_double_and_mixed_dtypes_are_lossless(tmp_path):
    model = trained()
    model[0].double()
    model[3].bfloat16()
    dctps.save_pretrained(model, tmp_path)
    target = targets(model)["converted"]
    assert same_state(dctps.load_pretrained_(target, tmp_path), model)


def test_numbers_that_do_not_fit(tmp_path):
    model = trained()
    with torch.no_grad():
        model[5].values[0] = 1e6
    with pytest.raises(ValueError, match=r"'5.values' holds 1e\+06, which torch.float16 cannot"):
        dctps.save_pretrained(model, tmp_path, values_dtype=torch.float16)
    assert not list(tmp_path.iterdir())
    dctps.save_pretrained(model, tmp_path)
    target = plain().half()
    before = copy.deepcopy(target)
    with pytest.raises(CheckpointError, match=r"'5' holds 1e\+06"):
        dctps.load_pretrained_(target, tmp_path)
    assert same_state(target, before)


def test_values_that_are_not_finite_are_kept(tmp_path):
    model = trained()
    with torch.no_grad():
        model[5].values[:2] = torch.tensor([torch.nan, torch.inf])
    dctps.save_pretrained(model, tmp_path, values_dtype=torch.float16)
    loaded = dctps.load_pretrained_(plain(), tmp_path)
    assert loaded[5].values[0].isnan() and loaded[5].values[1].isposinf()


@pytest.mark.parametrize(("norms", "tolerance"), [("half", 5e-3), ("folded", 1e-5), ("folded-half", 5e-3)])
def test_norms_for_inference(tmp_path, norms, tolerance):
    model = train(
        nn.Sequential(trained(), nn.LayerNorm(3), nn.BatchNorm1d(3), nn.BatchNorm1d(3, affine=False))
    )
    dctps.save_pretrained(model, tmp_path, norms=norms)
    assert (tmp_path / "model.safetensors").stat().st_size == file_size(model, norms=norms) < file_size(model)

    def fresh():
        return nn.Sequential(plain(), nn.LayerNorm(3), nn.BatchNorm1d(3), nn.BatchNorm1d(3, affine=False))

    with torch.device("meta"):
        meta = fresh()
    for target in (fresh(), meta, train(copy.deepcopy(model))):
        loaded = dctps.load_pretrained_(target.eval(), tmp_path)
        torch.testing.assert_close(loaded(IMAGES), model(IMAGES), rtol=tolerance, atol=tolerance)

    training = fresh()
    before = copy.deepcopy(training)
    with pytest.raises(CheckpointError, match="only inference can use: call model.eval"):
        dctps.load_pretrained_(training, tmp_path)
    assert same_state(training, before) and isinstance(training[0][0], nn.Conv2d)


def test_shared_layers_and_tied_tensors_are_stored_once(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(6, 6)
            self.second = self.first
            self.embedding, self.head = nn.Embedding(6, 6), nn.Linear(6, 6, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, x):
            return self.head(self.second(self.first(x)))

    def keep_head(module, name):
        return name != "head"

    torch.manual_seed(0)
    x = torch.randn(5, 6)
    model = train(dctps.sparsify_(Tied(), 0.5, filter_fn=keep_head), x)
    dctps.save_pretrained(model, tmp_path)
    stored = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert set(stored) == {"values", "alpha", "first.bias", "embedding.weight"}
    with torch.device("meta"):
        meta = Tied()
    for target in (Tied(), meta):
        loaded = dctps.load_pretrained_(target, tmp_path)
        assert loaded.first is loaded.second and loaded.head.weight is loaded.embedding.weight
        assert isinstance(loaded.head.weight, nn.Parameter)
        assert torch.equal(loaded(x), model(x))

    untied = Tied()
    untied.head.weight = nn.Parameter(torch.zeros(6, 6))
    with pytest.raises(CheckpointError, match="'head.weight' is in the model and not in the file"):
        dctps.load_pretrained_(untied, tmp_path)


def test_a_plain_layer_whose_weight_is_shared_is_not_converted(tmp_path):
    torch.manual_seed(0)
    model = train(dctps.sparsify_(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), 0.5), torch.randn(4, 4))
    dctps.save_pretrained(model, tmp_path)
    target = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    target[1].weight = target[0].weight
    with pytest.raises(CheckpointError, match="the weight of layer '0' is shared in the model"):
        dctps.load_pretrained_(target, tmp_path)


def test_a_root_that_is_itself_a_layer(tmp_path):
    torch.manual_seed(0)
    layer = train(dctps.DpSLinear(6, 3, density=0.5), torch.randn(4, 6))
    dctps.save_pretrained(layer, tmp_path)
    dense = nn.Linear(6, 3)
    assert same_state(dctps.load_pretrained_(dense, tmp_path), layer)
    with pytest.raises(CheckpointError, match="load_pretrained_"):
        load_state(dense, tmp_path / "model.safetensors")
    assert isinstance(dense, nn.Linear)


def test_dense_networks_and_names_that_the_format_uses(tmp_path):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.values, self.alpha = nn.Parameter(torch.randn(2)), nn.Parameter(torch.randn(()))
            self.register_buffer("support", torch.randint(9, (3, 2)))
            self.register_buffer("empty", torch.zeros(0, 4))
            self.register_buffer("flag", torch.tensor([True, False]))
            self.linear = nn.Linear(2, 2)

        def forward(self, x):
            return self.alpha * self.linear(x * self.values)

    torch.manual_seed(0)
    for model in (Named(), dctps.sparsify_(Named(), 0.5)):
        train(model, torch.randn(4, 2))
        dctps.save_pretrained(model, tmp_path)
        with torch.device("meta"):
            target = Named()
        assert same_state(dctps.load_pretrained_(target, tmp_path), model)


def test_wrappers_leave_no_trace(tmp_path):
    model = trained()
    dctps.save_pretrained(nn.DataParallel(model), tmp_path)
    assert same_state(dctps.load_pretrained_(plain(), tmp_path), model)
    other = nn.DataParallel(plain())
    assert same_state(dctps.load_pretrained_(other, tmp_path).module, model)


def test_frozen_alpha_and_training_mode_come_along(tmp_path):
    model = trained(alpha=0.3, alpha_trainable=False)
    dctps.save_pretrained(model, tmp_path)
    loaded = dctps.load_pretrained_(plain(), tmp_path)
    assert not loaded[0].alpha.requires_grad and loaded[0].alpha.item() == pytest.approx(0.3)
    assert loaded[0].training


def test_a_redrawn_layer_keeps_the_support_of_the_file(tmp_path):
    for make in (trained, packed):
        dctps.save_pretrained(make(), tmp_path)
        loaded = dctps.load_pretrained_(plain(), tmp_path)
        before = loaded[0].support.clone()
        loaded[0].reset_parameters()
        assert torch.equal(loaded[0].support, before)


def test_a_user_offset_must_have_a_name(tmp_path):
    class Nameless(dctps.Offset):
        def to_dense(self, *, dtype=torch.float32, device="cpu"):
            return torch.ones(self.shape, dtype=dtype, device=device)

    layer = dctps.DpSLinear(3, 2, density=0.5, offset=Nameless((2, 3)))
    with pytest.raises(ValueError, match="offset without a registered name"):
        dctps.save_pretrained(nn.Sequential(layer), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"values_dtype": torch.int8}, "values_dtype must be"),
        ({"norms": "none"}, "norms must be one of full, half"),
        ({"metadata": {"loss": float("nan")}}, "JSON"),
        ({"metadata": {"log": "x" * 100_000}}, "shorten them"),
    ],
)
def test_options_that_cannot_be(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        dctps.save_pretrained(trained(), tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_state_that_a_file_cannot_hold(tmp_path):
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"calls": 3}

    with pytest.raises(ValueError, match="'0' .*extra state"):
        dctps.save_pretrained(nn.Sequential(Extra(2, 2)), tmp_path)
    with pytest.raises(ValueError, match="'0' is lazy"):
        dctps.save_pretrained(nn.Sequential(nn.LazyLinear(2)), tmp_path)
    with pytest.raises(ValueError, match=r"complex64, which a checkpoint cannot hold"):
        dctps.save_pretrained(nn.Linear(2, 2, dtype=torch.complex64), tmp_path)
    model = trained()
    model[0].support[0] = 10**6
    with pytest.raises(ValueError, match="layer '0': its support is not sorted"):
        dctps.save_pretrained(model, tmp_path)
    with torch.device("meta"):
        buffered = plain()
        buffered.register_buffer("table", torch.zeros(3), persistent=False)
    with pytest.raises(ValueError, match="buffer 'table' of module '' is on the meta device"):
        dctps.load_pretrained_(buffered, tmp_path)


def test_an_unwritable_place_leaves_the_old_file(tmp_path):
    model = trained()
    dctps.save_pretrained(model, tmp_path)
    (tmp_path / ".model.safetensors.tmp").mkdir()
    with pytest.raises(OSError):
        dctps.save_pretrained(train(copy.deepcopy(model)), tmp_path)
    assert same_state(dctps.load_pretrained_(plain(), tmp_path), model)


@pytest.mark.parametrize(("packed", "half", "share"), [(False, True, 0.0006), (True, False, 0.0015)])
def test_what_a_file_of_23_million_weights_takes(packed, half, share):
    """S, alpha and metadata at density 0.1%, over the dense weights' bytes."""
    benchmark = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "checkpoint_size.py"))
    assert benchmark["file_bytes"](0.001, packed, half, None) < share * 4 * 23_467_712


def test_a_load_takes_less_than_ten_times_a_large_packed_file(tmp_path):
    model = nn.Sequential(dctps.DpSLinear(3000, 3000, support=torch.arange(0, 9_000_000, 100), seed=1))
    with torch.no_grad():
        model[0].values.normal_()
    dctps.save_pretrained(model, tmp_path, values_dtype=torch.float16)
    with torch.device("meta"):
        target = nn.Sequential(nn.Linear(3000, 3000))
    tracemalloc.start()
    dctps.load_pretrained_(target, tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * (tmp_path / "model.safetensors").stat().st_size


def test_no_dense_weight_is_made_for_a_meta_model(tmp_path):
    """2^40 weights: a dense one would take terabytes."""
    layer = dctps.DpSLinear(1 << 20, 1 << 20, False, nnz=50, offset="zero")
    with torch.no_grad():
        layer.values.normal_()
    dctps.save_pretrained(nn.Sequential(layer), tmp_path)
    with torch.device("meta"):
        target = nn.Sequential(nn.Linear(1 << 20, 1 << 20, False))
    assert same_state(dctps.load_pretrained_(target, tmp_path), nn.Sequential(layer))
