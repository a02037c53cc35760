"""One layer with an adapter against the dense layer with the weight W_0 + S, in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import dctps
from dctps.adapters import disable, merge_adapter_, set_adapter_, unmerge_adapter_
from dctps.nn.adapter import adapters_of, positions


def linear(draw):
    m, n = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    layer = nn.Linear(n, m, bias=draw(st.booleans()))
    return layer, torch.randn(*draw(st.sampled_from([(3,), (2, 3), (2, 1, 3), ()])), n)


def conv2d(draw):
    groups = draw(st.integers(1, 2))
    c, m = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    layer = nn.Conv2d(
        c, m, draw(st.sampled_from([1, 3, (1, 2)])), stride=draw(st.integers(1, 2)), groups=groups,
        padding=draw(st.integers(0, 1)), bias=draw(st.booleans()),
        padding_mode=draw(st.sampled_from(["zeros", "circular"])),
    )  # fmt: skip
    x = torch.randn(2, c, 5, 6)
    return layer, x.to(memory_format=torch.channels_last) if draw(st.booleans()) else x


def conv1d(draw):
    c, m = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    layer = nn.Conv1d(c, m, 3, padding="same", dilation=draw(st.integers(1, 2)))
    return layer, torch.randn(2, c, 9)


@st.composite
def layers(draw):
    torch.manual_seed(draw(st.integers(0, 99)))
    layer, x = draw(st.sampled_from([linear, conv2d, conv1d]))(draw)
    return layer, x, draw(st.integers(1, layer.weight.numel())), draw(st.integers(0, 9))


def dense_twin(layer):
    """The plain layer with W_0 + S in float64, made by scattering alone."""
    delta = adapters_of(layer)["default"]
    twin = copy.deepcopy(layer).double()
    for name in ("_forward_hooks", "_forward_hooks_with_kwargs"):
        getattr(twin, name).clear()
    del twin._modules["adapters"]
    twin.requires_grad_(False)
    flat = twin.weight.detach().contiguous().reshape(-1)
    flat[delta.support] += delta.values.detach().double()
    twin.weight = nn.Parameter(flat.reshape(twin.weight.shape))
    return twin


@settings(max_examples=60, deadline=None)
@given(layers())
def test_output_and_gradients_are_those_of_the_sum(case):
    layer, x, nnz, seed = case
    with torch.no_grad():
        before = layer(x)
    model = dctps.adapt_(nn.Sequential(layer), nnz=nnz, seed=seed)
    delta = layer.adapters["default"]
    assert delta.nnz == nnz and torch.equal(model(x), before)
    with torch.no_grad():
        delta.values.normal_()
    twin = dense_twin(layer)
    own, other = x.clone().requires_grad_(), x.double().requires_grad_()
    y, expected = model(own), twin(other)
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-5)
    g = torch.randn_like(y)
    y.backward(g)
    expected.backward(g.double())
    torch.testing.assert_close(own.grad.double(), other.grad, rtol=1e-4, atol=1e-5)
    by_value = twin.weight.grad.reshape(-1)[delta.support]
    torch.testing.assert_close(delta.values.grad.double(), by_value, rtol=1e-4, atol=1e-5)
    assert layer.weight.grad is None


@settings(max_examples=40, deadline=None)
@given(layers(), st.booleans())
def test_merging_is_exact_and_comes_apart_bit_for_bit(case, channels_last):
    layer, x, nnz, seed = case
    if channels_last and layer.weight.dim() == 4:
        layer.to(memory_format=torch.channels_last)
    model = dctps.adapt_(nn.Sequential(layer), nnz=nnz, seed=seed)
    before, w0 = model(x), layer.weight.detach().clone()
    with torch.no_grad():
        layer.adapters["default"].values.normal_(std=1e3)
    y = model(x)
    merge_adapter_(model)
    expected = w0.contiguous().reshape(-1).clone()
    expected[layer.adapters["default"].support] += layer.adapters["default"].values.detach()
    assert torch.equal(layer.weight.detach().reshape(-1), expected)
    torch.testing.assert_close(model(x), y, rtol=1e-3, atol=1e-2)
    with disable(model):
        assert torch.equal(model(x), before)
    assert adapters_of(layer).merged == "default"
    unmerge_adapter_(model)
    assert torch.equal(layer.weight, w0) and torch.equal(model(x), y)


@pytest.mark.parametrize("criterion", ["random", "magnitude", "gradient"])
def test_transposed_layers_of_gpt2(criterion):
    transposed = pytest.importorskip("transformers.pytorch_utils").Conv1D(6, 4)
    assert transposed.weight.shape == (4, 6)
    x = torch.randn(2, 3, 4)

    def loss(model, batch):
        return model(batch).square().sum()

    with torch.no_grad():
        before = transposed(x)
    model = dctps.adapt_(
        nn.Sequential(transposed), nnz=7, criterion=criterion, loss=loss, batches=[x], seed=3
    )
    assert torch.equal(model(x), before)
    delta = transposed.adapters["default"]
    assert delta.offset.shape == (6, 4)
    with torch.no_grad():
        delta.values.normal_()
    weight = transposed.weight + delta.to_dense().T
    y = model(x)
    torch.testing.assert_close(y, F.linear(x, weight.T, transposed.bias))
    scores = {"magnitude": transposed.weight.detach().abs()}
    if criterion == "gradient":
        w = transposed.weight.detach().clone().requires_grad_()
        F.linear(x, w.T, transposed.bias).square().sum().backward()
        scores[criterion] = w.grad.abs()
    if criterion in scores:
        chosen = torch.zeros(4, 6, dtype=torch.bool)
        chosen[positions(transposed, delta)] = True
        expected = torch.zeros(24, dtype=torch.bool)
        expected[scores[criterion].reshape(-1).topk(7).indices] = True
        assert torch.equal(chosen.reshape(-1), expected)
    w0 = transposed.weight.detach().clone()
    merge_adapter_(model)
    torch.testing.assert_close(model(x), y)
    torch.testing.assert_close(transposed.weight, weight)
    unmerge_adapter_(model)
    assert torch.equal(transposed.weight, w0)


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_is_written_in_linear_layers_and_comes_back(batch_first):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)
    model = nn.ModuleDict({"attention": attention, "head": nn.Linear(8, 3)})
    x = torch.randn(4, 5, 8)
    before = attention(x, x, x)[0]
    model = dctps.adapt_(model, r=1, target_modules=["attention"])
    new = model["attention"]
    assert {name for name, _ in new.named_modules() if name.endswith("adapters")} == {
        f"{part}_proj.adapters" for part in ("q", "k", "v", "out")
    }
    torch.testing.assert_close(new(x, x, x)[0], before)
    with torch.no_grad():
        for layer in (new.q_proj, new.k_proj, new.v_proj, new.out_proj):
            assert layer.weight.untyped_storage().nbytes() == layer.weight.nbytes
            layer.adapters["default"].values.normal_()
    y = new(x, x, x)[0]
    assert not torch.allclose(y, before)
    plain = dctps.merge_(model)["attention"]
    assert type(plain) is nn.MultiheadAttention
    torch.testing.assert_close(plain(x, x, x)[0], y)


def test_only_some_projections_of_an_attention():
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = torch.randn(2, 5, 8)
    before = model(x)
    dctps.adapt_(model, r=1, target_modules=["q_proj", "linear1"])
    assert [n for n, p in model.named_parameters() if p.requires_grad] == [
        "self_attn.q_proj.adapters.default.values",
        "linear1.adapters.default.values",
    ]
    torch.testing.assert_close(model(x), before)


def test_torchs_fused_encoder_does_not_pass_by_the_adapter():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = torch.randn(2, 5, 8)
    dctps.adapt_(model, r=1, target_modules=["linear1"])
    with torch.no_grad():
        model.linear1.adapters["default"].values.normal_()
        fast = model(x)
        merge_adapter_(model)
        torch.testing.assert_close(fast, model(x))
        set_adapter_(model, None)
        assert not torch.allclose(fast, model(x))


def test_hooks_of_the_layer_see_the_whole_output():
    seen = []
    layer = nn.Linear(4, 3)
    layer.register_forward_hook(lambda module, inputs, y: seen.append(y))
    model = dctps.adapt_(nn.Sequential(layer), nnz=5)
    with torch.no_grad():
        layer.adapters["default"].values.normal_()
    y = model(torch.ones(2, 4))
    assert torch.equal(seen[-1], y)
    torch.testing.assert_close(layer(input=torch.ones(2, 4)), y)
