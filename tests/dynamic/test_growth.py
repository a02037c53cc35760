"""The largest gradients outside the support: torch.autograd's dense gradient, sorted."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.support.memory import PeakBytes
from torch import nn

import dctps
from dctps import DpSConv1d, DpSConv2d, DpSLinear
from dctps.dynamic import largest_gradients
from dctps.nn import DpSLayer
from dctps.selection.criteria import offset as on_offset


def whole_numbers(*shape, seed, most=3):
    """Small whole numbers, whose sums of products are exact, so that ties are ties."""
    return torch.randint(-most, most + 1, shape, generator=torch.Generator().manual_seed(seed))


@st.composite
def cases(draw):
    groups = draw(st.integers(1, 4))
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    seed = draw(st.integers(0, 2**20))
    if draw(st.booleans()):
        n, m = draw(st.integers(1, 12)), draw(st.integers(1, 12))
        lead = draw(st.lists(st.integers(1, 3), max_size=3))
        nnz = draw(st.integers(0, n * m))
        layer = DpSLinear(n, m, nnz=nnz, seed=seed, dtype=dtype)
        return layer, (*lead, n), seed
    if draw(st.booleans()):
        channels, filters = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
        padding = draw(st.sampled_from([0, 2, "same", "valid"]))
        layer = DpSConv1d(
            channels, filters, kernel[0], 1 if padding == "same" else kernel[1], padding,
            draw(st.integers(1, 2)), groups, padding_mode=draw(st.sampled_from(["zeros", "circular"])),
            nnz=draw(st.integers(0, filters * channels // groups * kernel[0])), seed=seed, dtype=dtype,
        )  # fmt: skip
        return layer, (*draw(st.sampled_from([(), (1,), (3,)])), channels, draw(st.integers(5, 8))), seed
    channels, filters = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    padding = draw(st.sampled_from([0, 1, (1, 2), "same", "valid"]))
    stride = 1 if padding == "same" else draw(st.tuples(st.integers(1, 2), st.integers(1, 3)))
    size = filters * channels // groups * kernel[0] * kernel[1]
    layer = DpSConv2d(
        channels, filters, kernel, stride, padding, draw(st.integers(1, 2)), groups,
        padding_mode=draw(st.sampled_from(["zeros", "circular"])),
        offset=draw(st.sampled_from(["dct", "zero"])), nnz=draw(st.integers(0, size)), seed=seed, dtype=dtype,
    )  # fmt: skip
    batch = draw(st.sampled_from([(), (1,), (3,)]))
    return layer, (*batch, channels, draw(st.integers(5, 8)), draw(st.integers(5, 8))), seed


def dense_gradient(layer, pairs):
    dense = layer.merged()
    for x, g in pairs:
        dense(x).backward(g)
    return dense.weight.grad.flatten()


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # of torch's own layer
@given(cases(), st.floats(0, 1), st.integers(1, 400), st.integers(1, 2))
def test_equals_the_sorted_dense_gradient(case, share, block_bytes, uses):
    layer, shape, seed = case
    pairs = []
    for use in range(uses):
        x = whole_numbers(*shape, seed=seed + use).to(layer.values.dtype)
        pairs.append((x, whole_numbers(*layer(x).shape, seed=seed + 7 + use).to(x.dtype)))
    gradient = dense_gradient(layer, pairs).abs()
    count = round(share * (len(gradient) - layer.nnz))
    growth = largest_gradients(layer, pairs, count, block_bytes=block_bytes)

    inside = set(layer.support.tolist())
    free = [p for p in range(len(gradient)) if p not in inside and gradient[p] > 0]
    expected = sorted(sorted(free, key=lambda p: (-float(gradient[p]), p))[:count])
    assert growth.positions.tolist() == expected
    assert torch.equal(growth.scores, gradient[growth.positions])
    if count:
        assert torch.equal(growth.at_support, gradient[layer.support])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_ranked_in_float32(dtype):
    layer = DpSLinear(300, 200, density=0.01)
    x, g = (torch.randn(64, n, generator=torch.Generator().manual_seed(n)).to(dtype) for n in (300, 200))
    gradient = (g.double().T @ x.double()).flatten().abs()
    gradient[layer.support] = 0
    growth = largest_gradients(layer, [(x, g)], 100)
    assert growth.scores.dtype == torch.float32
    assert set(growth.positions.tolist()) == set(gradient.topk(100).indices.tolist())


def test_many_chunks_with_ties():
    """More scores than are sorted at a time, of few different sizes."""
    layer = DpSLinear(700, 600, density=0.001)
    x, g = whole_numbers(2, 700, seed=0, most=1).float(), whole_numbers(2, 600, seed=1, most=1).float()
    gradient = (g.T @ x).flatten().abs()
    gradient[layer.support] = 0
    for count in (1, 1000, 40_000, 200_000):
        growth = largest_gradients(layer, [(x, g)], count, block_bytes=100_000)
        expected = gradient.sort(descending=True, stable=True).indices[:count]
        expected = expected[gradient[expected] > 0].sort().values
        assert torch.equal(growth.positions, expected)


def test_blocks_are_summed_over_processes_one_by_one():
    layer = DpSConv2d(6, 8, 3, groups=2, nnz=20)
    x = whole_numbers(2, 6, 5, 5, seed=0).float()
    g = whole_numbers(2, 8, 3, 3, seed=1).float()
    sizes = []

    def double(block):
        sizes.append(block.nbytes)
        return block.mul_(2)

    alone = largest_gradients(layer, [(x, g)], 30)
    growth = largest_gradients(layer, [(x, g)], 30, block_bytes=300, reduce=double)
    assert torch.equal(growth.positions, alone.positions)
    assert torch.equal(growth.scores, 2 * alone.scores)
    assert max(sizes) <= 300
    assert sum(sizes) == 4 * 8 * 27
    # a process whose share of the batch is empty takes part with zeros
    assert len(largest_gradients(layer, [], 30, reduce=lambda block: None).positions) == 0
    empty = [(x[:0], g[:0])]
    assert len(largest_gradients(layer, empty, 30).positions) == 0


@pytest.mark.parametrize("channels_last", [False, True])
def test_never_more_than_a_block(channels_last):
    layer = DpSConv2d(512, 512, 3, padding=1, density=0.001)
    x, g = torch.randn(1, 512, 2, 2), torch.randn(1, 512, 2, 2)
    if channels_last:
        x, g = (t.contiguous(memory_format=torch.channels_last) for t in (x, g))
    weights, block = 4 * 512 * 512 * 9, 256 * 1024
    others = 4 * layer.nnz + 40 * (2 * 40 + 9216)
    assert 2 * block + others < weights / 8
    with PeakBytes() as peak:
        largest_gradients(layer, [(x, g)], 40, block_bytes=block)
    assert block <= peak.bytes <= (2 if channels_last else 1) * block + others
    with PeakBytes() as peak:
        largest_gradients(layer, [(x, g)], 40, block_bytes=weights)
    assert peak.bytes >= weights


def test_an_unknown_kind_of_layer_is_named():
    class Other(DpSLayer):
        pass

    layer = DpSLinear(4, 4, nnz=2)
    other = Other()
    other.__dict__.update(layer.__dict__)
    with pytest.raises(TypeError, match="an? Other, is not known"):
        largest_gradients(other, [(torch.ones(1, 4), torch.ones(1, 4))], 2)


@pytest.mark.parametrize("groups", [1, 2])
def test_lines_move_as_images_of_one_row(groups):
    def moved(conv, kernel, shape):
        torch.manual_seed(0)
        model = nn.Sequential(
            conv(4, 6, kernel, padding=(*[0] * (len(kernel) - 1), 1), groups=groups), nn.Tanh(),
            conv(6, 8, kernel, stride=2), nn.Flatten(), nn.Linear(40, 3),
        ).double()  # fmt: skip
        model = dctps.sparsify_(model, 0.2, seed=3)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        rigl = dctps.RigL(model, optimizer, update_interval=1, end=20)
        seen = []
        for _ in range(4):
            optimizer.zero_grad()
            x = torch.randn(9, 4, *shape, dtype=torch.float64)
            nn.functional.cross_entropy(model(x), torch.arange(9) % 3).backward()
            optimizer.step()
            rigl.step()
            seen.append([layer.support.tolist() for layer in model if isinstance(layer, DpSLayer)])
        return seen

    lines, images = moved(nn.Conv1d, (3,), (12,)), moved(nn.Conv2d, (1, 3), (1, 12))
    assert lines == images
    assert lines[0] != lines[-1]


@pytest.mark.parametrize("criterion", ["offset-snip", "offset-gradient"])
def test_criteria_of_the_converted_network_take_groups_in_blocks(criterion, monkeypatch):
    """Depthwise and grouped layers, of images and of lines, ranked by the gradient of one dense network."""
    monkeypatch.setattr(on_offset, "_BLOCK", 7)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(4, 8, 3, groups=4), nn.Tanh(),
        nn.Conv1d(8, 6, 3, padding=2, padding_mode="circular", groups=2),
        nn.Unflatten(2, (2, 6)), nn.Conv2d(6, 6, (1, 3), groups=6), nn.Flatten(), nn.Linear(48, 3),
    ).double()  # fmt: skip
    data = [(torch.randn(5, 4, 12, dtype=torch.float64), torch.randint(3, (5,))) for _ in range(2)]
    dense = dctps.merge_(dctps.sparsify_(copy.deepcopy(model), 0.5, seed=1))
    for layer in dense:  # S is still 0, so that these weights are alpha * D
        layer.requires_grad_(True)
    sum(nn.functional.cross_entropy(dense(x), y) for x, y in data).div(2).backward()
    weights = {name: layer.weight for name, layer in dense.named_modules() if hasattr(layer, "weight")}
    scores = torch.cat([
        (w.grad if criterion == "offset-gradient" else w * w.grad).abs().flatten() for w in weights.values()
    ])  # fmt: skip
    found = dctps.sparsify_(model, 0.1, criterion=criterion, batches=data, seed=1)
    kept, start = [], 0
    for name, w in weights.items():
        kept += (found.get_submodule(name).support + start).tolist()
        start += w.numel()
    assert kept == scores.topk(round(0.1 * start)).indices.sort().values.tolist()
