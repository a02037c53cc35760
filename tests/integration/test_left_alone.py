"""Rows of the table in docs/any-network.md: what is left alone, with the reason; and what is refused."""

import pytest
import torch
from tests.support.conversions import draw, left_alone, row
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from dctps import DpSLinear, report, sparsify_


@row("two modules with one parameter (an embedding and its head)")
def test_tied_parameters() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    left_alone(nn.Sequential(first, second), "Linear", 16, "shares a parameter with '1.1'", "1.0")
    attentions = nn.ModuleList([nn.MultiheadAttention(4, 1), nn.MultiheadAttention(4, 1)])
    attentions[1].out_proj.bias = attentions[0].out_proj.bias
    left_alone(attentions, "MultiheadAttention", 64, "shares a parameter with '1.1.out_proj'", "1.0")
    model = nn.Sequential(nn.Linear(4, 4), first, second)
    assert report(sparsify_(model, 0.5)).left_alone == 16  # once


@row("parametrised weights: `weight_norm`, `spectral_norm`, any of `torch.nn.utils.parametrize`")
def test_parametrised() -> None:
    reason = "remove_parametrizations makes it plain"
    left_alone(parametrizations.weight_norm(nn.Linear(4, 6)), "ParametrizedLinear", 24, reason)
    left_alone(parametrizations.spectral_norm(nn.Conv2d(4, 6, 3)), "ParametrizedConv2d", 216, reason)
    attention = nn.MultiheadAttention(4, 2)
    parametrizations.orthogonal(attention.out_proj)
    left_alone(attention, "MultiheadAttention", 64, "made by a hook or parametrised")
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 6)))
    parametrize.remove_parametrizations(model[0], "weight")
    assert isinstance(sparsify_(model, 0.5)[0], DpSLinear)


@row("weights that a hook makes: `torch.nn.utils.prune`, the old `weight_norm`")
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_pruned() -> None:
    pruned = nn.Linear(4, 6)
    prune.random_unstructured(pruned, "weight", 0.5)
    model = left_alone(pruned, "Linear", 24, "prune.remove or remove_weight_norm")
    prune.remove(pruned, "weight")
    assert report(sparsify_(model, criterion="nonzero", offset="zero")).rows[1].nnz == 12
    left_alone(nn.utils.weight_norm(nn.Linear(4, 6)), "Linear", 24, "prune.remove or remove_weight_norm")


@row("subclasses of any of these")
def test_subclasses() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    class Named(nn.MultiheadAttention):
        pass

    left_alone(Scaled(4, 6), "Scaled", 24, "a subclass of Linear, which may differ: see register_conversion")
    left_alone(Named(4, 2), "Named", 48, "a subclass of MultiheadAttention")


@row("lazy layers")
def test_lazy() -> None:
    lazy = nn.LazyLinear(6)
    model = left_alone(lazy, "LazyLinear", 0, "call the model once, then convert")
    model(draw(2, 4))
    assert isinstance(sparsify_(model, 0.5)[1], DpSLinear)


@row("`nn.LSTM`, `nn.GRU`, `nn.RNN` and their cells")
def test_recurrent() -> None:
    reason = "a recurrent layer is one fused function of all its weights"
    left_alone(nn.LSTM(4, 3, num_layers=2, proj_size=2), "LSTM", 4 * 3 * (4 + 2 + 2 + 2) + 2 * 6, reason)
    left_alone(nn.GRU(4, 3, bidirectional=True), "GRU", 2 * 9 * (4 + 3), reason)
    left_alone(nn.RNN(4, 3), "RNN", 3 * (4 + 3), reason)
    left_alone(nn.LSTMCell(4, 3), "LSTMCell", 12 * (4 + 3), reason)
    assert report(left_alone(nn.GRUCell(4, 3), "GRUCell", 63, reason)).trainable["bias"] == 4 + 18


@row("`nn.ConvTranspose1d`, `nn.ConvTranspose2d`, `nn.ConvTranspose3d`")
def test_transposed_convolutions() -> None:
    reason = "transposed convolutions have no DpS form"
    left_alone(nn.ConvTranspose1d(4, 6, 3), "ConvTranspose1d", 72, reason)
    left_alone(nn.ConvTranspose2d(4, 6, 3, groups=2), "ConvTranspose2d", 108, reason)
    left_alone(nn.ConvTranspose3d(4, 6, 1), "ConvTranspose3d", 24, reason)


@row("`nn.Conv3d`")
def test_convolutions_along_three_axes() -> None:
    left_alone(nn.Conv3d(4, 6, 3), "Conv3d", 648, "convolutions along three axes have no DpS form")


@row("`nn.Bilinear`")
def test_bilinear() -> None:
    left_alone(nn.Bilinear(4, 3, 2), "Bilinear", 24, "products of two inputs have no DpS form")


@row("`nn.Embedding`, `nn.EmbeddingBag`")
def test_embeddings() -> None:
    left_alone(nn.Embedding(7, 4), "Embedding", 28, "its rows are looked up, not multiplied")
    left_alone(nn.EmbeddingBag(7, 4), "EmbeddingBag", 28, "its rows are looked up, not multiplied")


@row("a layer that is compiled by itself")
def test_a_layer_compiled_by_itself() -> None:
    compiled = torch.compile(nn.Linear(4, 6), backend="aot_eager")
    left_alone(compiled, "Linear", 24, "convert it first, then compile")
    with pytest.raises(ValueError, match=r"'\(root\)' \(Linear\): it is compiled by itself"):
        sparsify_(compiled, 0.5)


@row("parameters that are no plain tensors (DTensor, quantised), not floating-point, or empty")
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_odd_parameters() -> None:
    class Other(nn.Parameter):
        pass

    odd = nn.Linear(4, 6)
    odd.weight = Other(odd.weight.detach())
    left_alone(odd, "Linear", 24, "a parameter of it is a Other")
    left_alone(nn.Linear(4, 6, dtype=torch.complex64), "Linear", 24, "a parameter of it is torch.complex64")
    left_alone(nn.Linear(4, 0), "Linear", 0, "of shape (0, 4)")


@row("layers converted already")
def test_converted_already() -> None:
    model = sparsify_(nn.Sequential(nn.Linear(8, 8), nn.MultiheadAttention(8, 2)), 0.5)
    kept = dict(model.named_modules())
    with pytest.raises(ValueError, match=r"0 layers were left out by filter_fn, 5 are converted already"):
        sparsify_(model, 0.1)
    model.append(nn.Linear(8, 4))
    sparsify_(model, 0.25)
    assert all(model.get_submodule(name) is module for name, module in kept.items())
    assert model[2].nnz == 8
