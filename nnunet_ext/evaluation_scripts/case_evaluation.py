"""One case: read both files, check that they belong together, compute all that was asked for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nnunet_ext import __version__
from nnunet_ext.errors import UserError
from nnunet_ext.evaluation_scripts import case_extras, label_maps, quantities
from nnunet_ext.evaluation_scripts.label_maps import LabelMap
from nnunet_ext.evaluation_scripts.metrics import CasePair
from nnunet_ext.evaluation_scripts.results import CaseResult
from nnunet_ext.evaluation_scripts.structures import Structures

RULES = 3
"""Of this and the modules that it calls: another number makes results of earlier runs void."""


@dataclass(frozen=True)
class Job:
    """One case.

    Attributes:
        case: its id.
        reference, predicted: files; None: no prediction, which counts as an empty one.
        structures: what is evaluated.
        allowed: label values that may occur.
        ignore: label whose voxels are evaluated nowhere; None: there is none.
        metrics: what is computed.
        digits: to which values are rounded; None: not at all.
        rules: of a challenge.
    """

    case: str
    reference: Path
    predicted: Path | None
    structures: Structures
    allowed: frozenset[int]
    ignore: int | None
    metrics: tuple[quantities.Metric, ...]
    digits: int | None = None
    rules: case_extras.Rules = field(default_factory=case_extras.Rules)


def key(job: Job) -> str:
    """What a result depends on: both files as they are now, what is computed, this package's version."""
    files = []
    for path in (job.reference, job.predicted):
        if path is not None:
            state = path.stat()
            files.append([str(path.absolute()), state.st_size, state.st_mtime_ns, state.st_ctime_ns])
            files.append([label_maps.stated_spacing(path)])
    content = [__version__, RULES, files, list(job.structures.items()), sorted(job.allowed), job.ignore, job.digits]
    return hashlib.sha256(f"{content} {job.metrics} {job.rules}".encode()).hexdigest()[:32]


def evaluate_case(job: Job) -> CaseResult:
    """Evaluate a case.

    Raises:
        UserError: a file can't be read, the two do not lie on the same grid, or labels occur that should not.
    """
    reference = label_maps.read(job.reference)
    notices: list[str] = []
    if job.predicted is None:
        predicted = LabelMap(np.zeros_like(reference.labels), reference.spacing, reference.affine)
    else:
        predicted = label_maps.read(job.predicted)
        notices += label_maps.same_grid(reference, predicted, (job.reference, job.predicted))
    maps, ignored = _without_ignored(reference.labels, predicted.labels, job.ignore)
    maps, spacing, thickness = _as_picture(maps, reference.spacing, job)
    if maps[0].ndim < reference.labels.ndim:
        notices.append(f"{job.case}: a single slice, evaluated in 2D: its voxels have neighbours within the slice only")
    pair = CasePair(*maps, spacing)
    pair.histogram.leave_out(ignored)
    _check_labels(pair, job)
    values = {
        name: quantities.evaluate(pair, name, structure, job.metrics, thickness)
        for name, structure in job.structures.items()
    }
    overlaps = {name: pair.overlap(structure) for name, structure in job.structures.items()}
    extra = {
        "counts": {name: [found.tp, found.fp, found.fn, found.tn] for name, found in overlaps.items()},
        **case_extras.add(job.rules, maps, pair, job.structures, job.metrics, values),
    }
    if job.digits is not None:
        values = {name: {key: round(value, job.digits) for key, value in row.items()} for name, row in values.items()}
    states = {name: found.state for name, found in overlaps.items()}
    where = None if job.predicted is None else str(job.predicted)
    return CaseResult(job.case, str(job.reference), where, values, states, extra, tuple(notices))


def _without_ignored(
    reference: np.ndarray, predicted: np.ndarray, ignore: int | None
) -> tuple[tuple[np.ndarray, np.ndarray], int]:
    """Both maps with background where the reference says that nobody knows, and how many voxels these are."""
    unknown = None if ignore is None else reference == ignore
    if unknown is None or not unknown.any():
        return (reference, predicted), 0
    maps = tuple(np.where(unknown, labels.dtype.type(0), labels) for labels in (reference, predicted))
    return (maps[0], maps[1]), int(unknown.sum())


def _as_picture(
    maps: tuple[np.ndarray, np.ndarray], spacing: tuple[float, ...], job: Job
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[float, ...], float]:
    """A volume of a single slice as the picture that it is: else each of its voxels would lie on the border.

    Returns:
        Both maps, the spacing along their axes, and the slice's thickness in mm.
    """
    single = [axis for axis, edge in enumerate(maps[0].shape) if edge == 1]
    if maps[0].ndim != 3 or len(single) != 1 or job.rules.extra is not None:
        return maps, spacing, 1.0
    axis = single[0]
    squeezed = maps[0].squeeze(axis), maps[1].squeeze(axis)
    return squeezed, spacing[:axis] + spacing[axis + 1 :], spacing[axis]


def _check_labels(pair: CasePair, job: Job) -> None:
    for labels, path in zip(pair.histogram.labels(), (job.reference, job.predicted), strict=True):
        unexpected = sorted(labels - job.allowed)
        if unexpected:
            raise UserError(
                f"{path}: labels {unexpected} that dataset.json does not have ({sorted(job.allowed)}). Is it the right "
                "--dataset-json, and are both folders of the same data set?"
            )
