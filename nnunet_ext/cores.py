"""How many CPU cores this process may use: a container's share, not the machine's number. No torch at import."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def usable_cores(cgroup: Path = CGROUP) -> int:
    """The CPU cores that this process may use, at least one.

    ``os.cpu_count()`` tells the machine's; a container or a job scheduler may grant fewer, by affinity or by a quota of
    time (Linux control groups, version 2 or 1).

    Args:
        cgroup: where the control group's files are.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroup)
    return max(1, cores if quota is None else min(cores, round(quota)))


def thread_limit(environment: Mapping[str, str] = os.environ) -> int:
    """How many threads to compute with on a CPU: `usable_cores`, or fewer if ``OMP_NUM_THREADS`` says so.

    Args:
        environment: where to look for ``OMP_NUM_THREADS``; values that are not a positive number are ignored.
    """
    wished = environment.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    cores = usable_cores()
    return min(cores, int(wished)) if wished.isdecimal() and int(wished) > 0 else cores


def limit_torch_threads() -> int:
    """Let torch compute on the CPU with no more threads than `thread_limit`; it may already use fewer.

    nnU-Net's commands start as many threads as the machine has cores, whatever ``OMP_NUM_THREADS`` and a container say;
    in a container with two of 64 cores, training would be several times slower.

    Returns:
        The number of threads.
    """
    import torch

    torch.set_num_threads(min(torch.get_num_threads(), thread_limit()))
    return torch.get_num_threads()


def _quota(cgroup: Path) -> float | None:
    """Cores' worth of time that the control group grants; None if it sets no limit."""
    try:
        if (cgroup / "cpu.max").is_file():
            quota, period = (cgroup / "cpu.max").read_text().split()
        else:
            quota, period = ((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return float(quota) / float(period) if float(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max"
        return None
