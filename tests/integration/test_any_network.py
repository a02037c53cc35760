"""Rows of the table in docs/any-network.md: networks that are converted; and that each row has a test."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.integration import test_any_attention, test_left_alone, test_own_classes  # noqa: F401 (their rows)
from tests.support.conversions import ROWS, converts, draw, one, row
from torch import Tensor, nn

import dctps
from dctps import DpSConv1d, DpSLinear, DpSMultiheadAttention, merge_, report, sparsify_
from dctps.networks import conversion
from dctps.nn.layer import DpSLayer

DOCUMENT = Path(__file__).parents[2] / "docs" / "any-network.md"


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
