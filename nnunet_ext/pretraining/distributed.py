"""The processes of a training: one, or as many as torchrun (or any launcher with its variables) has started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_ext.errors import UserError

PATIENCE = timedelta(days=2)  # while the first process prepares images, the others wait


@dataclass(frozen=True)
class Processes:
    """This process among all.

    Attributes:
        rank: its number.
        world: how many there are.
        device: what it computes on.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """The one that writes files."""
        return self.rank == 0

    def wrapped(self, module: nn.Module) -> nn.Module:
        """The module in DistributedDataParallel where there are several processes."""
        if self.world == 1:
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=devices)

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process."""
        if self.world == 1:
            return flag
        value = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return bool(value.item())

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """The mean of each number over the processes."""
        if self.world == 1:
            return values
        tensor = torch.tensor(list(values.values()), dtype=torch.float64).to(self.device, torch.float32)
        dist.all_reduce(tensor)
        return dict(zip(values, (tensor / self.world).tolist(), strict=True))

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """Rank 0 goes through the block first, then all others, however long it takes."""
        group: Any = None if self.world == 1 else dist.new_group(backend="gloo", timeout=PATIENCE)
        if group is not None and not self.is_first:
            dist.barrier(group)
        yield
        if group is not None and self.is_first:
            dist.barrier(group)


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """Join the other processes by torchrun's variables RANK, LOCAL_RANK and WORLD_SIZE; without them there is one.

    Args:
        device: "cuda", "cpu" or "mps"; of several GPUs, LOCAL_RANK tells which.

    Raises:
        UserError: variables that contradict each other, or more processes on a machine than GPUs.
    """
    rank, world, local = (
        _variable(name, default) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    if not 0 <= rank < world:
        raise UserError(f"RANK={rank} and WORLD_SIZE={world}: a rank is from 0 to WORLD_SIZE - 1; start with torchrun")
    if device == "mps" and world > 1:
        raise UserError(f"{world} processes cannot share this device: start one, or use -device cpu")
    if device == "cuda":
        if world > 1 and "LOCAL_RANK" not in os.environ:
            raise UserError(
                f"WORLD_SIZE={world}, but LOCAL_RANK is not set: all processes would take the first GPU; start with "
                "torchrun, or set it to the number of the process on its machine"
            )
        if local >= torch.cuda.device_count():
            raise UserError(
                f"LOCAL_RANK={local}, but this machine has {torch.cuda.device_count()} GPU(s): start at most so many "
                "processes (torchrun --nproc_per_node)"
            )
        torch.cuda.set_device(local)
        torch.backends.cudnn.benchmark = True  # as nnUNetv2_train: all patches have one size
    chosen = torch.device("cuda", local) if device == "cuda" else torch.device(device)
    ours = world > 1 and not dist.is_initialized()
    if ours:
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield Processes(rank, world, chosen)
    finally:
        if ours:
            dist.destroy_process_group()


def _variable(name: str, default: int) -> int:
    value = os.environ.get(name, str(default))
    if not value.isdecimal():
        raise UserError(f"the environment variable {name} must be a number, got {value!r}; start with torchrun")
    return int(value)
