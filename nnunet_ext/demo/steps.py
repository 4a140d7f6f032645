"""Running console commands: each step's output goes to log files, the terminal shows one line of progress."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_ext.demo.training_log import read_epochs
from nnunet_ext.errors import UserError

LAST_LINES = 15
POLL_SECONDS = 0.25
QUIET_SECONDS = 30  # without a terminal: a line of progress so often


@dataclass(frozen=True)
class Command:
    """One console command.

    Attributes:
        label: short, unique; names the log file.
        arguments: the command and its arguments.
        epochs: of a training, for the progress shown; 0 for other commands.
    """

    label: str
    arguments: tuple[str, ...]
    epochs: int = 0


@dataclass(frozen=True)
class Step:
    """Commands that run at the same time."""

    title: str
    commands: tuple[Command, ...]


def shell_lines(commands: Sequence[Command]) -> list[str]:
    """The commands as one would type them; several at once with ``&`` and ``wait``."""
    lines = [shlex.join(command.arguments) for command in commands]
    return lines if len(lines) == 1 else [*(f"{line} &" for line in lines), "wait"]


def clock(seconds: float) -> str:
    """Minutes and seconds, "1:05"."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def scripts_folder() -> str:
    """Where this Python's console commands are (not resolved: a virtual environment's own folder)."""
    return str(Path(sys.executable).parent)


def find_program(name: str, path: str) -> str:
    """The console command's file, beside this Python first.

    Raises:
        UserError: there is none.
    """
    found = shutil.which(name, path=os.pathsep.join((scripts_folder(), path)))
    if found is None:
        raise UserError(
            f"The command {name} is neither in {scripts_folder()} nor on PATH: install nnunet_ext and nnunetv2 into "
            "the same environment (`pip install CHECKOUT_OR_WHEEL`)."
        )
    return found


def run_step(step: Step, environment: Mapping[str, str], logs: Path) -> float:
    """Run a step's commands at the same time and wait for all of them. The first that fails stops the others.

    Args:
        step: what to run.
        environment: the whole environment of the commands.
        logs: the folder of the log files, one a command: ``<label>.log``.

    Returns:
        How long it took, in seconds.

    Raises:
        UserError: a command is missing or failed; with the command and the last lines of its log.
    """
    start = time.monotonic()
    progress = Progress(step)
    running: list[tuple[Command, subprocess.Popen[bytes]]] = []
    try:
        for command in step.commands:
            running.append((command, _start(command, environment, logs)))
        while True:
            codes = [process.poll() for _, process in running]
            for (command, _), code in zip(running, codes, strict=True):
                if code:
                    raise UserError(failure(command, code, log_file(logs, command)))
            if all(code == 0 for code in codes):
                return time.monotonic() - start
            progress.show(time.monotonic() - start, logs)
            time.sleep(POLL_SECONDS)
    finally:
        progress.clear()
        for _, process in running:
            _stop(process)


def log_file(logs: Path, command: Command) -> Path:
    """Where a command's output goes."""
    return logs / f"{command.label}.log"


def failure(command: Command, code: int, log: Path) -> str:
    """What to tell about a command that failed."""
    text = log.read_text(errors="replace") if log.is_file() else ""
    lines = [line for line in text.replace("\r", "\n").splitlines() if line.strip()]
    shown = "\n".join(f"  | {line}" for line in lines[-LAST_LINES:]) or "  | (nothing)"
    return (
        f"This command failed with exit code {code}:\n  {shlex.join(command.arguments)}\nThe last lines of its output "
        f"({log}):\n{shown}\n`nnunet-ext doctor` checks the installation."
    )


class Progress:
    """One line that says how long a step has been running and how far it is, rewritten on a terminal."""

    def __init__(self, step: Step) -> None:
        self._commands = step.commands
        self._terminal = sys.stdout.isatty()
        self._next = 1.0 if self._terminal else QUIET_SECONDS

    def show(self, seconds: float, logs: Path) -> None:
        """Write the line, if its time has come."""
        if seconds < self._next:
            return
        self._next = seconds + (1.0 if self._terminal else QUIET_SECONDS)
        line = ", ".join((clock(seconds), *(filter(None, (self._done(command, logs) for command in self._commands)))))
        if self._terminal:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\033[K    {line}"[: width + 4], end="", flush=True)
        else:
            print(f"    {line}", flush=True)

    def _done(self, command: Command, logs: Path) -> str:
        if not command.epochs:
            return ""
        epochs = read_epochs(log_file(logs, command).read_text(errors="replace"))
        dice = f" (pseudo Dice {epochs[-1].mean_dice:.2f})" if epochs else ""
        return f"{command.label.replace('_', ' ')}: epoch {len(epochs)} of {command.epochs}{dice}"

    def clear(self) -> None:
        """Remove the line from the terminal."""
        if self._terminal:
            print("\r\033[K", end="", flush=True)


def _start(command: Command, environment: Mapping[str, str], logs: Path) -> subprocess.Popen[bytes]:
    """Start a command in a process group of its own (nnU-Net has workers), its output in its log."""
    program = find_program(command.arguments[0], environment.get("PATH", ""))
    options: dict[str, Any] = {"start_new_session": True} if os.name == "posix" else {}
    with log_file(logs, command).open("wb") as log:
        return subprocess.Popen(
            [program, *command.arguments[1:]],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            **options,
        )


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a command that still runs, with its workers."""
    if process.poll() is not None:
        return
    if os.name == "posix":
        os.killpg(process.pid, signal.SIGTERM)
    else:
        process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()
