"""How many cores and threads are taken, where a container grants fewer than the machine has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from nnunet_ext import cores
from nnunet_ext.cores import limit_torch_threads, thread_limit, usable_cores


@pytest.fixture
def sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)


@pytest.mark.usefixtures("sixteen_cores")
@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 16),
        ({"cpu.max": "max 100000\n"}, 16),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "6400000 100000\n"}, 16),
        ({"cpu.max": "nonsense"}, 16),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 16),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
    ],
)
def test_quota_of_a_container_counts(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert usable_cores(tmp_path) == expected


@pytest.mark.usefixtures("sixteen_cores")
@pytest.mark.parametrize(
    ("wished", "expected"), [("", 16), ("1", 1), ("4,2", 4), ("64", 16), ("0", 16), ("-3", 16), ("many", 16)]
)
def test_omp_num_threads_is_honoured(monkeypatch: pytest.MonkeyPatch, wished: str, expected: int) -> None:
    monkeypatch.setattr(cores, "_quota", lambda cgroup: None)
    assert thread_limit({"OMP_NUM_THREADS": wished}) == expected


def test_torch_gets_no_more_threads_than_it_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(usable_cores() + 3)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        assert limit_torch_threads() == torch.get_num_threads() == usable_cores()
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        assert limit_torch_threads() == torch.get_num_threads() == 1
        monkeypatch.delenv("OMP_NUM_THREADS")
        assert limit_torch_threads() == 1  # never more than there were
    finally:
        torch.set_num_threads(before)
