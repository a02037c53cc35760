"""Stacked networks against the same networks one by one."""

import copy
from itertools import islice

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import dctps
from dctps.data import batches, load_dataset
from dctps.dynamic import DSR, SET, RigL
from dctps.experiments.config import METHODS, RunConfig, resolve
from dctps.experiments.network import build_network
from dctps.experiments.parts import ScoringBatches
from dctps.kernels import loader, runnable_variants
from dctps.models import build_model
from dctps.stacks import NotAChain, Stack
from dctps.training import Precision, build_optimizer, build_schedule, parameter_groups
from dctps.training.loop import train_epoch

STATIC = [name for name, m in METHODS.items() if m.dynamics is None and name != "norms"]  # LeNet-5 has none


def network(method, density, seed, dataset):
    config = resolve(RunConfig(model="lenet5", method=method, density=density, seed=seed))
    torch.manual_seed(seed)
    scoring = ScoringBatches(dataset.train, seed, dataset.mean, dataset.std, per_class=3)
    return build_network(config, dataset.description, torch.device("cpu"), batches=scoring)


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


def test_twenty_steps_are_those_of_separate_runs():
    """Every static method, three densities, in one stack of float64 networks."""
    dataset = load_dataset("digits")
    stream = batches(dataset.train, 8, mean=dataset.mean, std=dataset.std, augment=False)
    data = [(images.double(), labels) for images, labels in islice(stream, 20)]
    densities = [0.3, 0.05, 0.004]
    alone = [
        network(method, densities[i % 3], i, dataset).double()
        for i, method in enumerate([*STATIC, "dctps", "sdctps", "hyperplane", "snip"])
    ]
    stacked = copy.deepcopy(alone)

    def optimizer(model):
        groups = parameter_groups(model, 5e-4)
        made = build_optimizer("adam", groups, lr=6e-3)
        return made, build_schedule("onecycle", made, total_steps=40)

    losses = []
    for model in alone:
        made, schedule = optimizer(model)
        precision = Precision("off", "cpu")
        losses.append(train_epoch(model, data, made, schedule, epoch=1, precision=precision).loss)
    stack, optimizers = Stack(stacked), [optimizer(model) for model in stacked]
    total = torch.zeros(len(alone), dtype=torch.float64)
    for images, labels in data:
        total += stack.step(images, labels).loss
        for made, schedule in optimizers:
            made.step()
            schedule.step()
    torch.testing.assert_close(total / 160, torch.tensor(losses, dtype=torch.float64), rtol=1e-9, atol=1e-9)
    moved = 0.0
    for one, other in zip(alone, stacked, strict=True):
        for p, q in zip(trained(one), trained(other), strict=True):
            torch.testing.assert_close(q, p, rtol=1e-9, atol=1e-9)
            moved = max([moved, *p.detach().abs().flatten().tolist()])
    assert moved > 0.05  # they have trained


def test_supports_that_move_are_those_of_separate_runs():
    """RigL, SET and DSR beside a network that stays, float64, a change after every fifth step."""
    dataset = load_dataset("digits")
    stream = batches(dataset.train, 8, mean=dataset.mean, std=dataset.std, augment=False)
    data = [(images.double(), labels) for images, labels in islice(stream, 20)]
    moving = [RigL, RigL, SET, DSR, None]
    methods = ["dctps", "random-erk", "random-erk", "sdctps", "dctps"]
    alone = [network(method, 0.05, seed, dataset).double() for seed, method in enumerate(methods)]
    stacked, before = copy.deepcopy(alone), copy.deepcopy(alone)

    def trainers(model, kind):
        optimizer = build_optimizer("adam", parameter_groups(model, 5e-4), lr=6e-3)
        seeded = {} if kind is RigL else {"seed": 7}
        return optimizer, kind and kind(model, optimizer, update_interval=5, end=20, **seeded)

    for model, kind in zip(alone, moving, strict=True):
        optimizer, dynamics = trainers(model, kind)
        for images, labels in data:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            if dynamics:
                dynamics.step()
    stack = Stack(stacked)
    members = [(model, *trainers(model, kind)) for model, kind in zip(stacked, moving, strict=True)]
    for images, labels in data:
        stack.step(images, labels)
        due = [(model, optimizer) for model, optimizer, dynamics in members if dynamics and dynamics.due]
        for model, optimizer in due:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
        for _, optimizer, dynamics in members:
            optimizer.step()
            if dynamics:
                dynamics.step()
        if due:
            stack.lay_out()
    for one, other, start, kind in zip(alone, stacked, before, moving, strict=True):
        changed = False
        for (name, layer), like, was in zip(
            one.named_modules(), other.modules(), start.modules(), strict=True
        ):
            if isinstance(layer, dctps.DpSLinear | dctps.DpSConv2d):
                assert torch.equal(layer.support, like.support), name
                torch.testing.assert_close(like.values, layer.values, rtol=1e-9, atol=1e-9)
                changed |= not torch.equal(layer.support, was.support)
        assert changed == (kind is not None)


@st.composite
def architectures(draw, native):
    """A small chain, the size of its images, and its classes."""
    channels, side = draw(st.integers(1, 4)), draw(st.integers(6, 11))
    size, layers, width = side, [], channels
    for _ in range(draw(st.integers(0, 2))):
        kernel = draw(st.integers(1, min(3, size)))
        outputs = draw(st.integers(1, 14))
        options = {}
        if not native:
            options = {"padding": draw(st.integers(0, 2)), "stride": draw(st.integers(1, 2))}
            groups = draw(st.sampled_from([g for g in (1, 2, 3) if width % g == 0 and outputs % g == 0]))
            options |= {"groups": groups}
        bias = draw(st.booleans())
        layers.append(nn.Conv2d(width, outputs, kernel, bias=bias, **options))
        size = (size + 2 * options.get("padding", 0) - kernel) // options.get("stride", 1) + 1
        width = outputs
        others = [nn.Tanh(), nn.MaxPool2d(1), nn.GELU()]
        layers += draw(
            st.sampled_from([[], [nn.ReLU()]] if native else [[], [nn.ReLU()], others[:1], others[1:]])
        )
        if size >= 2 and draw(st.booleans()):
            layers.append(nn.AvgPool2d(2) if native or draw(st.booleans()) else nn.MaxPool2d(2, padding=1))
            size = size // 2 if isinstance(layers[-1], nn.AvgPool2d) else (size + 2 - 2) // 2 + 1
    layers.append(nn.Flatten())
    features = width * size * size
    for _ in range(draw(st.integers(0, 1))):
        layers += [nn.Linear(features, 7), nn.ReLU()]
        features = 7
    layers.append(nn.Linear(features, 5, bias=draw(st.booleans())))
    return nn.Sequential(*layers), (channels, side, side)


@st.composite
def stacks(draw, native):
    """Networks of one architecture, of kinds that are drawn, and how many images they see."""
    torch.manual_seed(0)  # of what torch draws itself, so that a drawn case is always the same
    plain, image = draw(architectures(native))
    models = []
    for seed in range(draw(st.integers(1, 4))):
        model = copy.deepcopy(plain)
        kind = draw(st.sampled_from(["dense", "hyperplane", "zero", "dct", "sdct", "gaussian", "frozen"]))
        if kind == "hyperplane":
            model = dctps.project_(model, 3, seed=seed)
        elif kind != "dense":
            density = draw(st.sampled_from([0.02, 0.1, 0.4, 1.0]))
            offset = "dct" if kind == "frozen" else kind
            model = dctps.sparsify_(
                model, density, offset=offset, seed=seed, alpha_trainable=kind != "frozen"
            )
        generator = torch.Generator().manual_seed(seed)
        for p in trained(model):
            p.data += 0.3 * torch.randn(p.shape, generator=generator)
        models.append(model)
    return models, image, draw(st.sampled_from([1, 5, 63, 64, 65, 130]))


def assert_like_separate(models, image, count, dtype, rtol):
    generator = torch.Generator().manual_seed(count)
    images = torch.randn(count, *image, generator=generator, dtype=dtype)
    labels = torch.randint(5, (count,), generator=generator)
    stack = Stack(models)
    losses, evaluated = stack.step(images, labels), stack.evaluate([(images, labels)])
    for r, model in enumerate(models):
        found = [p.grad for p in trained(model)]
        twin = copy.deepcopy(model).double()
        for p in twin.parameters():
            p.grad = None
        logits = twin(images.double())
        F.cross_entropy(logits, labels).backward()
        loss = F.cross_entropy(logits, labels, reduction="sum").detach()
        torch.testing.assert_close(losses.loss[r], loss, rtol=rtol, atol=rtol * count)
        torch.testing.assert_close(evaluated[r].loss, float(loss) / count, rtol=rtol, atol=rtol)
        assert evaluated[r].accuracy == int(losses.correct[r]) / count
        assert int(losses.correct[r]) == int((logits.argmax(1) == labels).sum())
        # Softmax minus one cancels, so that a small gradient has the error of a larger one.
        scale = max([0.1, *(float(p.grad.abs().max()) for p in trained(twin) if p.numel())])
        for q, p in zip(found, trained(twin), strict=True):
            torch.testing.assert_close(q.double(), p.grad, rtol=0, atol=rtol * scale)
    return stack


@given(stacks(native=False))
def test_torch_operations_match_separate_networks(drawn):
    models, image, count = drawn
    assert_like_separate([model.double() for model in models], image, count, torch.float64, 1e-10)


@pytest.mark.skipif(not runnable_variants(), reason="no compiled kernels")
@given(stacks(native=True), st.sampled_from([1, 2]), st.sampled_from(runnable_variants() or ("",)))
def test_the_native_kernel_matches_float64(drawn, threads, variant):
    models, image, count = drawn
    torch.set_num_threads(threads)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dctps.kernels.stack, "function", lambda name: loader.function(name, variant))
            stack = assert_like_separate(models, image, count, torch.float32, 1e-3)
    finally:
        torch.set_num_threads(1)
    assert stack._native(torch.zeros(1, *image)) is not None


@pytest.mark.skipif(not runnable_variants(), reason="no compiled kernels")
def test_a_network_does_not_feel_the_others():
    """Bit for bit: so that a stack that lost a run goes on as it would have."""
    models = [
        dctps.sparsify_(build_model("lenet5", 10, 1, 32), 0.02, offset=o, seed=1)
        for o in ("dct", "zero", "dct")
    ]
    with torch.no_grad():
        models[2].get_parameter("classifier.1.values").fill_(torch.nan)
    images, labels = torch.randn(70, 1, 32, 32), torch.randint(10, (70,))
    together = Stack(models).step(images, labels)
    gradients = [p.grad.clone() for p in trained(models[0])]
    by_itself = Stack(models[:1]).step(images, labels)
    assert together.loss[0] == by_itself.loss[0] and together.loss[2].isnan()
    assert all(torch.equal(p.grad, g) for p, g in zip(trained(models[0]), gradients, strict=True))


@pytest.mark.parametrize("first", [0, 1])
def test_images_of_one_number_begin_at_any_address(first):
    """Their rows are in the kernel's order already, which aligned loads would read where they are."""
    plain = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3))
    model = dctps.sparsify_(plain, 0.5)
    images, labels = torch.randn(129)[first : first + 128].view(128, 1, 1, 1), torch.randint(3, (128,))
    losses = Stack([model]).step(images, labels)
    expected = F.cross_entropy(model(images), labels, reduction="sum")
    torch.testing.assert_close(losses.loss[0], expected.detach().double(), rtol=1e-5, atol=0.0)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.flatten, self.linear = nn.Conv2d(1, 1, 1), nn.Flatten(), nn.Linear(16, 2)

    def forward(self, x):
        return self.linear(self.flatten(x + self.conv(x)))


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (lambda: build_model("vgg11", 10, 3, 32), r"'features\.1' \(BatchNorm2d\)"),
        (Residual, "'add' of Residual"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 2)), r"'1' \(Dropout\)"),
        (lambda: nn.Sequential(nn.Linear(4, 2), nn.Flatten()), r"'0' \(Linear\) takes images"),
        (
            lambda: nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"), nn.Flatten()),
            "circular",
        ),
    ],
)
def test_what_is_no_chain_is_refused_by_its_layer(model, named):
    with pytest.raises(NotAChain, match=named):
        Stack([model()])


def test_networks_that_differ_are_refused():
    with pytest.raises(NotAChain, match="'1' is Linear"):
        Stack([nn.Sequential(nn.Flatten(), nn.Linear(16, k)) for k in (2, 3)])
