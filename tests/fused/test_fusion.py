"""A network with fused norms trains as the plain one, and saves no more for its backward pass."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, update_bn

from dctps import fuse_, merge_, plain_norms_, share_norms_, sparsify_, unfuse_
from dctps.benchmarking.memory import saved_bytes
from dctps.fused import norm
from dctps.fused.norm import FusedBatchNorm2d
from dctps.kernels import runnable_variants
from dctps.models import build_model

pytestmark = pytest.mark.skipif(not runnable_variants(), reason="the native kernels were not compiled")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small images are taken too."""
    monkeypatch.setattr(norm, "_SMALL", 0)


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)


class Bottleneck(nn.Module):
    """As most code writes it: one ReLU in several places, in place, and an addition in place."""

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = conv(width, 2 * width, 1), nn.BatchNorm2d(2 * width)
        self.relu = nn.ReLU(inplace=True)
        self.down = nn.Sequential(conv(inputs, 2 * width, 1, stride), nn.BatchNorm2d(2 * width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += self.down(x)
        return self.relu(y)


class Inverted(nn.Module):
    """With ReLU6, and an addition that no activation follows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(width, 3 * width, 1), nn.BatchNorm2d(3 * width), nn.ReLU6(inplace=True),
            conv(3 * width, 3 * width, groups=3 * width), nn.BatchNorm2d(3 * width), nn.ReLU6(inplace=True),
            conv(3 * width, width, 1), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class PreActivated(nn.Module):
    """The norm's own input goes on, and two layers read its result."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bn, self.left, self.right = nn.BatchNorm2d(width), conv(width, width), conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn(x))
        return x + self.left(y) + self.right(y)


def network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    stem = conv(3, 12), nn.BatchNorm2d(12), nn.ReLU()
    match kind:
        case "vgg":
            rest = (
                conv(12, 20),
                nn.BatchNorm2d(20),
                nn.ReLU(),
                nn.MaxPool2d(2),
                conv(20, 24),
                nn.BatchNorm2d(24),
            )
            return nn.Sequential(*stem, *rest, nn.ReLU(), *head, nn.Linear(24, 5))
        case "resnet":
            return nn.Sequential(*stem, Bottleneck(12, 8), Bottleneck(16, 9, 2), *head, nn.Linear(18, 5))
        case "mobilenet":
            last = conv(12, 30, 1), nn.BatchNorm2d(30), nn.ReLU6()
            return nn.Sequential(*stem, Inverted(12), Inverted(12), *last, *head, nn.Linear(30, 5))
        case "pre-activated":
            return nn.Sequential(*stem[:1], PreActivated(12), PreActivated(12), *head, nn.Linear(12, 5))
    return build_model(kind, 5, 3, 16)


SHALLOW = ("vgg", "resnet", "mobilenet", "pre-activated")


def trained(model: nn.Module, order: torch.memory_format, steps: int = 20, lr: float = 0.01) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9 if lr == 0.01 else 0)
    for _ in range(steps):
        x = torch.randn(8, 3, 16, 16, generator=generator).contiguous(memory_format=order)
        optimizer.zero_grad()
        F.cross_entropy(model(x), torch.randint(5, (8,), generator=generator)).backward()
        optimizer.step()
    return model


def distance(a: nn.Module, b: nn.Module) -> float:
    """||a - b|| / ||a|| of all that a state holds."""
    left, right = (torch.cat([t.double().flatten() for t in m.state_dict().values()]) for m in (a, b))
    return float((left - right).norm() / left.norm())


@pytest.mark.parametrize(("kind", "order"), [
    *((kind, torch.channels_last) for kind in (*SHALLOW, "resnet20")),
    *((kind, torch.contiguous_format) for kind in SHALLOW),
])  # fmt: skip
def test_twenty_steps_are_those_of_the_plain_network(kind: str, order: torch.memory_format) -> None:
    """The deep one at a small rate: at a large one it comes apart from itself in another order of memory."""
    plain = network(kind)
    fused = fuse_(copy.deepcopy(plain))
    for model in (plain, fused):
        trained(model, order, lr=0.01 if kind in SHALLOW else 1e-4)
    assert distance(plain, fused) <= 1e-5
    norms = [m for m in fused.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(type(m) is FusedBatchNorm2d for m in norms)
    x = torch.randn(4, 3, 16, 16)
    fused.load_state_dict(plain.state_dict())
    with torch.inference_mode():
        assert torch.allclose(fused.eval()(x), plain.eval()(x), rtol=1e-4, atol=1e-5)
    # Every norm has found what follows it: where nothing does it has stopped waiting.
    followed = {m.waits_for for m in norms}
    assert "activation" in followed
    if kind.startswith("mobilenet"):
        assert "addition" in followed


@pytest.mark.parametrize("kind", (*SHALLOW, "mobilenetv2"))
def test_no_more_is_saved_for_the_backward_pass(kind: str) -> None:
    plain = network(kind)
    fused = fuse_(copy.deepcopy(plain))
    x = torch.randn(8, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    fused(x)
    channels = sum(m.num_features for m in fused.modules() if isinstance(m, nn.BatchNorm2d))
    # Beside x each has four numbers for each channel; torch's has two.
    assert saved_bytes(fused, x) <= saved_bytes(plain, x) + 2 * 4 * channels


def test_the_numbers_of_each_step_do_not_depend_on_what_was_learnt() -> None:
    """The first calls compute by other ways than later ones, with the same bits."""
    fresh = fuse_(sparsify_(network("mobilenetv2"), 0.01))
    used = copy.deepcopy(fresh)
    state = copy.deepcopy(used.state_dict())
    trained(used, torch.channels_last, 2)
    used.load_state_dict(state)
    assert {m.waits_for for m in used.modules() if isinstance(m, FusedBatchNorm2d)} > {"activation"}
    trained(used, torch.channels_last, 3), trained(fresh, torch.channels_last, 3)
    assert all(
        torch.equal(a, b)
        for a, b in zip(used.state_dict().values(), fresh.state_dict().values(), strict=True)
    )


def test_merge_and_unfuse_undo_it() -> None:
    model = fuse_(sparsify_(network("resnet"), 0.1))
    assert type(model[1]) is FusedBatchNorm2d
    trained(model, torch.channels_last, 1)
    assert type(unfuse_(copy.deepcopy(model))[1]) is nn.BatchNorm2d
    x = torch.randn(2, 3, 16, 16)
    expected = model.eval()(x)
    merged = merge_(model)
    assert not any(type(m) is FusedBatchNorm2d for m in merged.modules()) and not hasattr(
        merged[1], "waits_for"
    )
    assert torch.allclose(merged(x), expected, rtol=1e-3, atol=1e-4)


def test_fused_before_or_after_other_changes() -> None:
    before, after = (network("resnet") for _ in range(2))
    sparsify_(fuse_(before), 0.1), fuse_(sparsify_(after, 0.1))
    assert distance(trained(before, torch.channels_last, 3), trained(after, torch.channels_last, 3)) == 0
    for change in (plain_norms_, share_norms_):
        plain, fused = change(network("resnet")), change(fuse_(network("resnet")))
        assert (
            distance(trained(plain, torch.channels_last, 3), trained(fused, torch.channels_last, 3)) <= 1e-5
        )
    with torch.device("meta"):
        meta = fuse_(build_model("resnet20", 5, 3, 16))
    built = trained(sparsify_(meta, 0.1), torch.channels_last, 1)
    assert any(type(m) is FusedBatchNorm2d for m in built.modules())


def test_averages_and_their_statistics_are_torchs() -> None:
    averages = []
    for change in (lambda m: m, fuse_):
        model = change(network("resnet"))
        average = AveragedModel(model, avg_fn=get_ema_avg_fn(0.9))
        trained(model, torch.channels_last, 2)
        average.update_parameters(model)
        generator = torch.Generator().manual_seed(0)
        update_bn([torch.randn(8, 3, 16, 16, generator=generator) for _ in range(3)], average)
        averages.append(average)
    assert distance(*averages) <= 1e-5


def test_subclasses_and_other_norms_stay() -> None:
    class Own(nn.BatchNorm2d):
        pass

    model = fuse_(nn.Sequential(Own(3), nn.BatchNorm1d(3), nn.GroupNorm(1, 3), nn.SyncBatchNorm(3)))
    assert [type(m) for m in model] == [Own, nn.BatchNorm1d, nn.GroupNorm, nn.SyncBatchNorm]
    assert type(fuse_(nn.BatchNorm2d(3))) is FusedBatchNorm2d
