"""Work of a process in a group over gloo."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


def in_group(rank: int, port: int, work: Callable[..., T], *arguments: object) -> T:
    """`work(rank, *arguments)` in a group of two processes of one thread, which is left behind it.

    DDP and FSDP hold the group. Its threads must not outlive it, or the process aborts now and then at its
    end: so all that `work` made is gone before the group is.
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    found = work(rank, *arguments)
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()
    return found
