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
from dctps.training.graph import GraphedPass
from dctps.training.mixup import Mixup
from dctps.training.parallel import Processes

# A GPU is given its next steps while it computes: the loss is looked at after so many of them.
_UNREAD_STEPS = 100

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
    """Sums over the steps of a pass that are done: what its metrics are made of, and how far it is.

    The sums of a batch may stay where they are made: a GPU need not be waited for. `read` brings them over.
    """

    steps: int = 0  # batches seen
    loss: float = 0.0  # cross-entropy in nats, summed over the images
    correct: int = 0  # images classified correctly
    images: int = 0

    def __post_init__(self) -> None:
        self._sums: Tensor | None = None  # loss and correct of all batches, where `add_unread` has made them

    def add(self, loss: float, correct: float, images: int) -> None:
        """Count a batch with the summed `loss`."""
        self.read()
        self._sums = None
        self.steps += 1
        self.loss += loss
        self.correct += int(correct)
        self.images += images

    def add_unread(self, sums: Tensor, images: int) -> None:
        """Count a batch with the summed loss and the correct answers in `sums`, float64 (2,)."""
        if self._sums is None:
            self._sums = sums.new_tensor([self.loss, self.correct])
        self._sums = self._sums + sums
        self.steps += 1
        self.images += images

    def read(self) -> None:
        """Bring `loss` and `correct` up to date."""
        if self._sums is not None:
            loss, correct = self._sums.tolist()
            self.loss, self.correct = loss, int(correct)

    def metrics(self) -> Metrics:
        """The means; `TrainingError` where no image has been seen."""
        self.read()
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
    graph: GraphedPass | None = None,
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
        graph: of the pass, for the batches that it takes, on one process and without mixup.

    Returns:
        The means over the epoch of what each step saw, before it stepped; under mixup of the mixed loss, and
        of the accuracy for the label of the larger weight.

    Raises:
        NonFiniteLoss: the loss of a step is not finite. On a CPU the parameters are those before that step;
            on other devices up to 100 steps may have followed, for which nobody waited.
    """
    model.train()
    tally = Tally() if tally is None else tally
    processes = Processes() if processes is None else processes
    steps_between = 1 if precision.device_type == "cpu" else _UNREAD_STEPS
    for all_images, all_labels in batches:
        if graph is not None and graph.takes(all_images) and not (dynamics is not None and dynamics.due):
            sums = graph(all_images, all_labels)
        else:
            mixed, all_others, weight = all_images, all_labels, 1.0
            if mixup is not None:
                mixed, all_others, weight = mixup(all_images, all_labels, epoch=epoch, step=tally.steps)
            optimizer.zero_grad(set_to_none=True)
            sums = pass_once(model, mixed, all_labels, all_others, weight, precision, processes)
        if steps_between == 1:
            check_finite(float(sums[0]), epoch, tally.steps + 1, optimizer, precision)
        processes.add_gradients_(_parameters(optimizer))
        take_step(optimizer, schedule, precision=precision, clip_norm=clip_norm, dynamics=dynamics)
        tally.add_unread(sums, len(all_labels))
        if tally.steps % steps_between == 0:
            check_sums(tally, epoch, optimizer, precision)
    check_sums(tally, epoch, optimizer, precision)
    return tally.metrics()


def pass_once(
    model: nn.Module,
    all_images: Tensor,
    all_labels: Tensor,
    all_others: Tensor,
    weight: float,
    precision: Precision,
    processes: Processes,
) -> Tensor:
    """Forward and backward pass on this process's share of a batch.

    Args:
        model: gives logits.
        all_images: of the batch, mixed where there is mixup.
        all_labels: those of the images' share `weight`.
        all_others: those of the rest.
        weight: in [0, 1].
        precision: of the forward pass; scales the loss.
        processes: that share the batch.

    Returns:
        The summed loss and the correct answers of all processes, float64 (2,).
    """
    images, labels = processes.share(all_images), processes.share(all_labels)
    part = len(labels) / len(all_labels)
    with precision.autocast():
        logits = model(images)
        # The mean over no image would not be a number.
        loss = _loss(logits, labels, processes.share(all_others), weight) * part if part else logits.sum()
    sums = processes.sums(loss.detach().double() * len(all_labels), _correct(logits, labels))
    precision.scaler.scale(loss).backward()
    return sums


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
        loss = F.cross_entropy(logits.float(), labels, reduction="sum")
        tally.add_unread(torch.stack([loss.double(), _correct(logits, labels).double()]), len(labels))
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


def check_sums(tally: Tally, epoch: int, optimizer: Optimizer, precision: Precision) -> None:
    """Read the sums of an epoch so far, and raise `NonFiniteLoss` if a loss was not finite."""
    tally.read()
    check_finite(tally.loss, epoch, tally.steps, optimizer, precision)


def _loss(logits: Tensor, labels: Tensor, others: Tensor, weight: float) -> Tensor:
    loss = F.cross_entropy(logits, labels)
    return loss if weight == 1 else torch.lerp(F.cross_entropy(logits, others), loss, weight)


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _correct(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(dim=1) == labels).sum()
