"""What is done for one case in a worker process: its box, points of its own, or the reference's points in it."""

from __future__ import annotations

import multiprocessing
import zlib
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_ext.pretraining.body import points_in
from nnunet_ext.pretraining.case_records import Arrays, keep
from nnunet_ext.pretraining.case_volumes import Looking
from nnunet_ext.pretraining.cases import Case, Pool
from nnunet_ext.pretraining.coarse import Coarse
from nnunet_ext.pretraining.frames import Array, apply
from nnunet_ext.pretraining.local_ncc import NOTHING, correlate
from nnunet_ext.pretraining.registration import register

MOST_SCALING = 2.5


@dataclass(frozen=True, eq=False)
class Reference:
    """The volume that all others are matched to.

    Attributes:
        case: which it is.
        points: (K, 3) LPS mm in it.
        box: (2, 3) LPS mm of its body.
    """

    case: Case
    points: Array
    box: Array


@dataclass(frozen=True, eq=False)
class Job:
    """A case to work on.

    Attributes:
        subject: the case.
        looking: how.
        record: where the result is kept.
        key: of the record.
    """

    subject: Case
    looking: Looking
    record: Path
    key: str

    @property
    def case(self) -> str:
        """Its name."""
        return self.subject.name


@dataclass(frozen=True, eq=False)
class PointsJob(Job):
    """Points of the case's own.

    Attributes:
        points: how many.
        seed: of their places, together with the case's name.
    """

    points: int
    seed: int


@dataclass(frozen=True, eq=False)
class LooksJob(Job):
    """The reference's points, by "bodybox" or "affine".

    Attributes:
        kind: which of them.
        seed: of the registration.
        reference: what to match.
        box: (2, 3) LPS mm of the case's body.
    """

    kind: str
    seed: int
    reference: Reference
    box: Array


@dataclass(frozen=True, eq=False)
class EmbeddingJob(Job):
    """The reference's points, by an anatomical embedding.

    Attributes:
        reference: what to match.
        weights: file of the embedding.
        checksum: SHA-256 of that file.
        pool: without its cases.
        device: where to compute, in torch's words.
        threads: of a worker process on a CPU.
    """

    reference: Reference
    weights: Path
    checksum: str
    pool: Pool
    device: str
    threads: int


def find_box(job: Job) -> Arrays:
    """The body's box (2, 3) LPS mm."""
    return _kept(job, {"box": job.looking.box(job.subject)})


def own_points(job: PointsJob) -> Arrays:
    """Points (K, 3) LPS mm, uniform in the case's body, and scores of 1."""
    frame, volume = job.subject.frame, job.looking.volume(job.subject)
    rng = np.random.default_rng([job.seed, zlib.crc32(job.case.encode())])
    points = points_in(job.looking.body(job.subject, volume), volume.frame, job.points, rng)
    index = np.clip(frame.to_index(points), 0, np.asarray(frame.shape) - 1)  # the coarse grid may reach beyond
    return _kept(job, {"points": frame.to_lps(index), "scores": np.ones(job.points, np.float32)})


def match_by_looks(job: LooksJob) -> Arrays:
    """Through the boxes or the registration, then to the most similar place nearby.

    Returns:
        points (K, 3), scores (K,), matrix (4, 4) and the registration's metric; NaN for points that are not there.
    """
    there = _reference_volume(job.reference.case, job.looking)
    volume = job.looking.volume(job.subject)
    matrix, metric = box_matrix(job.reference.box, job.box), 0.0
    if job.kind == "affine":
        registration = register(there, volume, job.seed + 1)
        matrix, metric = registration.matrix, registration.metric
    points, scores = np.full_like(job.reference.points, np.nan), np.full(len(job.reference.points), np.nan)
    starts = apply(matrix, job.reference.points if is_plausible(matrix) else np.empty((0, 3)))
    for number, (point, start) in enumerate(zip(job.reference.points, starts, strict=False)):
        place, score = correlate(there, volume, point, start, matrix[:3, :3], job.looking.scale)
        if score > NOTHING:
            points[number], scores[number] = place, score
    found = _inside(job, points, scores)
    return _kept(job, {**found, "matrix": matrix, "metric": np.array(metric)})


def match_by_embedding(job: EmbeddingJob) -> Arrays:
    """To the place with the most similar vectors.

    Returns:
        points (K, 3), scores (K,) and cycle (K,): mm between each point and the match of its match.

    Raises:
        UserError: the case does not fit the embedding.
    """
    import torch

    from nnunet_ext.pretraining.matching import match

    if multiprocessing.parent_process() is not None:  # else it would hold for all that this process does
        torch.set_num_threads(job.threads)
    embedder = job.weights, job.checksum, job.device
    there = _reference_maps(job.reference.case, *embedder, _Unhashed(job.pool))
    maps = _embedder(*embedder).embed(job.subject, job.pool)
    found = match(there, maps, job.reference.points, cycle=True)
    return _kept(job, {**_inside(job, found.points, found.scores), "cycle": np.asarray(found.cycle, np.float64)})


def box_matrix(source: Array, target: Array) -> Array:
    """(4, 4): LPS mm in one box (2, 3) to the same relative place in another."""
    scale = (target[1] - target[0]) / (source[1] - source[0])
    matrix = np.diag([*scale, 1.0])
    matrix[:3, 3] = target[0] - scale * source[0]
    return matrix


def is_plausible(matrix: Array) -> bool:
    """Whether one body may be that much larger or smaller than another, in every direction.

    Neighbourhoods squeezed to a few voxels resemble anything.
    """
    factors = np.linalg.svd(matrix[:3, :3], compute_uv=False)
    return bool(factors.max() <= MOST_SCALING and factors.min() >= 1 / MOST_SCALING)


@dataclass(frozen=True)
class _Unhashed:
    """Content that a cache does not compare: the same case belongs to the same pool."""

    content: Pool = field(hash=False, compare=False)


@lru_cache(maxsize=1)
def _reference_volume(case: Case, looking: Looking) -> Coarse:
    return looking.volume(case)


@lru_cache(maxsize=1)
def _embedder(weights: Path, _checksum: str, device: str) -> Any:
    """The network of a file; of a file that has changed, the new one."""
    import torch

    from nnunet_ext.pretraining.embedding_maps import load_embedder

    return load_embedder(weights, torch.device(device))


@lru_cache(maxsize=1)
def _reference_maps(case: Case, weights: Path, checksum: str, device: str, pool: _Unhashed) -> Any:
    return _embedder(weights, checksum, device).embed(case, pool.content)


def _inside(job: Job, points: Array, scores: npt.NDArray[Any]) -> Arrays:
    """Points and scores, NaN for places outside of the case's image."""
    inside = job.subject.frame.holds(points)
    return {
        "points": np.where(inside[:, None], points, np.nan),
        "scores": np.where(inside, scores, np.nan).astype(np.float32),
    }


def _kept(job: Job, arrays: Arrays) -> Arrays:
    keep(job.record, job.key, arrays)
    return arrays
