"""The samples of pre-training: which case, which patches, which mask; all of it a function of seed and number.

Sample n of a training is the same whatever the batch size, the number of processes and workers, and wherever a training
was interrupted: so the data need no state to continue from, and two processes see what one with the double batch sees.
Every case is drawn once before any is drawn again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from nnunet_ext.pretraining import augmentation
from nnunet_ext.pretraining.cases import Case
from nnunet_ext.pretraining.crops import Index, cut, draw_centre, draw_overlapping, pulled_in
from nnunet_ext.pretraining.landmarks import LandmarkTable
from nnunet_ext.pretraining.masks import Style, draw_hidden, mask_grid
from nnunet_ext.pretraining.views import Views

ORDER, SAMPLE = 0, 1  # what a generator is for
TRIES = 20
MARGIN = 1.5  # edge of a patch that is turned or scaled, in final edges

Sample = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class SamplingOptions:
    """How samples are made.

    Attributes:
        patch_size: (3,) voxels.
        block: (3,) voxels of a mask's block; divides the patch.
        views: 1, or 2 for pairs.
        ratio: share of the blocks that is hidden.
        style: "blocks" or "tube".
        augment: spatial augmentation of single views, intensities of pairs.
        anatomical_share: of the pairs that come from two volumes, where the case has accepted landmarks.
        shuffled: pair wrong points on purpose: a control that tells whether anatomy matters.
        seed: of everything.
    """

    patch_size: tuple[int, ...]
    block: tuple[int, ...]
    views: int = 1
    ratio: float = 0.75
    style: Style = "blocks"
    augment: bool = True
    anatomical_share: float = 0.5
    shuffled: bool = False
    seed: int = 0


class Samples(Dataset[Sample]):
    """Sample n, for n from 0 on without end.

    Args:
        cases: to draw from.
        options: see there.
        table: landmarks for pairs of two volumes; its cases are looked up by name. None: pairs of one volume only.
    """

    def __init__(self, cases: Sequence[Case], options: SamplingOptions, table: LandmarkTable | None = None) -> None:
        self.cases, self.options, self.table = list(cases), options, table
        self.grid = mask_grid(options.patch_size, options.block)
        by_name = {case.name: case for case in cases}
        self._row = {name: row for row, name in enumerate(table.cases) if name in by_name} if table else {}
        self._of_row = {row: by_name[name] for name, row in self._row.items()}
        self._spatial = augmentation.spatial(options.patch_size)
        self._intensity = augmentation.intensity()

    def __getitem__(self, number: int) -> Sample:
        """Images and clean images (V, C, *patch), hidden blocks (V, 1, *grid), shift (3,)."""
        random = np.random.default_rng((self.options.seed, SAMPLE, number))
        case = self.cases[self.case_index(number)]
        if self.options.views == 1:
            images = clean = self._single(random, case)[None]
            shift = np.full(3, np.nan)
        else:
            clean, shift = self._pair(random, case)
            images = self._intensities(random, clean) if self.options.augment else clean
        style, ratio = self.options.style, self.options.ratio
        hidden = np.stack([draw_hidden(random, self.grid, ratio, style)[None] for _ in range(self.options.views)])
        return images, clean, torch.from_numpy(hidden), torch.from_numpy(np.asarray(shift, np.float32))

    def case_index(self, number: int) -> int:
        """Which case sample `number` comes from: all of them in an order of chance, then again in another one."""
        pass_, position = divmod(number, len(self.cases))
        order = np.random.default_rng((self.options.seed, ORDER, pass_)).permutation(len(self.cases))
        return int(order[position])

    def _single(self, random: np.random.Generator, case: Case) -> Tensor:
        size = self.options.patch_size
        image = case.image()
        centre = pulled_in(draw_centre(random, case.body), case.shape, size)
        if not self.options.augment:
            return torch.from_numpy(cut(image, centre, size))
        larger = [int(MARGIN * edge) // 2 * 2 for edge in size]
        with augmentation.drawn_from(random):
            return self._spatial(torch.from_numpy(cut(image, centre, larger))).contiguous()

    def _pair(self, random: np.random.Generator, case: Case) -> tuple[Tensor, npt.NDArray[np.float64]]:
        """Two clean patches (2, C, *patch), and the displacement of their centres, NaN for two volumes."""
        size = self.options.patch_size
        found = self._anatomical(random, case) if random.random() < self.options.anatomical_share else None
        if found is not None:
            partner, first, second = found
            patches = [cut(case.image(), first, size), cut(partner.image(), second, size)]
            return torch.from_numpy(np.stack(patches)), np.full(3, np.nan)
        first, second = draw_overlapping(random, draw_centre(random, case.body), case.shape, size)
        image = case.image()
        patches = [cut(image, first, size), cut(image, second, size)]
        return torch.from_numpy(np.stack(patches)), (second - first).astype(np.float64)

    def _anatomical(self, random: np.random.Generator, case: Case) -> tuple[Case, Index, Index] | None:
        """Another case, and the voxels of both around which the same anatomy lies; None where the table has none."""
        if self.table is None or self.table.same_volume or case.name not in self._row:
            return None
        for _ in range(TRIES):
            drawn = self.table.draw(random, self._row[case.name])
            if drawn is None:
                return None
            row, point, in_partner = drawn
            if row in self._of_row:
                return self._centred(random, case, point, self._of_row[row], in_partner)
        return None

    def _centred(
        self, random: np.random.Generator, case: Case, point: npt.ArrayLike, partner: Case, in_partner: npt.ArrayLike
    ) -> tuple[Case, Index, Index]:
        """Patches around two matching points; both move by the same millimetres where the first would need padding."""
        size = self.options.patch_size
        wished = np.rint(case.frame.to_index(point)).astype(np.int64)
        first = pulled_in(wished, case.shape, size)
        moved = case.frame.to_lps(first) - case.frame.to_lps(wished)
        second = np.rint(partner.frame.to_index(np.asarray(in_partner) + moved)).astype(np.int64)
        if self.options.shuffled:
            second = pulled_in(draw_centre(random, partner.body), partner.shape, size)
        return partner, first, second

    def _intensities(self, random: np.random.Generator, clean: Tensor) -> Tensor:
        with augmentation.drawn_from(random):
            return torch.stack([self._intensity(view.clone()) for view in clean])


class Numbers(Sampler[list[int]]):
    """The numbers of a process' batches, from a step on, without end.

    Args:
        batch_size: of each process.
        rank: of this process.
        world: number of processes.
        step: the first.
        total: steps of the training.
    """

    def __init__(self, batch_size: int, rank: int, world: int, step: int, total: int) -> None:
        self.batch_size, self.rank, self.world, self.step, self.total = batch_size, rank, world, step, total

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.step, self.total):
            first = (step * self.world + self.rank) * self.batch_size
            yield list(range(first, first + self.batch_size))

    def __len__(self) -> int:
        return self.total - self.step


def collated(samples: Sequence[Sample]) -> Views:
    """Samples as a batch: view 0 of all, then view 1."""
    *parts, shifts = (torch.stack(part) for part in zip(*samples, strict=True))
    images, clean, hidden = (part.transpose(0, 1).flatten(0, 1).contiguous() for part in parts)
    return Views(images, clean, hidden, shifts)
