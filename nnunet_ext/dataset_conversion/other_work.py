"""One case whose files are no NIfTI files: linked as they are; labels are written anew where their values change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nnunet_ext.dataset_conversion import files, other_formats
from nnunet_ext.dataset_conversion.cases import FOLDERS
from nnunet_ext.dataset_conversion.label_values import LabelValues, mapped
from nnunet_ext.dataset_conversion.sources import SourceFile
from nnunet_ext.dataset_conversion.volumes import UnusableError, difference

if TYPE_CHECKING:
    from nnunet_ext.dataset_conversion.work import Job

Image = tuple[np.ndarray, "np.ndarray | None"]


def convert_other(job: Job) -> dict[str, Any]:
    """As `work.convert_case`, for images such as .nrrd and .png.

    Raises:
        UnusableError: the case has to be left out; says why.
    """
    case = job.case
    if len(case.images) != job.rules.channels:
        raise UnusableError(f"{len(case.images)} images for {job.rules.channels} channels.")
    wrong = [file.where for file in (*case.images, case.label) if file is not None and file.ending != job.ending]
    if wrong:
        raise UnusableError(f"{', '.join(wrong)}: not {job.ending}, as the files of this data set must be.")
    if case.part == "training" and case.label is None:
        raise UnusableError("no label. Is this the training part of the download?")
    images = [] if job.headers_only else [_checked(job, file) for file in case.images]
    first = images[0] if images else other_formats.read(case.images[0])
    for file, image in zip(case.images[1:], images[1:], strict=False):
        _compare(file, image, case.images[0], first)
    names = [f"{FOLDERS[case.part][0]}/{case.id}_{c:04d}{job.ending}" for c in range(len(case.images))]
    with files.Outputs(job.target) as outputs:
        entries = [_place(job, file, name, outputs) for file, name in zip(case.images, names, strict=True)]
        label = None if case.label is None else _label(job, case.label, first, outputs)
    where = other_formats.geometry(*first)
    return {
        "part": case.part,
        "group": case.group or case.id,
        "details": dict(case.details),
        "images": entries,
        "label": label,
        "geometry": {"original": where, "written": where},
        "notices": list(case.notices),
    }


def _checked(job: Job, file: SourceFile) -> Image:
    array, affine = other_formats.read(file)
    if job.check == "full" and array.dtype.kind == "f" and not np.isfinite(array).all():
        raise UnusableError(
            f"{file.where}: {int((~np.isfinite(array)).sum())} voxels are NaN or infinite; they can be replaced in "
            "NIfTI files only."
        )
    return array, affine


def _compare(file: SourceFile, image: Image, first_file: SourceFile, first: Image) -> None:
    """Refuse a file that does not lie on the grid of the first image."""
    axes = 2 if first[1] is None else 3
    if image[0].shape[:axes] != first[0].shape[:axes]:
        raise UnusableError(f"{file.where}: shape {image[0].shape}, but {first[0].shape} of {first_file.base}.")
    if image[1] is not None and first[1] is not None:
        differs = difference((image[0].shape, image[1]), (first[0].shape, first[1]))
        if differs:
            raise UnusableError(f"{file.where}: {differs} differ from those of {first_file.base}.")


def _label(job: Job, file: SourceFile, first: Image, outputs: files.Outputs) -> dict[str, Any]:
    array, affine = other_formats.read(file)
    _compare(file, (array, affine), job.case.images[0], first)
    if affine is None and array.ndim > 2:
        if not (array[..., :1] == array[..., :3]).all():
            raise UnusableError(f"{file.where}: a picture in colours; labels must be one number a pixel.")
        array = array[..., 0]
    found = LabelValues(array, file.where)
    target = found.targets(job.rules, job.values)
    if not any(target.values()) and job.rules.empty == "error":
        raise UnusableError(f"{file.where}: nothing is labelled; in this data set every case has some.")
    name = f"{FOLDERS[job.case.part][1]}/{job.case.id}{job.ending}"
    renamed = {old: new for old, new in target.items() if old != new}
    changes = [f"labels mapped: {', '.join(f'{old} to {new}' for old, new in sorted(renamed.items()))}"]
    if renamed and (job.in_place or files.lies_at(file, job.target / name)):
        raise UnusableError(files.untouchable(file, changes))
    if renamed:
        other_formats.write_labels(outputs.unfinished(name), mapped(found.integers, target), file)
        entry = _entry(job, file, name, "write", changes)
    else:
        entry = _place(job, file, name, outputs)
    counts: dict[str, int] = {}
    for old, count in found.counts.items():
        counts[str(target[old])] = counts.get(str(target[old]), 0) + count
    return {**entry, "values": counts}


def _place(job: Job, file: SourceFile, name: str, outputs: files.Outputs) -> dict[str, Any]:
    own = files.lies_at(file, job.target / name)
    if job.in_place and not own:
        raise UnusableError(files.untouchable(file, ()))
    action = "keep" if own else files.place(file, outputs.unfinished(name), job.mode)
    return _entry(job, file, name, action, [])


def _entry(job: Job, file: SourceFile, name: str, action: str, changes: list[str]) -> dict[str, Any]:
    return files.entry(file, name, action, changes, short=job.headers_only)
