"""Learning-rate schedules, all stepped once per optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, MultiStepLR, OneCycleLR

from dctps.names import lookup


def build_schedule(
    name: str, optimizer: Optimizer, *, total_steps: int, milestones: Sequence[float] = (0.6, 0.8)
) -> LRScheduler:
    """The schedule called `name`, of the learning rates that `optimizer` has now.

    - `"constant"`: that rate throughout.
    - `"multistep"`: a tenth of it from each milestone on.
    - `"onecycle"`: up from 1/25 of it over the first 30% of the steps, then down to 4e-6 of it, both along a
      cosine; momentum and betas stay as they are.

    Args:
        name: of the schedule.
        optimizer: its rates become the base (constant, multistep) or the peak (onecycle).
        total_steps: optimizer steps of the whole run, >= 1.
        milestones: shares of the run, in (0, 1), rising: 0.6 of 20 epochs is the end of epoch 12. As shares
            they keep their meaning when the number of epochs changes.

    Raises:
        ValueError: an unknown name.
    """
    return lookup("schedule", SCHEDULES, name)(optimizer, total_steps, milestones)


def _constant(optimizer: Optimizer, total_steps: int, milestones: Sequence[float]) -> LRScheduler:
    return ConstantLR(optimizer, factor=1.0, total_iters=0)


def _multistep(optimizer: Optimizer, total_steps: int, milestones: Sequence[float]) -> LRScheduler:
    return MultiStepLR(optimizer, [round(share * total_steps) for share in milestones], gamma=0.1)


def _onecycle(optimizer: Optimizer, total_steps: int, milestones: Sequence[float]) -> LRScheduler:
    peak = [group["lr"] for group in optimizer.param_groups]
    return OneCycleLR(optimizer, peak, total_steps=total_steps, cycle_momentum=False)


SCHEDULES: dict[str, Callable[[Optimizer, int, Sequence[float]], LRScheduler]] = {
    "constant": _constant,
    "multistep": _multistep,
    "onecycle": _onecycle,
}
