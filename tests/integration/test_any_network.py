"""One test for each row of the table in docs/any-network.md."""

import copy
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import dctps
from dctps import DpSConv1d, DpSLinear, DpSMultiheadAttention, merge_, report, sparsify_
from dctps.checkpoint import CheckpointError
from dctps.networks import conversion
from dctps.nn.layer import DpSLayer

DOCUMENT = Path(__file__).parents[2] / "docs" / "any-network.md"
ROWS: dict[str, Callable[..., None]] = {}


def row(cell: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def put(test: Callable[..., None]) -> Callable[..., None]:
        ROWS[cell] = test
        return test

    return put


def test_every_row_of_the_table_has_a_test() -> None:
    cells = re.findall(r"^\| (.+?) \| (?:converted|left alone|refused)\b", DOCUMENT.read_text(), re.MULTILINE)
    assert sorted(cells) == sorted(ROWS)


def test_the_examples_of_the_page_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "CONVERSIONS", copy.copy(conversion.CONVERSIONS))
    first, own = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    scope: dict[str, Any] = {"print": lambda found: scope.update(found=found)}
    exec(first, scope)
    assert [r.kind for r in scope["found"].rows if r.reason] == ["Embedding"]
    exec(own, scope)
    dense = nn.Sequential(scope["GatedLinear"](8, 5))
    model = sparsify_(copy.deepcopy(dense), offset="zero", criterion="nonzero")
    assert isinstance(model[0].gate, DpSLinear)
    assert torch.allclose(model(draw(3, 8)), dense(draw(3, 8)), atol=1e-6)
    assert torch.equal(merge_(model)[0].both, dense[0].both)


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


@row("`nn.Linear`, `nn.Conv2d`, with every option")
def test_linear_and_convolution(tmp_path: Path) -> None:
    def make() -> nn.Module:
        layers = nn.Conv2d(2, 4, 3, padding="same", padding_mode="circular", groups=2), nn.Conv2d(4, 4, 1)
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 36, 5))

    converts(make, lambda model: model(draw(3, 2, 6, 6)), tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 2, "dilation": 2, "bias": False},
        {"groups": 2, "padding": "same", "padding_mode": "reflect"},
        {"padding": "same", "dilation": 3},
        {"kernel_size": 1},
        {"kernel_size": 4, "padding": "same"},
    ],
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@row("`nn.Conv1d`")
def test_convolution_along_one_axis(tmp_path: Path, options: dict[str, Any]) -> None:
    options = {"kernel_size": 3, **options}
    model = converts(lambda: one(nn.Conv1d(6, 8, **options)), lambda m: m(draw(3, 6, 20)), tmp_path)
    layer = model[1]
    assert isinstance(layer, DpSConv1d)
    assert torch.allclose(model(draw(3, 6, 20))[0], model(draw(3, 6, 20)[0]), atol=1e-6)  # without a batch
    # D is the 2-D convolution's with a kernel of one row.
    groups = options.get("groups", 1)
    flat = dctps.DpSConv2d(6, 8, (1, options["kernel_size"]), groups=groups, density=0.1)
    fresh = DpSConv1d(6, 8, options["kernel_size"], groups=groups, density=0.1)
    assert torch.equal(fresh.to_dense(), flat.to_dense()[:, :, 0])
    with pytest.raises(ValueError, match=r"expected an input of shape \(batch, 6, length\)"):
        layer(draw(3, 5, 20))


def test_masks_and_meta_of_a_convolution_along_one_axis() -> None:
    mask = torch.zeros(8, 6, 3, dtype=torch.bool)
    mask[1, 2, 0] = True
    model = sparsify_(one(nn.Conv1d(6, 8, 3)), criterion={"1": mask})
    assert model[1].support.tolist() == mask.flatten().nonzero().flatten().tolist()
    with torch.device("meta"):
        model = one(nn.Conv1d(6, 8, 3))
    assert sparsify_(model, 0.5, offset="zero")(draw(1, 6, 9)).shape == (1, 8, 7)


ATTENTIONS = [
    {},
    {"batch_first": True, "dropout": 0.3},
    {"kdim": 6, "vdim": 10},
    {"add_bias_kv": True},
    {"add_zero_attn": True, "add_bias_kv": True, "bias": False, "batch_first": True},
]


def sequences(options: dict[str, Any]) -> list[Tensor]:
    sizes = ((5, 8), (7, options.get("kdim", 8)), (7, options.get("vdim", 8)))
    inputs = [draw(length, 3, size, seed=i) for i, (length, size) in enumerate(sizes)]
    return [x.transpose(0, 1) for x in inputs] if options.get("batch_first") else inputs


@pytest.mark.parametrize("options", ATTENTIONS)
@row("`nn.MultiheadAttention`")
def test_attention(tmp_path: Path, options: dict[str, Any]) -> None:
    inputs = sequences(options)
    model = converts(
        lambda: one(nn.MultiheadAttention(8, 2, **options)), lambda m: m[1](*inputs)[0], tmp_path
    )
    assert isinstance(model[1], DpSMultiheadAttention)
    assert [r.name for r in report(model).rows] == [f"1.{part}_proj" for part in ("q", "k", "v", "out")]


@pytest.mark.parametrize("options", ATTENTIONS)
@pytest.mark.filterwarnings("ignore:Support for mismatched")
def test_attention_is_called_like_torchs(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    dense = nn.MultiheadAttention(8, 2, **options).eval()
    model = sparsify_(copy.deepcopy(dense), offset="zero", criterion="nonzero")
    inputs = sequences(options)
    attention_masks = [None, draw(5, 7) > 0.7, draw(5, 7), draw(6, 5, 7) > 0.7, draw(6, 5, 7)]
    for attn_mask in attention_masks:
        for key_padding_mask in (None, draw(3, 7, seed=1) > 0.7, draw(3, 7, seed=1)):
            for flags in ({}, {"average_attn_weights": False}, {"need_weights": False}):
                masks = {"attn_mask": attn_mask, "key_padding_mask": key_padding_mask}
                y, weights = model(*inputs, **masks, **flags)
                expected, expected_weights = dense(*inputs, **masks, **flags)
                assert torch.allclose(y, expected, atol=1e-5)
                assert (weights is None) == (expected_weights is None)
                assert weights is None or torch.allclose(weights, expected_weights, atol=1e-6)
    batch_at = 0 if options.get("batch_first") else 1
    single = [x.select(batch_at, 0) for x in inputs]
    masks = {"attn_mask": draw(5, 7) > 0.7, "key_padding_mask": draw(7) > 0.7}
    for found, expected in zip(model(*single, **masks), dense(*single, **masks), strict=True):
        assert found.shape == expected.shape and torch.allclose(found, expected, atol=1e-5)
    causal = nn.Transformer.generate_square_subsequent_mask(5)
    if "kdim" not in options:
        # torch, given the hint, also hides added keys from the first queries; without it, it does not.
        query = inputs[0]
        y, _ = model(query, query, query, attn_mask=causal, is_causal=True, need_weights=False)
        assert torch.allclose(y, dense(query, query, query, attn_mask=causal)[0], atol=1e-5)
    for wrong in ({"is_causal": True}, {"attn_mask": draw(4, 7)}, {"key_padding_mask": draw(5, 7) > 0}):
        with pytest.raises(ValueError, match=r"give that too|must have the shape"):
            model(*inputs, **wrong)


def test_attention_weights_drop_out_in_training_only() -> None:
    model = sparsify_(nn.MultiheadAttention(8, 2, dropout=0.5), 0.5)
    x = draw(5, 3, 8)
    _, weights = model(x, x, x, average_attn_weights=False)
    assert 0 < (weights == 0).sum() < weights.numel()
    model.eval()
    _, weights = model(x, x, x)
    assert (weights > 0).all()


def test_encoder_whose_attention_stays_dense() -> None:
    torch.manual_seed(0)
    dense = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    model = sparsify_(
        copy.deepcopy(dense), offset="zero", criterion="nonzero", filter_fn=lambda _, name: "attn" not in name
    )
    assert type(model.self_attn) is nn.MultiheadAttention and isinstance(model.linear1, DpSLinear)
    with torch.no_grad():  # torch's fused kernel takes W as it is made for it
        assert torch.allclose(model(draw(3, 5, 8)), dense(draw(3, 5, 8)), atol=1e-5)


def test_attention_under_autocast_and_compiled_whole() -> None:
    torch.compiler.reset()
    x = draw(5, 3, 8)
    model = sparsify_(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0), 0.5)
    expected = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mask = nn.Transformer.generate_square_subsequent_mask(5)
        y, _ = model.self_attn(x, x, x, attn_mask=mask, need_weights=False)
        assert y.dtype == torch.bfloat16
        assert torch.allclose(model(x).float(), expected, atol=0.1)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    y = compiled(x)
    assert torch.allclose(y, expected, atol=1e-6)
    y.square().sum().backward()
    assert model.self_attn.q_proj.values.grad.abs().sum() > 0


def test_attention_from_the_meta_device_begins_as_torchs_does() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.MultiheadAttention(48, 2, add_bias_kv=True))
        wide = nn.Sequential(nn.MultiheadAttention(48, 2, kdim=96))
    torch.manual_seed(0)
    model = sparsify_(model, 0.999, offset="zero", seed=1)
    dense = nn.MultiheadAttention(48, 2, add_bias_kv=True)
    values = model[0].k_proj.values
    assert values.std().item() == pytest.approx(dense.in_proj_weight.std().item(), rel=0.03)
    assert values.abs().max().item() == pytest.approx(dense.in_proj_weight.abs().max().item(), rel=0.01)
    assert model[0].q_proj.bias.abs().max() == 0 and model[0].out_proj.bias.abs().max() == 0
    assert model[0].bias_k.std().item() == pytest.approx(dense.bias_k.std().item(), rel=0.5)
    alpha = sparsify_(wide, 0.1, alpha="match", offset="sdct")[0].k_proj.alpha.item()
    dense = nn.MultiheadAttention(48, 2, kdim=96)
    assert alpha == pytest.approx(dense.k_proj_weight.norm().item() / 48**0.5, rel=0.03)


def test_a_filter_is_asked_for_the_whole_and_for_each_part() -> None:
    asked: list[tuple[str, str]] = []

    def wanted(module: nn.Module, name: str) -> bool:
        asked.append((name, type(module).__name__))
        return name not in ("0.out_proj", "1", "2.q_proj", "2.k_proj", "2.v_proj", "2.out_proj")

    attentions = [nn.MultiheadAttention(8, 2) for _ in range(3)]
    model = sparsify_(nn.Sequential(*attentions), 0.5, filter_fn=wanted)
    assert asked[:3] == [(str(i), "MultiheadAttention") for i in range(3)]
    assert ("0.q_proj", "Linear") in asked and ("1.q_proj", "Linear") not in asked
    assert type(model[0].q_proj) is DpSLinear and type(model[0].out_proj) is nn.Linear
    assert model[1] is attentions[1] and model[2] is attentions[2]  # nothing of them was wanted
    assert {r.name: r.reason for r in report(model).rows if r.reason} == dict.fromkeys(
        ("0.out_proj", "1", "2"), "can be converted"
    )
    part = model[0].out_proj.weight
    assert part.untyped_storage().nbytes() == part.nbytes


@row("`nn.TransformerEncoder`, `nn.TransformerDecoder`, `nn.Transformer`")
def test_transformer(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return nn.Transformer(8, 2, 2, 1, 16, batch_first=True, dropout=0.0)

    source, target = draw(3, 6, 8), draw(3, 4, 8, seed=1)
    model = converts(make, lambda m: m(source, target), tmp_path)
    assert report(model).left_alone == 0


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("norm_first", [False, True])
def test_no_fused_kernel_of_the_encoder_gets_dense_weights(norm_first: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first)
    dense = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first).eval()
    model = sparsify_(copy.deepcopy(dense), offset="zero", criterion="nonzero")
    x, padded = draw(3, 5, 8), torch.tensor([[0, 0, 0, 1, 1], [0] * 5, [0, 0, 0, 0, 1]]).bool()
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(DpSLayer, "to_dense", lambda _: pytest.fail("a dense weight was asked for"))
        assert torch.allclose(model(x), dense(x), atol=1e-5)
        causal = nn.Transformer.generate_square_subsequent_mask(5)
        assert torch.allclose(model(x, mask=causal), dense(x, mask=causal), atol=1e-5)
    with torch.no_grad():
        masked, expected = (m(x, src_key_padding_mask=padded) for m in (model, dense))
    assert torch.allclose(masked[~padded], expected[~padded], atol=1e-5)


IDS = torch.randint(50, (2, 8), generator=torch.Generator().manual_seed(0))


def gpt2() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 50, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
    config = transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, loss_type="ForCausalLM")
    return transformers.GPT2LMHeadModel(config)


@row("Hugging Face's GPT-2 and others of its `Conv1D`")
def test_gpt2(tmp_path: Path) -> None:
    model = converts(gpt2, lambda m: m(input_ids=IDS).logits, tmp_path)
    layers = {r.name: r.shape for r in report(model).rows if not r.reason}
    assert layers["transformer.h.0.attn.c_attn"] == (48, 16)
    assert len(layers) == 8
    # The embedding and the head are one tensor, and stay one.
    reasons = {r.name: r.reason for r in report(model).rows if r.reason}
    assert reasons["transformer.wte"] == "its rows are looked up, not multiplied"
    assert reasons["lm_head"].startswith("it shares a parameter with 'transformer.wte'")
    assert model.lm_head.weight is model.transformer.wte.weight
    assert report(model).left_alone == (50 + 16) * 16
    generated = model.generate(IDS[:, :3], max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert generated.shape == (2, 6)
    # The way back is Hugging Face's own layer, so that its files are its own.
    merged = merge_(copy.deepcopy(model))
    fresh = gpt2()
    fresh.load_state_dict(merged.state_dict())
    assert torch.equal(fresh.eval()(input_ids=IDS).logits, merged(input_ids=IDS).logits)


def test_gpt2_trains_on_its_own_loss() -> None:
    model = sparsify_(gpt2(), 0.2, alpha="match", offset="sdct", seed=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3


def test_a_tied_network_from_the_meta_device_stays_tied(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.middle = nn.Embedding(7, 4), nn.Linear(4, 4)
            self.head = nn.Linear(4, 7, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.middle(self.embedding(ids)))

    with torch.device("meta"):
        model, target = Tied(), Tied()
    model = sparsify_(model, 0.5)
    assert model.head.weight is model.embedding.weight and not model.head.weight.is_meta
    dctps.save_pretrained(model, tmp_path)
    loaded = dctps.load_pretrained_(target, tmp_path)
    assert loaded.head.weight is loaded.embedding.weight
    assert torch.equal(loaded(IDS % 7), model(IDS % 7))


@row("Hugging Face's ViT")
def test_hugging_face_vit(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.ViTConfig(**sizes, image_size=8, patch_size=4)
    images = draw(2, 3, 8, 8)
    model = converts(
        lambda: transformers.ViTModel(config), lambda m: m(pixel_values=images).pooler_output, tmp_path
    )
    left = {r.kind: r.reason for r in report(model).rows if r.reason}
    assert left == {"ViTEmbeddings": "no conversion is registered for its class"}  # its position embeddings


class ViT(nn.Module):
    """A vision transformer as people write it with torch's own modules."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.cls, self.positions = nn.Parameter(torch.zeros(1, 1, 16)), nn.Parameter(torch.randn(1, 5, 16))
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).mT
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.positions
        return self.head(self.encoder(x)[:, 0])


@row("a parameter of your own module, such as position embeddings")
def test_vit_of_torchs_modules(tmp_path: Path) -> None:
    model = converts(ViT, lambda m: m(draw(2, 3, 8, 8)), tmp_path)
    (left,) = [r for r in report(model).rows if r.reason]
    assert (left.name, left.kind, left.weights) == ("", "ViT", 80)
    assert left.reason == "no conversion is registered for its class"
    assert "(root)" in str(report(model)) and "left alone  80 weights of 1 modules" in str(report(model))


def library(name: str) -> Any:
    """The module, or a skipped test: beside a torch without vision operators these fail in many ways."""
    return pytest.importorskip(name, exc_type=Exception, reason=f"{name} does not import here")


@row("timm's and torchvision's models")
def test_torchvision(tmp_path: Path) -> None:
    models = library("torchvision.models")
    sizes = {"image_size": 32, "patch_size": 16, "num_layers": 1, "num_heads": 2}
    sizes |= {"hidden_dim": 16, "mlp_dim": 32, "num_classes": 10}
    model = converts(lambda: models.VisionTransformer(**sizes), lambda m: m(draw(2, 3, 32, 32)), tmp_path)
    assert sum(isinstance(module, DpSMultiheadAttention) for module in model.modules()) == 1
    converts(lambda: models.resnet18(num_classes=10), lambda m: m(draw(2, 3, 32, 32)), tmp_path)


def test_timm(tmp_path: Path) -> None:
    timm = library("timm")
    sizes = {"img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2}
    model = converts(
        lambda: timm.models.VisionTransformer(**sizes, num_classes=10),
        lambda m: m(draw(2, 3, 32, 32)),
        tmp_path,
    )
    assert any(".qkv" in row.name and not row.reason for row in report(model).rows)


@row("one layer in several places")
def test_one_layer_in_several_places(tmp_path: Path) -> None:
    def make() -> nn.Module:
        layer, attention = nn.Linear(8, 8), nn.MultiheadAttention(8, 2)
        return nn.ModuleDict({"a": layer, "b": nn.Sequential(layer), "c": attention, "d": attention})

    def call(model: Any) -> Tensor:
        x = model["b"](model["a"](draw(4, 3, 8)))
        return model["d"](*[model["c"](x, x, x)[0]] * 3)[0]

    model = converts(make, call, tmp_path)
    assert model["a"] is model["b"][0] and model["c"] is model["d"]
    assert report(model).weights == 64 + 4 * 64


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


def test_scores_see_the_projections() -> None:
    def gradient(model, layers, loss, batches):  # type: ignore[no-untyped-def]
        for batch in batches:
            model[0](batch, batch, batch)[0].square().sum().backward()
        return {name: layer.weight.grad.abs() for name, layer in layers.items()}

    torch.manual_seed(0)
    dense, x = nn.Sequential(nn.MultiheadAttention(8, 2)), draw(5, 3, 8)
    dense[0](x, x, x)[0].square().sum().backward()
    best = dense[0].in_proj_weight.grad.abs()[16:].flatten().argmax()
    dense.zero_grad()
    model = sparsify_(dense, 0.1, criterion=gradient, batches=[x], allocation="epl")
    assert best in model[0].v_proj.support


@row("a compiled network, `nn.DataParallel`, `AveragedModel`")
def test_wrapped_networks() -> None:
    torch.compiler.reset()
    x = draw(4, 8)
    model = torch.compile(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)), backend="aot_eager")
    model(x)
    sparsify_(model, 0.5, seed=2)
    model(x).sum().backward()
    assert model._orig_mod[0].values.grad.shape == (24,)
    assert torch.allclose(model(x), model._orig_mod(x))
    plain = sparsify_(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)), 0.5, seed=2)
    for wrap in (nn.DataParallel, torch.optim.swa_utils.AveragedModel):
        wrapped = sparsify_(wrap(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))), 0.5, seed=2)
        assert torch.equal(wrapped.module[0].support, plain[0].support)
        assert wrapped(x).shape == (4, 2)


@row("`DistributedDataParallel`")
def test_distributed(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        dense = nn.Sequential(nn.Linear(8, 8), nn.MultiheadAttention(8, 2))
        wrapped = nn.parallel.DistributedDataParallel(dense)
        with pytest.raises(ValueError, match="'the model' is wrapped for DistributedDataParallel"):
            sparsify_(wrapped, 0.5)
        assert type(dense[0]) is nn.Linear
        model = sparsify_(wrapped.module, 0.5)
        again = nn.parallel.DistributedDataParallel(nn.Sequential(model[0]))
        again(draw(4, 8)).sum().backward()
        assert model[0].values.grad.abs().sum() > 0
        with pytest.raises(ValueError, match="wrapped for DistributedDataParallel"):
            merge_(again)
        # A file fills a wrapped network that is converted, and is no reason to convert one.
        dctps.save_pretrained(nn.Sequential(model[0]), tmp_path)
        dctps.load_pretrained_(again, tmp_path)
        with pytest.raises(ValueError, match="wrapped for DistributedDataParallel"):
            plain = nn.Sequential(nn.Linear(8, 8))
            dctps.load_pretrained_(nn.parallel.DistributedDataParallel(plain), tmp_path)
        assert type(plain[0]) is nn.Linear
    finally:
        dist.destroy_process_group()


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


@row("a root that is itself converted")
def test_roots(tmp_path: Path) -> None:
    x = draw(5, 3, 8)
    dense = nn.MultiheadAttention(8, 2)
    model = sparsify_(dense, 0.5).eval()
    assert isinstance(model, DpSMultiheadAttention) and type(dense) is nn.MultiheadAttention
    dctps.save_pretrained(model, tmp_path)
    loaded = dctps.load_pretrained_(nn.MultiheadAttention(8, 2).eval(), tmp_path)
    assert torch.equal(loaded(x, x, x)[0], model(x, x, x)[0])
    assert type(merge_(loaded)) is nn.MultiheadAttention


def test_files_of_partly_converted_attention(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.MultiheadAttention(8, 2), nn.MultiheadAttention(8, 2)).eval()

    def call(model: Any) -> Tensor:
        x = draw(5, 3, 8)
        y = model[0](x, x, x)[0]
        return model[1](y, y, y)[0]

    model = sparsify_(make(), 0.5, filter_fn=lambda module, name: name not in ("0.v_proj", "1"))
    dctps.save_pretrained(model, tmp_path)
    loaded = dctps.load_pretrained_(make(), tmp_path)
    assert type(loaded[0].v_proj) is nn.Linear and type(loaded[1]) is nn.MultiheadAttention
    assert torch.equal(call(loaded), call(model))
    with torch.device("meta"):
        meta = make()
    assert torch.equal(call(dctps.load_pretrained_(meta, tmp_path)), call(model))
    with pytest.raises(CheckpointError, match="layer '0.v_proj' is dense in the file"):
        dctps.load_pretrained_(sparsify_(make(), 0.5), tmp_path)
