"""The networks against the tables of their papers, layer by layer in the order in which they are applied."""

import math

import pytest
import torch
from torch import nn

import dctps
from dctps.models import build_model, list_models
from dctps.models.registry import MODELS
from dctps.training import build_optimizer, parameter_groups


def applied(name, classes=10, in_channels=3, image_size=32):
    """(weight shape, groups, pixels a side of the output) of each layer as the forward pass meets it."""
    with torch.device("meta"):
        model = build_model(name, classes, in_channels, image_size)
        images = torch.zeros(2, in_channels, image_size, image_size)
    rows = []

    def record(layer, inputs, output):
        conv = isinstance(layer, nn.Conv2d)
        rows.append((tuple(layer.weight.shape), layer.groups if conv else 1, output.shape[-1] if conv else 1))

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(record)
    assert model(images).shape == (2, classes)
    layers = sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules())
    assert layers == len(rows)  # each once
    weights = sum(math.prod(shape) for shape, _, _ in rows)
    return rows, weights, sum(p.numel() for p in model.parameters()) - weights


# He et al., table 1: the channels of a stage's convolutions, and how many blocks each network has of them.
BASIC = [[(3, c), (3, c)] for c in (64, 128, 256, 512)]
BOTTLENECK = [[(1, c), (3, c), (1, 4 * c)] for c in (64, 128, 256, 512)]
RESNETS = {
    "resnet18": (BASIC, (2, 2, 2, 2)),
    "resnet34": (BASIC, (3, 4, 6, 3)),
    "resnet50": (BOTTLENECK, (3, 4, 6, 3)),
    "resnet101": (BOTTLENECK, (3, 4, 23, 3)),
    "resnet110": (BOTTLENECK, (3, 4, 26, 3)),
    "resnet152": (BOTTLENECK, (3, 8, 36, 3)),
}


@pytest.mark.parametrize("name", RESNETS)
@pytest.mark.parametrize(("classes", "size"), [(10, 32), (100, 32), (200, 64)])
def test_resnets(name, classes, size):
    """A 3x3 stem; later stages halve the image in their first 3x3; 1x1 shortcuts where shapes change."""
    stages, counts = RESNETS[name]
    expected, channels, side = [((64, 3, 3, 3), 1, size)], 64, size
    for stage, (block, count) in enumerate(zip(stages, counts, strict=True)):
        for index in range(count):
            entering, before = channels, side
            if stage > 0 and index == 0:
                side //= 2
            seen_3x3 = False
            for kernel, width in block:
                seen_3x3 |= kernel == 3
                expected.append(((width, channels, kernel, kernel), 1, side if seen_3x3 else before))
                channels = width
            if index == 0 and (stage > 0 or entering != channels):
                expected.append(((channels, entering, 1, 1), 1, side))
    expected.append(((classes, channels), 1, 1))
    rows, weights, others = applied(name, classes, image_size=size)
    assert rows == expected
    # gamma and beta of the BatchNorm behind every convolution, and the classifier's bias
    assert others == 2 * sum(shape[0] for shape, _, _ in rows[:-1]) + classes
    # Depth in a network's name counts the longest path, without shortcuts.
    assert len(rows) - sum(count > 0 for count in counts) + (stages is BASIC) == int(name[6:])
    totals = {("resnet50", 10): 23_467_712, ("resnet50", 100): 23_652_032}
    assert weights == totals.get((name, classes), weights)


@pytest.mark.parametrize(
    ("name", "depth"),
    [("resnet20", 20), ("resnet32", 32), ("resnet44", 44), ("resnet56", 56), ("resnet110-basic", 110)]
    + [(f"fixup-resnet{depth}", depth) for depth in (20, 32, 44, 56, 110)],
)
@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_resnets(name, depth, classes):
    """He et al., section 4.2: 6n + 2 layers, 2n each on 32, 16 and 8 pixels with 16, 32 and 64 channels."""
    n = (depth - 2) // 6
    expected = [((16, 3, 3, 3), 1, 32)]
    expected += [((16, 16, 3, 3), 1, 32)] * (2 * n)
    expected += [((32, 16, 3, 3), 1, 16)] + [((32, 32, 3, 3), 1, 16)] * (2 * n - 1)
    expected += [((64, 32, 3, 3), 1, 8)] + [((64, 64, 3, 3), 1, 8)] * (2 * n - 1)
    expected += [((classes, 64), 1, 1)]
    rows, weights, others = applied(name, classes)
    assert rows == expected
    assert len(rows) == depth
    if name.startswith("fixup"):
        # four biases and a scale for each of 3n blocks, two biases besides, the classifier's bias
        assert others == 5 * 3 * n + 2 + classes
    if (name, classes) == ("fixup-resnet110", 10):
        assert (weights, others) == (1_719_856, 282)


# Simonyan and Zisserman, table 1, columns A, B, D, E; | is max-pooling.
VGGS = {
    "vgg11": "64 | 128 | 256 256 | 512 512 | 512 512",
    "vgg13": "64 64 | 128 128 | 256 256 | 512 512 | 512 512",
    "vgg16": "64 64 | 128 128 | 256 256 256 | 512 512 512 | 512 512 512",
    "vgg19": "64 64 | 128 128 | 256 256 256 256 | 512 512 512 512 | 512 512 512 512",
}


@pytest.mark.parametrize("name", VGGS)
@pytest.mark.parametrize(("classes", "size"), [(10, 32), (100, 32), (200, 64)])
def test_vgg(name, classes, size):
    expected, channels, side = [], 3, size
    for word in VGGS[name].split():
        if word == "|":
            side //= 2
        else:
            expected.append(((int(word), channels, 3, 3), 1, side))
            channels = int(word)
    expected.append(((classes, 512), 1, 1))
    rows, weights, _ = applied(name, classes, image_size=size)
    assert rows == expected
    totals = {("vgg19", 10): 20_024_000, ("vgg19", 100): 20_070_080}
    assert weights == totals.get((name, classes), weights)


@pytest.mark.parametrize(("classes", "size"), [(10, 32), (100, 32), (200, 64)])
def test_mobilenetv2(classes, size):
    """Sandler et al., table 2 (t, c, n, s), with stride 1 in the stem and in the stage of 24 channels."""
    table = [(1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2)]
    table += [(6, 320, 1, 1)]
    expected, channels, side = [((32, 3, 3, 3), 1, size)], 32, size
    for t, c, n, s in table:
        for stride in [s] + [1] * (n - 1):
            wide, before = t * channels, side
            side //= stride
            expected += [
                ((wide, channels, 1, 1), 1, before),
                ((wide, 1, 3, 3), wide, side),
                ((c, wide, 1, 1), 1, side),
            ]
            if stride == 1 and channels != c:
                expected.append(((c, channels, 1, 1), 1, side))
            channels = c
    expected += [((1280, 320, 1, 1), 1, side), ((classes, 1280), 1, 1)]
    rows, weights, _ = applied("mobilenetv2", classes, image_size=size)
    assert rows == expected
    totals = {10: 2_261_824, 100: 2_377_024}
    assert weights == totals.get(classes, weights)


def test_sizes_that_a_network_cannot_take_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match="lenet5 takes images of 32 x 32 pixels, not 64 x 64: resize"):
        build_model("lenet5", 10, 3, 64)
    with pytest.raises(ValueError, match="too often for 8 pixels: give it 16 or more"):
        build_model("vgg11", 10, 3, 8)


SMALL = ("fixup-resnet20", "lenet5", "mobilenetv2", "resnet20")
CASES = [(name, density) for name in SMALL for density in (1e-4, 1e-3, 1e-2, 0.1, 0.5)]
OURS = [name for name in list_models() if MODELS.find(name).__module__.startswith("dctps.")]  # not a test's
CASES += [(name, 1e-4) for name in OURS if name not in SMALL]


@pytest.mark.parametrize(("name", "density"), CASES)
def test_a_meta_built_network_takes_a_training_step(name, density):
    with torch.device("meta"):
        model = build_model(name, 10, 3)
    dctps.sparsify_(model, density, offset="dct" if "fixup" in name else "sdct", alpha="match")
    report = dctps.report(model)
    assert report.nnz == round(density * report.weights)
    size = 32 if name == "lenet5" else 16
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    optimizer = build_optimizer("adam", parameter_groups(model, 5e-4), lr=1e-3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    nn.functional.cross_entropy(model(images), torch.tensor([3, 7])).backward()
    optimizer.step()
    after = dict(model.named_parameters())
    assert all(bool(torch.isfinite(p).all()) for p in after.values())
    moved = {name.rsplit(".", 1)[-1] for name, p in after.items() if not torch.equal(p, before[name])}
    assert {"alpha", "bias"} <= moved
