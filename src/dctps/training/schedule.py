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


SCHEDULES: dict[str, Callable[[Optimizer, int, Sequence[float]], LRScheduler]] = {
    "constant": lambda optimizer, steps, milestones: ConstantLR(optimizer, factor=1.0, total_iters=0),
    "multistep": lambda optimizer, steps, milestones: MultiStepLR(
        optimizer, [round(share * steps) for share in milestones], gamma=0.1
    ),
    "onecycle": lambda optimizer, steps, milestones: OneCycleLR(
        optimizer, [group["lr"] for group in optimizer.param_groups], total_steps=steps, cycle_momentum=False
    ),
}
