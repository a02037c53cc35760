import contextlib
import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dctps.training import (
    NonFiniteLoss,
    Precision,
    Tally,
    TrainingError,
    build_optimizer,
    build_schedule,
    evaluate,
    parameter_groups,
    train_epoch,
)

OFF = Precision("off", "cpu")


def two_batches(size=6, features=5, classes=3):
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(n, features, generator=generator),
            torch.randint(0, classes, (n,), generator=generator),
        )
        for n in (size, size - 2)
    ]


def linear():
    torch.manual_seed(1)
    return nn.Linear(5, 3)


def sgd_and_constant(model, lr=0.1):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return optimizer, build_schedule("constant", optimizer, total_steps=10)


def test_an_epoch_is_the_same_as_steps_by_hand():
    model = linear()
    by_hand = copy.deepcopy(model)
    data = two_batches()
    metrics = train_epoch(model, data, *sgd_and_constant(model), epoch=1, precision=OFF)

    loss_sum, correct = 0.0, 0
    for x, y in data:
        logits = F.linear(x, by_hand.weight, by_hand.bias)
        loss = -logits.log_softmax(1)[torch.arange(len(y)), y].mean()
        gradients = torch.autograd.grad(loss, list(by_hand.parameters()))
        with torch.no_grad():
            for p, g in zip(by_hand.parameters(), gradients, strict=True):
                p.sub_(0.1 * g)
        loss_sum += loss.item() * len(y)
        correct += sum(int(row.argmax() == label) for row, label in zip(logits, y, strict=True))
    torch.testing.assert_close(model.weight, by_hand.weight)
    assert metrics.loss == pytest.approx(loss_sum / 10, rel=1e-6)
    assert metrics.accuracy == correct / 10


def test_clip_norm_bounds_the_step_over_all_parameters():
    model = linear()
    before = torch.cat([p.detach().clone().flatten() for p in model.parameters()])
    train_epoch(
        model, two_batches()[:1], *sgd_and_constant(model, lr=1.0), epoch=1, precision=OFF, clip_norm=1e-3
    )
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert (after - before).norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_evaluate_does_not_train_and_puts_the_mode_back():
    model = nn.Sequential(nn.Dropout(0.9), linear())
    state = copy.deepcopy(model.state_dict())
    data = two_batches()
    metrics = evaluate(model, data, precision=OFF)
    assert model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name])
    x, y = torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])
    logits = model[1](x)
    assert metrics.loss == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-6)
    assert metrics.accuracy == pytest.approx((logits.argmax(1) == y).float().mean().item())


def test_a_loss_that_is_not_finite_stops_before_the_step_and_says_what_to_do():
    model = linear()
    (x, y), good = two_batches()
    bad = (x * math.nan, y)
    optimizer, schedule = sgd_and_constant(model, lr=0.25)
    train_epoch(model, [good], optimizer, schedule, epoch=1, precision=OFF)
    before = model.weight.detach().clone()
    with pytest.raises(
        NonFiniteLoss, match=r"nan at epoch 3, step 1, learning rate 0\.25: try a lower --lr"
    ) as info:
        train_epoch(model, [bad], optimizer, schedule, epoch=3, precision=OFF)
    assert isinstance(info.value, TrainingError)
    assert torch.equal(model.weight, before)


def test_no_images_is_an_error():
    with pytest.raises(TrainingError, match="no images"):
        evaluate(linear(), [], precision=OFF)


class Recording(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = linear()

    def forward(self, x):
        logits = self.linear(x)
        self.dtype = logits.dtype
        return logits


@pytest.mark.parametrize(
    ("amp", "dtype"), [("off", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_amp_sets_the_dtype_of_the_forward_pass_and_trains_float32_parameters(amp, dtype):
    model = Recording()
    before = model.linear.weight.detach().clone()
    precision = Precision(amp, "cpu")
    train_epoch(model, two_batches(), *sgd_and_constant(model), epoch=1, precision=precision)
    assert model.dtype == dtype
    assert model.linear.weight.dtype == torch.float32
    assert not torch.equal(model.linear.weight, before)
    evaluate(model, two_batches(), precision=precision)
    assert model.dtype == dtype


def test_fp16_gradients_that_overflow_skip_the_step_and_the_schedule():
    model = linear()
    before = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    schedule = build_schedule("onecycle", optimizer, total_steps=10)
    lr = optimizer.param_groups[0]["lr"]
    # Times the scaler's first scale of 65536 the gradient is beyond fp16's range; the loss is not.
    x, y = two_batches()[0]
    precision = Precision("fp16", "cpu")
    train_epoch(model, [(x * 50, y)], optimizer, schedule, epoch=1, precision=precision)
    assert torch.equal(model.weight, before)
    assert optimizer.param_groups[0]["lr"] == lr


def test_unknown_amp():
    with pytest.raises(ValueError, match="did you mean 'bf16'"):
        Precision("bf61", "cpu")


class Reads(TorchDispatchMode):
    """Counts what a GPU would be waited for: numbers that are read, by torch and as lists."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.count, tolist = 0, torch.Tensor.tolist

        def counted(tensor):
            self.count += 1
            return tolist(tensor)

        monkeypatch.setattr(torch.Tensor, "tolist", counted)

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.count += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize("amp", ["off", "bf16"])
@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_steps_on_a_gpu_are_not_waited_for(amp, name, monkeypatch):
    """As on a GPU, whose fused optimizers count their steps on the device; here one is asked for as such."""
    model = linear()
    optimizer = build_optimizer(name, parameter_groups(model, 0.0), lr=0.1)
    schedule = build_schedule("onecycle", optimizer, total_steps=400)
    precision = Precision(amp, "cpu")
    precision.device_type = "cuda"
    precision.autocast = lambda: torch.autocast("cpu", precision.dtype, enabled=precision.dtype is not None)
    data, tally = two_batches() * 60, Tally()
    with Reads(monkeypatch) as reads:
        metrics = train_epoch(
            model, data, optimizer, schedule, epoch=1, precision=precision, tally=tally, clip_norm=1.0
        )
    assert reads.count == 3  # after step 100, at the end, and for the metrics
    assert tally.steps == 120 and metrics.loss == tally.loss / 600
    with Reads(monkeypatch) as reads:
        evaluate(model, data, precision=precision)
    assert reads.count == 1


def test_where_sums_are_read_changes_no_number():
    model, other = linear(), linear()
    on_gpu = Precision("off", "cpu")
    on_gpu.device_type = "cuda"
    on_gpu.autocast = contextlib.nullcontext
    found = [
        train_epoch(m, two_batches() * 60, *sgd_and_constant(m), epoch=1, precision=precision)
        for m, precision in ((model, OFF), (other, on_gpu))
    ]
    assert found[0] == found[1] and torch.equal(model.weight, other.weight)
    tally = Tally()
    train_epoch(model, two_batches(), *sgd_and_constant(model), epoch=1, precision=on_gpu, tally=tally)
    again = Tally(tally.steps, tally.loss, tally.correct, tally.images)
    for each in (tally, again):
        each.add_unread(torch.tensor([0.1, 3.0], dtype=torch.float64), 5)
    assert tally.metrics() == again.metrics()


def test_a_loss_that_is_not_finite_is_found_within_100_steps_on_a_gpu():
    model = linear()
    (x, y), good = two_batches()
    on_gpu = Precision("off", "cpu")
    on_gpu.device_type = "cuda"
    on_gpu.autocast = contextlib.nullcontext
    seen = []
    data = [good] * 130 + [(x * math.nan, y)] + [good] * 200
    with pytest.raises(NonFiniteLoss, match=r"nan at epoch 3, step 200, learning rate"):
        train_epoch(
            model,
            (seen.append(b) or b for b in data),
            *sgd_and_constant(model),
            epoch=3,
            precision=on_gpu,
        )
    assert len(seen) == 200
