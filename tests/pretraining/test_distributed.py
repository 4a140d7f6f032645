"""The processes of a training: launchers' variables, and who waits for whom."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.spawn import spawn

from nnunet_ext.errors import UserError
from nnunet_ext.pretraining.distributed import joined

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


@pytest.mark.parametrize(
    ("device", "given", "message"),
    [
        ("cpu", {"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 and WORLD_SIZE=2: a rank is from 0 to WORLD_SIZE - 1"),
        ("cpu", {"RANK": "first"}, "RANK must be a number, got 'first'; start with torchrun"),
        ("mps", {"RANK": "0", "WORLD_SIZE": "2"}, "2 processes cannot share this device: start one"),
        ("cuda", {"RANK": "1", "WORLD_SIZE": "2"}, "LOCAL_RANK is not set: all processes would take the first GPU"),
        ("cuda", {"RANK": "1", "WORLD_SIZE": "99", "LOCAL_RANK": "98"}, r"LOCAL_RANK=98, but this machine has \d+ GPU"),
    ],
)
def test_variables_that_cannot_work(
    device: str, given: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message), joined(device):
        pass


def test_one_process_needs_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with joined("cpu") as one:
        assert (one.rank, one.world, one.is_first, one.device) == (0, 1, True, torch.device("cpu"))
        assert one.any(True)
        assert not one.any(False)
        assert one.mean({"a": 2.0}) == {"a": 2.0}
        with one.first_before_others():
            pass
    assert not torch.distributed.is_initialized()


def test_the_first_goes_before_the_others(tmp_path: Path) -> None:
    """And where it fails, they end too, long before their patience does."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    began = time.monotonic()
    spawn(_one_of_two, (port, str(tmp_path)), nprocs=2)
    assert time.monotonic() - began < 60
    assert (tmp_path / "ended").read_text() == "RuntimeError"


def _one_of_two(rank: int, port: int, folder: str) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK="0", MASTER_ADDR="localhost", MASTER_PORT=str(port))
    made = Path(folder) / "made"
    try:
        with joined("cpu") as both:
            with both.first_before_others():
                if both.is_first:
                    time.sleep(0.5)
                    made.touch()
                assert made.exists()
            assert both.any(both.is_first)
            assert both.mean({"rank": float(rank)}) == {"rank": 0.5}
            with both.first_before_others():
                if both.is_first:
                    raise UserError("no image can be used")
    except UserError:
        assert rank == 0
    except RuntimeError as error:
        (Path(folder) / "ended").write_text(type(error).__name__)
