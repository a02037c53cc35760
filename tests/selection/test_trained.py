"""A trained network that is converted: a warning where weights are lost, and none at an initialisation."""

import copy
import warnings

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import dctps
from dctps.models import build_model
from dctps.selection.trained import is_trained, spread

LOST = "seems to be trained, and this call .* does not keep what .* offset='zero', criterion='magnitude'"


def mlp():
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))


def lenet():
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(2048, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def trained(make, epochs=6):
    torch.manual_seed(0)
    model = make()
    images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
    images = images.float() / 16
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(epochs):
        for part in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[part]), labels[part]).backward()
            optimizer.step()
    accuracy = (model(images).argmax(1) == labels).float().mean()
    assert accuracy > 0.85
    return model


@pytest.fixture(scope="module", params=[mlp, lenet])
def network(request):
    return trained(request.param)


def reloaded(network):
    """As from a file: nothing of how it was trained is left but the numbers."""
    other = copy.deepcopy(network)
    for module in other.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    other.load_state_dict(network.state_dict())
    return other


@pytest.mark.parametrize("offset", ["dct", "sdct", "zero"])
def test_it_is_said_once_with_the_call_that_prunes(network, offset):
    for model in (
        copy.deepcopy(network),
        reloaded(network),
        reloaded(network).double(),
        reloaded(network).half(),
    ):
        with pytest.warns(UserWarning, match=LOST) as said:
            dctps.sparsify_(model, 0.1, offset=offset)
        assert len(said) == 1 and said[0].filename == __file__


def test_tensors_that_are_written_column_by_column_are_new():
    model = nn.Sequential(*(nn.Conv2d(128, 128, 3, bias=False) for _ in range(3)))
    for layer in model:
        nn.init.dirac_(layer.weight)
        assert layer.weight._version > 100
    assert not is_trained(dict(model.named_children()))


def test_a_short_training_shows_in_how_often_weights_were_written():
    torch.manual_seed(0)
    tiny = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(tiny.parameters(), 1e-3)
    for _ in range(120):
        tiny(torch.randn(4, 2)).sum().backward()
        optimizer.step()
    with pytest.warns(UserWarning, match=LOST):
        dctps.sparsify_(tiny, 0.5)


def test_what_keeps_the_weights_says_nothing(network):
    data = [(torch.randn(8, 64), torch.randint(10, (8,)))]
    for options in (
        {"criterion": "magnitude"},
        {"criterion": "snip", "batches": data},
        {"criterion": "nonzero"},
        {"density": 1.0},
    ):
        dctps.sparsify_(reloaded(network), **{"density": 0.1, "offset": "zero", **options})
    masks = {n: m.weight.abs() > 0.05 for n, m in network.named_modules() if hasattr(m, "weight")}
    dctps.sparsify_(reloaded(network), offset="zero", criterion=masks)


def test_new_layers_on_trained_ones_are_no_loss(network):
    torch.manual_seed(0)
    model = nn.Sequential(reloaded(network), nn.ReLU(), nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 10))
    dctps.sparsify_(model, 0.1, filter_fn=lambda module, name: not name.startswith("0"))


def delta_orthogonal(weight):
    nn.init.zeros_(weight)
    nn.init.orthogonal_(
        weight[:, :, weight.shape[2] // 2, weight.shape[3] // 2] if weight.dim() == 4 else weight
    )


LAWS = {
    "torch": lambda w: None,
    "kaiming normal": nn.init.kaiming_normal_,
    "kaiming uniform": nn.init.kaiming_uniform_,
    "xavier": nn.init.xavier_uniform_,
    "orthogonal": nn.init.orthogonal_,
    "truncated": lambda w: nn.init.trunc_normal_(w, std=0.02),
    "not centred": nn.init.uniform_,
    "zero": nn.init.zeros_,
    "one": nn.init.ones_,
    "sparse": lambda w: nn.init.sparse_(w, 0.1) if w.dim() == 2 else nn.init.zeros_(w),
    "identity": lambda w: nn.init.eye_(w) if w.dim() == 2 else nn.init.dirac_(w),
    "delta orthogonal": delta_orthogonal,
    "parts of other scales": lambda w: w.data[: len(w) // 3].mul_(0.5),
    "Laplace": lambda w: w.data.copy_(torch.distributions.Laplace(0, 0.02).sample(w.shape)),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("seed", range(4))
def test_no_initialisation_is_taken_for_a_training(law, seed):
    torch.manual_seed(seed)
    layers = {
        str(i): layer
        for i, layer in enumerate(
            [nn.Linear(784, 300), nn.Linear(300, 100), nn.Linear(20, 16), nn.Linear(16, 600),
             nn.Linear(900, 900), nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3), nn.Conv2d(64, 128, 1),
             nn.Conv2d(32, 32, 3, groups=32)],
        )
    }  # fmt: skip
    with torch.no_grad():
        for layer in layers.values():
            LAWS[law](layer.weight)
    for layer in layers.values():
        value = spread(layer.weight)
        assert value is None or value < 1.16
    assert not is_trained(layers)


@pytest.mark.parametrize("name", ["fixup-resnet20", "lenet5", "mobilenetv2", "resnet20", "vgg11"])
def test_the_networks_of_the_library_are_new(name):
    torch.manual_seed(0)
    model = build_model(name, 10, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dctps.sparsify_(model, 0.01)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5", "vit", "mamba"])
def test_the_networks_of_transformers_are_new(name):
    transformers = pytest.importorskip("transformers")
    small = {"num_hidden_layers": 2, "hidden_size": 192, "intermediate_size": 384, "num_attention_heads": 4}
    few = {"hidden_size": 192, "vocab_size": 99}
    config, kind = {
        "bert": (transformers.BertConfig(**small), transformers.BertModel),
        "gpt2": (transformers.GPT2Config(n_layer=2, n_embd=192, n_head=4), transformers.GPT2LMHeadModel),
        "llama": (transformers.LlamaConfig(**small | few), transformers.LlamaForCausalLM),
        "t5": (transformers.T5Config(num_layers=2, d_model=192, vocab_size=99), transformers.T5Model),
        "vit": (transformers.ViTConfig(**small), transformers.ViTModel),
        "mamba": (transformers.MambaConfig(num_hidden_layers=2, **few), transformers.MambaModel),
    }[name]
    torch.manual_seed(0)
    model = kind(config)
    layers = {
        n: m for n, m in model.named_modules() if type(m).__name__ in ("Linear", "Conv1D", "Conv2d", "Conv1d")
    }
    assert layers and not is_trained(layers)


def test_the_largest_singular_value_is_never_overestimated():
    torch.manual_seed(0)
    for shape in ((40, 70), (70, 40), (64, 16, 3, 3)):
        weight = torch.randn(shape) + torch.randn(shape[0], *[1] * (len(shape) - 1))
        w = weight.flatten(1).double()
        exact = torch.linalg.svdvals(w - w.mean())[0] / (w.std() * sum(size**0.5 for size in w.shape))
        assert 0.9 * exact < spread(weight) <= exact * (1 + 1e-6)
