"""One epoch of training and one pass of evaluation, over any batches of (images, labels)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dctps.dynamic import Dynamics
from dctps.names import lookup
from dctps.training.mixup import Mixup
from dctps.training.parallel import Processes

_DTYPES = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to change."""


class NonFiniteLoss(TrainingError):  # noqa: N818
    """The loss of a step is infinite or not a number."""


@dataclass(frozen=True)
class Metrics:
    """Means over the images of one pass: cross-entropy `loss` in nats, and `accuracy` as a fraction."""

    loss: float
    accuracy: float


@dataclass
class Tally:
    """Sums over the steps of a pass that are done: what its metrics are made of, and how far it is."""

    steps: int = 0  # batches seen
    loss: float = 0.0  # cross-entropy in nats, summed over the images
    correct: int = 0  # images classified correctly
    images: int = 0

    def add(self, loss: float, correct: float, images: int) -> None:
        """Count a batch with the summed `loss`."""
        self.steps += 1
        self.loss += loss
        self.correct += int(correct)
        self.images += images

    def metrics(self) -> Metrics:
        """The means; `TrainingError` where no image has been seen."""
        if self.images == 0:
            raise TrainingError("there are no images to go through: check the data set and the batch size")
        return Metrics(self.loss / self.images, self.correct / self.images)


class Precision:
    """Mixed precision: autocast around the forward pass, and for fp16 a loss scaler around the step.

    Args:
        amp: `"off"`, `"bf16"`, or `"fp16"` (with dynamic loss scaling).
        device_type: `"cpu"` or `"cuda"`.

    Raises:
        ValueError: an unknown `amp`.
    """

    def __init__(self, amp: str, device_type: str) -> None:
        self.dtype = lookup("mixed precision (amp)", _DTYPES, amp)
        self.device_type = device_type
        self.scaler = torch.amp.GradScaler(device_type, enabled=amp == "fp16")

    def autocast(self) -> torch.autocast:
        """The context for a forward pass."""
        return torch.autocast(self.device_type, self.dtype, enabled=self.dtype is not None)


def train_epoch(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: Optimizer,
    schedule: LRScheduler,
    *,
    epoch: int,
    precision: Precision,
    clip_norm: float | None = None,
    mixup: Mixup | None = None,
    tally: Tally | None = None,
    processes: Processes | None = None,
    dynamics: Dynamics | None = None,
) -> Metrics:
    """Train `model` once through `batches`, stepping `schedule` after every step of `optimizer`.

    Args:
        model: put into training mode; gives logits (batch, classes).
        batches: images (batch, ...) and int64 labels (batch,) on the model's device; `tqdm(...)` is fine.
        optimizer: over the model's parameters.
        schedule: of `optimizer`, counted in steps.
        epoch: counted from 1, for messages and `mixup`.
        precision: of the forward pass.
        clip_norm: the largest norm of the gradient over all parameters together; a larger one is scaled down.
        mixup: of each batch (None: images and labels as they come).
        tally: of the epoch's earlier steps, where `batches` are the rest of an epoch; kept up to date.
        processes: that share each batch (None: this one alone).
        dynamics: what changes the supports (None: they stay).

    Returns:
        The means over the epoch of what each step saw, before it stepped; under mixup of the mixed loss, and
        of the accuracy for the label of the larger weight.

    Raises:
        NonFiniteLoss: at the first step whose loss is not finite; the parameters are those before that step.
    """
    model.train()
    tally = Tally() if tally is None else tally
    processes = Processes() if processes is None else processes
    for all_images, all_labels in batches:
        mixed, all_others, weight = all_images, all_labels, 1.0
        if mixup is not None:
            mixed, all_others, weight = mixup(all_images, all_labels, epoch=epoch, step=tally.steps)
        images, labels = processes.share(mixed), processes.share(all_labels)
        part = len(labels) / len(all_labels)
        with precision.autocast():
            logits = model(images)
            # The mean over no image would not be a number.
            loss = _loss(logits, labels, processes.share(all_others), weight) * part if part else logits.sum()
        step_loss, correct = processes.sums(loss.item(), _correct(logits, labels))
        check_finite(step_loss, epoch, tally.steps + 1, optimizer, precision)

        optimizer.zero_grad(set_to_none=True)
        precision.scaler.scale(loss).backward()
        processes.add_gradients_(_parameters(optimizer))
        take_step(optimizer, schedule, precision=precision, clip_norm=clip_norm, dynamics=dynamics)
        tally.add(step_loss * len(all_labels), correct, len(all_labels))
    return tally.metrics()


def take_step(
    optimizer: Optimizer,
    schedule: LRScheduler,
    *,
    precision: Precision,
    clip_norm: float | None,
    dynamics: Dynamics | None,
) -> None:
    """One step of the optimizer along the gradients at hand, then of the supports and the learning rate.

    The arguments are those of `train_epoch`; the gradients are scaled by `precision.scaler`.
    """
    scaler = precision.scaler
    if clip_norm is not None:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(_parameters(optimizer), clip_norm)
    scale = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    if dynamics is not None:
        dynamics.step()
    # A scale that went down means that fp16 gradients overflowed and the optimizer did not step.
    if scaler.get_scale() >= scale:
        schedule.step()


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, precision: Precision) -> Metrics:
    """The mean loss and the accuracy of `model`, in evaluation mode, over `batches`.

    Args:
        model: its mode is put back as it was.
        batches: as for `train_epoch`.
        precision: of the forward pass.
    """
    was_training = model.training
    model.eval()
    tally = Tally()
    for images, labels in batches:
        with precision.autocast():
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels, reduction="sum").item()
        tally.add(loss, _correct(logits, labels), len(labels))
    model.train(was_training)
    return tally.metrics()


def check_finite(loss: float, epoch: int, step: int, optimizer: Optimizer, precision: Precision) -> None:
    """Raise `NonFiniteLoss` for a loss, at `step` of `epoch`, that is infinite or not a number."""
    if math.isfinite(loss):
        return
    lr = optimizer.param_groups[0]["lr"]
    remedies = "a lower --lr, or --clip-norm 1"
    if precision.dtype is not None:
        remedies += ", or --amp off"
    where = f"epoch {epoch}, step {step}, learning rate {lr:.3g}"
    raise NonFiniteLoss(f"the loss became {loss} at {where}: try {remedies}")


def _loss(logits: Tensor, labels: Tensor, others: Tensor, weight: float) -> Tensor:
    loss = F.cross_entropy(logits, labels)
    return loss if weight == 1 else torch.lerp(F.cross_entropy(logits, others), loss, weight)


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _correct(logits: Tensor, labels: Tensor) -> int:
    return int((logits.argmax(dim=1) == labels).sum())
