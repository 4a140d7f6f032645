"""Trains an anatomical embedding of one's own on volumes without labels (specification alice 3.2)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from nnunet_ext.architectures.anatomical_embedding import SmallEmbedding
from nnunet_ext.errors import UserError
from nnunet_ext.losses.anatomical_embedding import Sampling, ViewCells, embedding_loss, view_cells
from nnunet_ext.pretraining.cases import Case, Pool
from nnunet_ext.pretraining.embedding_file import EmbeddingFile, new_network, read_embedding_file
from nnunet_ext.pretraining.embedding_maps import Embedder
from nnunet_ext.pretraining.embedding_quality import Quality, check_quality
from nnunet_ext.pretraining.embedding_settings import Settings, settings_for
from nnunet_ext.pretraining.embedding_views import View, Volume, draw_pair, with_places

STEPS = 20_000
BATCH = 6
_WARM_UP, _WARM_UP_RATIO = 500, 0.001
_LARGEST_GRADIENT = 10.0
_LEAST_TO_HOLD_OUT = 5
_SAVED_EVERY = 500


@dataclass(frozen=True)
class Trained:
    """A finished training.

    Attributes:
        file: what was written.
        quality: of the quality check.
        losses: of the steps of this call, in order.
    """

    file: Path
    quality: Quality
    losses: tuple[float, ...]


def train(
    pool: Pool,
    output_file: Path,
    steps: int = STEPS,
    seed: int = 0,
    device: torch.device | None = None,
    batch: int = BATCH,
    *,
    settings: Settings | None = None,
    proceed: bool = False,
    workers: int = 0,
    saved_every: int = _SAVED_EVERY,
    progress: bool = True,
) -> Trained:
    """Train, write the file, and measure it.

    Every step draws from its own random numbers, so a training that was interrupted goes on as if it had not been. The
    file of a finished one stays as it is, for what was matched by it is known by the file's checksum.

    Args:
        pool: the cases; from five on, a tenth (at least one, at most five) is held out to measure the embedding with.
        output_file: written every now and then, and in the end.
        steps: of the whole training.
        seed: of all draws.
        device: where to compute; None: the CPU.
        batch: volumes a step; each gives two views.
        settings: of network and training; None: those that fit the pool.
        proceed: go on with `output_file`, if there is one.
        workers: threads that cut views ahead.
        saved_every: steps between two writes.
        progress: show a bar.

    Raises:
        UserError: there is a file already and `proceed` is not set, or it is of another training; or the loss is no
            number.
    """
    settings = settings or settings_for(pool)
    device = device or torch.device("cpu")
    training, held_out = split(pool.cases, seed)
    start = EmbeddingFile(
        settings, {}, 0, steps, seed, tuple(case.name for case in training), tuple(case.name for case in held_out), {}
    )
    before = _earlier(output_file, start, proceed)
    if before is not None and before.step >= steps and before.quality:
        return Trained(output_file, Quality(**before.quality), ())
    run = _Run(settings, training, seed, batch, device)
    if before is not None:
        run.restore(before)
    losses: list[float] = []
    first = before.step if before else 0
    bar = tqdm(total=steps, initial=first, desc="embedding", unit="step", disable=not progress)
    with bar:
        for step, views in run.batches(first, steps, workers):
            losses.append(run.step(step, steps, views))
            bar.set_postfix(loss=f"{np.mean(losses[-50:]):.3f}", refresh=False)
            bar.update()
            if (step + 1) % saved_every == 0 and step + 1 < steps:
                run.file(start, step + 1).write(output_file)
    run.network.eval()
    embedder = Embedder(run.network, settings.spacing, False, device, settings.input_channels)
    quality = check_quality(embedder, pool, held_out or training, held_out=bool(held_out), seed=seed)
    run.file(start, steps, quality).write(output_file)
    return Trained(output_file, quality, tuple(losses))


def split(cases: Sequence[Case], seed: int) -> tuple[list[Case], list[Case]]:
    """Cases to train on, and cases to measure with: a tenth, at most five; none of fewer than five."""
    if len(cases) < _LEAST_TO_HOLD_OUT:
        return list(cases), []
    order = np.random.default_rng(seed).permutation(len(cases))
    number = min(5, max(1, len(cases) // 10))
    return [cases[i] for i in sorted(order[number:])], [cases[i] for i in sorted(order[:number])]


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Rises linearly from a thousandth over 500 steps (a tenth of short trainings), then stays."""
    warm = max(1, min(_WARM_UP, steps // 10))
    return peak * (_WARM_UP_RATIO + (1 - _WARM_UP_RATIO) * min(1.0, step / warm))


class _Run:
    """Network, optimizer and volumes of a training."""

    def __init__(self, settings: Settings, cases: Sequence[Case], seed: int, batch: int, device: torch.device) -> None:
        self.settings, self.cases, self.seed, self.batch = settings, cases, seed, batch
        self.device = device
        self.network: SmallEmbedding = new_network(settings, seed).to(device)
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), settings.learning_rate, momentum=0.9, weight_decay=1e-4
        )
        self.volumes: dict[str, Volume] = {}
        self.sampling = Sampling(temperature=settings.temperature)

    def restore(self, file: EmbeddingFile) -> None:
        """Go on where a file was written."""
        self.network.load_state_dict(file.weights)
        self.optimizer.load_state_dict(file.optimizer)

    def file(self, start: EmbeddingFile, step: int, quality: Quality | None = None) -> EmbeddingFile:
        """What to write after `step` steps."""
        weights = {key: value.detach().cpu() for key, value in self.network.state_dict().items()}
        measured = {} if quality is None else quality.as_dict()
        kept = {**vars(start), "weights": weights, "step": step, "quality": measured}
        return EmbeddingFile(**{**kept, "optimizer": self.optimizer.state_dict()})

    def batches(self, first: int, steps: int, workers: int) -> Iterator[tuple[int, list[tuple[View, View]]]]:
        """The views of each step, in order; `workers` threads are a few steps ahead."""
        if workers < 1:
            yield from ((step, self.views(step)) for step in range(first, steps))
            return
        with ThreadPoolExecutor(workers) as threads:
            ahead: list[Future[list[tuple[View, View]]]] = []
            for step in range(first, steps):
                while len(ahead) <= workers and step + len(ahead) < steps:
                    ahead.append(threads.submit(self.views, step + len(ahead)))
                yield step, ahead.pop(0).result()

    def views(self, step: int) -> list[tuple[View, View]]:
        """Two views of each volume of a step; they depend on seed and step alone."""
        rng = np.random.default_rng([self.seed, step])
        chosen = rng.choice(len(self.cases), self.batch, replace=len(self.cases) < self.batch)
        strides = (self.network.fine_stride, self.network.coarse_stride)
        return [draw_pair(self._volume(self.cases[i]), self.settings, strides, rng) for i in chosen]

    def _volume(self, case: Case) -> Volume:
        if case.name not in self.volumes:
            self.volumes[case.name] = Volume.of(case)
        return self.volumes[case.name]

    def step(self, step: int, steps: int, views: list[tuple[View, View]]) -> float:
        """One step of gradient descent; the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, self.settings.learning_rate)
        flat = [view for pair in views for view in pair]
        images: Tensor = torch.stack([view.image for view in flat]).to(self.device)
        self.network.train()
        embedding = self.network(images)
        cells: list[ViewCells] = [
            view_cells(embedding, i, with_places(view.fine, self.device), with_places(view.coarse, self.device))
            for i, view in enumerate(flat)
        ]
        pairs = list(zip(cells[::2], cells[1::2], strict=True))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        loss = embedding_loss(pairs, self.settings.distances, self.sampling, generator)["loss"]
        value = float(loss.detach())
        if not math.isfinite(value):
            raise UserError(
                f"the embedding's loss is {value} in step {step + 1}: look for images with values that are no numbers, "
                "or train with another --seed. What was written before is kept"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), _LARGEST_GRADIENT)
        self.optimizer.step()
        return value


def _earlier(path: Path, start: EmbeddingFile, proceed: bool) -> EmbeddingFile | None:
    """The file to go on with, or None."""
    if not path.exists():
        return None
    if not proceed:
        raise UserError(f"{path} is there already: continue its training, or give another name")
    before = read_embedding_file(path)
    decisive = {"settings": "settings", "steps": "number of steps", "seed": "seed", "cases": "set of cases"}
    different = [word for name, word in decisive.items() if getattr(before, name) != getattr(start, name)]
    if different:
        raise UserError(
            f"{path} was trained with another {', '.join(different)}: leave out --train-embedding to use it as it is, "
            "go on with the same, or remove the file to train anew"
        )
    return before
