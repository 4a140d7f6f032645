"""The training loop that all methods share: steps, logs, checkpoints, interruptions."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from nnunet_ext.errors import UserError
from nnunet_ext.losses.masked_reconstruction import voxels_of
from nnunet_ext.pretraining.adapters import Adapter
from nnunet_ext.pretraining.distributed import Processes
from nnunet_ext.pretraining.masking import fill_values, masked_images
from nnunet_ext.pretraining.objectives import Objective
from nnunet_ext.pretraining.optimisation import Optimisation
from nnunet_ext.pretraining.run_folder import RunFolder
from nnunet_ext.pretraining.sampling import Numbers, Samples, collated
from nnunet_ext.pretraining.settings import Settings
from nnunet_ext.pretraining.views import Views

NETWORK = 2  # what a generator is for: dropout and drop path of a step (samples use 0 and 1)
STOPPING = ("SIGTERM", "SIGUSR1", "SIGINT")


@dataclass(frozen=True)
class Intervals:
    """How often something happens, in steps; 0: never.

    Attributes:
        log: a line of numbers.
        save: the latest checkpoint.
        keep: a checkpoint that stays.
        draw: a picture.
    """

    log: int = 50
    save: int = 1000
    keep: int = 0
    draw: int = 5000


class Pretraining:
    """A training that can be stopped after any step and goes on as if it had not been.

    Data, masks, augmentation, dropout and schedules follow from the seed and the number of the step, so a checkpoint
    holds no states of generators. Equal bits need the same number of processes and threads, and a CPU (cuDNN chooses
    its algorithms by time).

    Args:
        settings: of the training.
        objective: the method.
        adapter: around the network, for pictures.
        samples: to train on.
        processes: this one and the others.
        fill: of hidden voxels, for pictures.
        describe: gives all entries of a checkpoint but step and resume.
    """

    def __init__(
        self,
        settings: Settings,
        objective: Objective,
        adapter: Adapter,
        samples: Samples,
        processes: Processes,
        fill: tuple[float, ...],
        describe: Callable[[], dict[str, Any]],
    ) -> None:
        if settings.batch_size % processes.world:
            raise UserError(
                f"a batch of {settings.batch_size} cannot be divided among {processes.world} processes: choose "
                f"--batch-size {math.ceil(settings.batch_size / processes.world) * processes.world}"
            )
        self.settings, self.objective, self.adapter, self.samples = settings, objective, adapter, samples
        self.processes, self.fill, self.describe = processes, fill, describe
        objective.student.to(processes.device)
        self.optimisation = Optimisation(objective.student, settings, processes.device)
        self.step = 0

    def run(
        self,
        folder: RunFolder | None = None,
        *,
        stop_after: int | None = None,
        workers: int = 0,
        intervals: Intervals | None = None,
        progress: bool = True,
    ) -> bool:
        """Train until the last step, or as long as wished.

        Args:
            folder: of the first process; None: nothing is written.
            stop_after: number of steps of this call.
            workers: processes that make samples; 0: this one.
            intervals: of what is written.
            progress: show a bar.

        Returns:
            Whether the training is over.

        Raises:
            UserError: the loss is not finite; the latest checkpoint is as it was.
        """
        every = intervals or Intervals()
        last = self.settings.steps if stop_after is None else min(self.settings.steps, self.step + stop_after)
        student = self.processes.wrapped(self.objective.student)
        student.train()
        bar = tqdm(total=self.settings.steps, initial=self.step, desc=self.settings.method, disable=not progress)
        began = time.perf_counter()
        with _stoppable() as stopped, bar:
            for views in self._batches(workers, last):
                waited = time.perf_counter() - began
                numbers = self._one_step(student, views)
                bar.update()
                asked = self.processes.any(stopped.is_set())
                done = self.step
                if every.log and (done % every.log == 0 or done in (1, last)):
                    numbers |= {"data_seconds": waited, "step_seconds": time.perf_counter() - began}
                    self._log(folder, bar, numbers)
                if folder is not None and every.draw and (done % every.draw == 0 or done == self.settings.steps):
                    self._draw(folder, views)
                keep, save = (bool(n) and done % n == 0 for n in (every.keep, every.save))
                if folder is not None and done < self.settings.steps and (keep or save):
                    folder.save(self.content(), keep=keep)
                if asked:
                    break
                began = time.perf_counter()
            over = self.step >= self.settings.steps
            if folder is not None:  # still within: a second signal, such as torchrun's own, must not interrupt it
                folder.save(self.content(), final=over)
        return over

    def _batches(self, workers: int, last: int) -> Iterator[Views]:
        """The batches of this process, from the current step to `last`."""
        share = self.settings.batch_size // self.processes.world
        numbers = Numbers(share, self.processes.rank, self.processes.world, self.step, last)
        context = "spawn" if workers else None
        loader: DataLoader[Any] = DataLoader(
            self.samples,
            batch_sampler=numbers,
            collate_fn=collated,
            num_workers=workers,
            multiprocessing_context=context,
            worker_init_fn=_ignore_signals,
            pin_memory=self.processes.device.type == "cuda",
        )
        for views in loader:
            yield views.on(self.processes.device)

    def _one_step(self, student: torch.nn.Module, views: Views) -> dict[str, Any]:
        state = np.random.SeedSequence((self.settings.seed, NETWORK, self.step, self.processes.rank)).generate_state(1)
        torch.manual_seed(int(state[0]))
        with self.optimisation.autocast():
            numbers: dict[str, Any] = self.objective.losses(student, views, self.step)
        loss = numbers["loss"]
        if self.optimisation.scaler is None and not bool(torch.isfinite(loss)):
            raise UserError(
                f"the loss of step {self.step} is {loss.item()}: the training has diverged. Lower --learning-rate "
                f"(now {self.settings.learning_rate:g}) and begin again, or continue from a checkpoint that was kept."
            )
        accepted, norm = self.optimisation.step(loss, self.step)
        if accepted:
            self.objective.after_step(self.step)
        self.step += 1
        group = self.optimisation.optimiser.param_groups[0]
        scheduled = {"learning_rate": group["lr"], "weight_decay": group["weight_decay"]}
        return numbers | {"loss": loss.detach(), "gradient_norm": norm} | scheduled

    def _log(self, folder: RunFolder | None, bar: Any, numbers: Mapping[str, Any]) -> None:
        values = self.processes.mean({name: float(value) for name, value in numbers.items()})
        if self.processes.device.type == "cuda":
            values["memory_gb"] = torch.cuda.max_memory_allocated(self.processes.device) / 1e9
        bar.set_postfix({"loss": f"{values['loss']:.4f}"}, refresh=False)
        if folder is not None:
            folder.log(self.step, values)

    @torch.no_grad()
    def _draw(self, folder: RunFolder, views: Views, most: int = 4) -> None:
        """Original, what the student saw, and its reconstruction, of the batch's first images."""
        images = views.images[:most]
        hidden = voxels_of(views.hidden[:most], images.shape[2:])
        masked = masked_images(images, hidden, fill_values(self.fill, images.shape[1]))
        training = self.adapter.training
        self.adapter.eval()
        made = self.adapter(masked).reconstruction
        self.adapter.train(training)
        middle = images.shape[2] // 2
        columns = [part[:, 0, middle].float().cpu().numpy() for part in (views.clean[:most], masked, made)]
        folder.draw(self.step, columns, ("original", "masked", "reconstructed"))

    def content(self) -> dict[str, Any]:
        """A checkpoint's entries."""
        return {
            **self.describe(),
            "method": self.settings.method,
            "step": self.step,
            "total_steps": self.settings.steps,
            "networks": self.objective.exported(),
            "resume": {
                "settings": self.settings.as_dict(),
                "objective": self.objective.state_dict(),
                "optimisation": self.optimisation.state_dict(),
            },
        }

    def load(self, content: Mapping[str, Any]) -> None:
        """Go on from a checkpoint of the same settings.

        Raises:
            UserError: other settings.
        """
        resume = content["resume"]
        theirs, ours = resume["settings"], self.settings.as_dict()
        different = sorted(name for name in ours if theirs.get(name) != ours[name])
        if different:
            raise UserError(
                "the training to continue was begun with other settings: "
                + ", ".join(f"{name} {theirs.get(name)!r}, now {ours[name]!r}" for name in different)
            )
        self.objective.load_state_dict(resume["objective"])
        self.optimisation.load_state_dict(resume["optimisation"])
        self.step = int(content["step"])


def _ignore_signals(_: int) -> None:
    """In a worker: Ctrl-C, torchrun and Slurm signal it too, but the training needs its samples until it has saved."""
    for name in STOPPING:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


@contextmanager
def _stoppable() -> Iterator[threading.Event]:
    """An event that is set when the process is asked to stop; a second Ctrl-C stops at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(number: int, _: Any) -> None:
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()

    before = {name: signal.signal(getattr(signal, name), ask) for name in STOPPING if hasattr(signal, name)}
    try:
        yield asked
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)
