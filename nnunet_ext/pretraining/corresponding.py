"""Makes a landmark table: a reference's points, matched once into every case; what is finished is not done again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_ext.cores import thread_limit
from nnunet_ext.errors import UserError
from nnunet_ext.inference.case_pool import CaseJob, Outcome, work_on
from nnunet_ext.pretraining.body import spread_points
from nnunet_ext.pretraining.case_matching import (
    EmbeddingJob,
    Job,
    LooksJob,
    PointsJob,
    Reference,
    find_box,
    match_by_embedding,
    match_by_looks,
    own_points,
)
from nnunet_ext.pretraining.case_records import Arrays, digest, identity, kept
from nnunet_ext.pretraining.case_volumes import Looking
from nnunet_ext.pretraining.cases import Case, Pool
from nnunet_ext.pretraining.landmark_assembly import THRESHOLDS, Correspondences, Options, assemble
from nnunet_ext.pretraining.landmarks import table_path

METHOD = 1
"""Changes whenever records of earlier versions are no longer what this one would find."""
FEW_CASES = 8

Bar = Callable[[str], Callable[[Iterable[Any], int], Iterable[Any]] | None]
"""A progress bar with the given words before it; None: no bar."""


@dataclass
class _Work:
    """A pool being worked on."""

    pool: Pool
    options: Options
    looking: Looking
    bar: Bar
    records: Path
    weights_sha256: str = ""
    earlier: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    def done(self, function: Callable[[Any], Arrays], jobs: Sequence[Job], words: str) -> dict[str, Arrays]:
        """What the work on each case gave, kept or new, in the jobs' order; failures are noted."""
        found = {job.case: arrays for job in jobs if (arrays := kept(job.record, job.key)) is not None}
        self.earlier = len(found)
        todo: list[CaseJob] = [job for job in jobs if job.case not in found]
        progress = self.bar(words) if todo else None
        alone = function is match_by_embedding and self.options.device != "cpu"  # processes would share its memory
        outcome = work_on(function, todo, 1 if alone else self.options.processes, progress, Outcome())
        self.failed |= outcome.failed
        found |= outcome.done
        return {job.case: found[job.case] for job in jobs if job.case in found}

    def job(self, case: Case, what: str, **settings: Any) -> dict[str, Any]:
        """The fields that all jobs have; the key follows from the settings, the case, and how it is looked at."""
        key = digest({"method": METHOD, "case": identity(case), "looking": asdict(self.looking), **settings})
        return {
            "subject": case,
            "looking": self.looking,
            "record": self.records / what / f"{case.name}.npz",
            "key": key,
        }

    def assembled(self, found: Mapping[str, Arrays], reference: Reference | None) -> Correspondences:
        """What came out."""
        names = [case.name for case in self.pool.cases]
        return assemble(names, self.options, found, reference, self.failed, self.looking, self.earlier)


def auto_kind(pool: Pool, embedding: bool) -> str:
    """The recommended kind.

    Args:
        pool: the cases.
        embedding: whether there is one.

    Returns:
        "embedding" where there is one; "overlap" for fewer than 8 cases; "bodybox", of whole images, for crops of one
        organ; else "affine".

    Reference: specification alice 3.3.
    """
    if embedding:
        return "embedding"
    if len(pool.cases) < FEW_CASES:
        return "overlap"
    return "bodybox" if Looking.at(pool).whole else "affine"


def make_table(pool: Pool, options: Options, bar: Bar = lambda words: None) -> Correspondences:
    """Find correspondences between a pool's cases and write them to its folder.

    Args:
        pool: the cases.
        options: what is wished.
        bar: makes progress bars.

    Returns:
        The table, also written to ``landmarks_KIND.npz``, and what there is to say about it. Cases that cannot be
        worked on are in it without points.

    Raises:
        UserError: options that cannot work, or no case that could be worked on.
    """
    _check(pool, options)
    checksum = ""
    if options.kind == "embedding":
        options, checksum = _calibrated(options)
    work = _Work(pool, options, Looking.at(pool), bar, pool.folder / "correspondences", checksum)
    found = _overlap(work) if options.kind == "overlap" else _matched(work)
    found.table.save(table_path(pool.folder, options.kind))
    return found


def _check(pool: Pool, options: Options) -> None:
    if options.kind not in THRESHOLDS:
        raise UserError(f"--kind {options.kind}: allowed are {', '.join(THRESHOLDS)}")
    if options.points < 1:
        raise UserError(f"--points must be at least 1; got {options.points}")
    if options.threshold is not None and not -1 <= options.threshold <= 1:
        raise UserError(f"--threshold must be from -1 to 1, as scores are; got {options.threshold}")
    if options.kind == "embedding":
        _weights(options)
    if options.kind != "overlap" and len(pool.cases) < 2:
        raise UserError(f"--kind {options.kind} needs at least 2 cases, there is 1; use --kind overlap")
    if options.reference is not None and options.reference not in {case.name for case in pool.cases}:
        names = [case.name for case in pool.cases]
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise UserError(f"--reference {options.reference}: no such case; there are {len(names)}: {shown}")


def _calibrated(options: Options) -> tuple[Options, str]:
    """The options with the embedding's own threshold, if it has one, and the file's SHA-256.

    Raises:
        UserError: the file cannot be used; said once instead of for every case.
    """
    import torch

    from nnunet_ext.pretraining.embedding_maps import load_embedder

    known = load_embedder(_weights(options), torch.device("cpu")).definition
    score = known.get("quality", {}).get("score_20", math.nan)
    return replace(options, calibrated=score if math.isfinite(score) else None), known["sha256"]


def _weights(options: Options) -> Path:
    if options.weights is None:
        raise UserError("--kind embedding: give --weights FILE, or --train-embedding to train one on these cases")
    return options.weights


def _overlap(work: _Work) -> Correspondences:
    options = work.options
    jobs = []
    for case in work.pool.cases:
        fields = work.job(case, "overlap", points=options.points, seed=options.seed)
        jobs.append(PointsJob(**fields, points=options.points, seed=options.seed))
    return work.assembled(work.done(own_points, jobs, "points"), None)


def _matched(work: _Work) -> Correspondences:
    boxes = work.done(find_box, [Job(**work.job(case, "boxes")) for case in work.pool.cases], "bodies")
    reference = _reference(work, {name: arrays["box"] for name, arrays in boxes.items()})
    jobs: list[Job] = []
    others = [case for case in work.pool.cases if case.name in boxes and case.name != reference.case.name]
    settings = {"reference": identity(reference.case), "points": digest({"": reference.points.tolist()})}
    for case in others:
        if work.options.kind == "embedding":
            jobs.append(_embedding_job(work, case, reference, settings))
            continue
        box = boxes[case.name]["box"]
        extra = {"seed": work.options.seed, "boxes": [reference.box.tolist(), box.tolist()]}
        fields = work.job(case, work.options.kind, **settings, **extra)
        jobs.append(LooksJob(**fields, kind=work.options.kind, seed=work.options.seed, reference=reference, box=box))
    function = match_by_embedding if work.options.kind == "embedding" else match_by_looks
    return work.assembled(work.done(function, jobs, "matches"), reference)


def _embedding_job(work: _Work, case: Case, reference: Reference, settings: Mapping[str, Any]) -> EmbeddingJob:
    fields = work.job(case, "embedding", **settings, weights=work.weights_sha256)
    return EmbeddingJob(
        **fields,
        reference=reference,
        weights=_weights(work.options),
        checksum=work.weights_sha256,
        pool=replace(work.pool, cases=(), left_out=()),
        device=work.options.device,
        threads=max(1, thread_limit() // work.options.processes),
    )


def _reference(work: _Work, boxes: Mapping[str, Any]) -> Reference:
    """The wished case, or that whose body is of median height; of equally near ones the first."""
    name = work.options.reference
    if name is not None and name not in boxes:
        raise UserError(f"--reference {name} cannot be used: {work.failed[name]}")
    if not boxes:
        name, reason = next(iter(work.failed.items()))
        raise UserError(f"none of {len(work.pool.cases)} cases can be used; the first: {name}: {reason}")
    heights = {key: float(box[1, 2] - box[0, 2]) for key, box in boxes.items()}
    median = float(np.median(list(heights.values())))
    chosen = name or min(heights, key=lambda key: abs(heights[key] - median))
    case = next(case for case in work.pool.cases if case.name == chosen)
    volume = work.looking.volume(case)
    rng = np.random.default_rng(work.options.seed)
    mask = work.looking.body(case, volume)
    points = spread_points(volume, mask, work.options.points, work.looking.scale.patch, rng)
    frame = case.frame
    index = np.clip(frame.to_index(points), 0, np.asarray(frame.shape) - 1)
    return Reference(case, frame.to_lps(index), boxes[chosen])
