"""Networks that the tests of adapters share."""

import contextlib
import warnings

import torch
from torch import nn

import dctps
from dctps.adapters import list_adapters


def small(seed=0):
    """Convolution, norm and two linear layers, with statistics that are not those of a new network."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 16), nn.ReLU(),
        nn.Linear(16, 5),
    )  # fmt: skip
    with torch.no_grad():
        net(images())
    return net.eval()


def images(seed=5):
    return torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


LABELS = torch.tensor([0, 1, 2, 3, 4, 0])


def train(model, steps=3, rate=0.05):
    """A few steps in training mode; the model is in evaluation mode afterwards."""
    model.train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], rate)
    for step in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images(step)), LABELS).backward()
        optimizer.step()
    return model.eval()


def gpt2(**options):
    """A random GPT-2 of two layers, whose linear layers are transformers' Conv1D."""
    import transformers

    torch.manual_seed(0)
    sizes = {"vocab_size": 31, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
    config = transformers.GPT2Config(
        **sizes, bos_token_id=0, eos_token_id=0, loss_type="ForCausalLM",
        attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, **options,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config).eval()


def tokens(count=4, seed=3):
    return torch.randint(31, (count, 12), generator=torch.Generator().manual_seed(seed))


def fill(model, std=0.3):
    """Random values in every adapter that is there."""
    assert list_adapters(model)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, dctps.nn.DpSLayer):
                module.values.normal_(std=std)
    return model


@contextlib.contextmanager
def quiet():
    """Other libraries' own warnings are not what a test is about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
