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
    reason = unusable_options(
        job.ending, reorient=job.reorient, copy_geometry=job.copy_geometry, fix_nan=job.fix_nan, reader=job.reader
    )
    if reason is not None:
        raise UnusableError(reason)
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


def unusable_options(
    ending: str, *, reorient: bool, copy_geometry: bool, fix_nan: bool, reader: str | None = None
) -> str | None:
    """What to say of options that change NIfTI files, if the data set's files are others; None if there are none.

    Args:
        ending: of the data set's files.
        reorient: files are to be turned.
        copy_geometry: labels are to get their image's geometry.
        fix_nan: NaN and infinities are to be replaced.
        reader: nnU-Net's, of dataset.json.
    """
    if ending in (".nii", ".nii.gz"):
        return None
    asked = {
        "--reorient files": reorient,
        "--reorient reader": reader is not None and reader.startswith("Nibabel"),
        "--copy-geometry": copy_geometry,
        "--fix-nan": fix_nan,
    }
    named = " and ".join(option for option, is_asked in asked.items() if is_asked)
    if not named:
        return None
    return (
        f"{named}: for NIfTI files only, but the files of this data set are {ending}. Leave it out, or make NIfTI "
        "files of them first."
    )


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
    shapes = [_grid_shape(name, array) for name, (array, _) in ((file, image), (first_file, first))]
    colours_first = len(shapes[0]) == 2 and len(shapes[1]) == 3 and shapes[1][0] in _COLOURS
    if shapes[0] != shapes[1] and not (colours_first and shapes[0] == shapes[1][1:]):
        raise UnusableError(f"{file.where}: shape {image[0].shape}, but {first[0].shape} of {first_file.base}.")
    if image[1] is not None and first[1] is not None:
        differs = difference((image[0].shape, image[1]), (first[0].shape, first[1]))
        if differs:
            raise UnusableError(f"{file.where}: {differs} differ from those of {first_file.base}.")


_COLOURS = (3, 4)


def _grid_shape(file: SourceFile, array: np.ndarray) -> tuple[int, ...]:
    return array.shape[:2] if other_formats.has_colours(file, array) else array.shape


def _label(job: Job, file: SourceFile, first: Image, outputs: files.Outputs) -> dict[str, Any]:
    array, affine = other_formats.read(file)
    _compare(file, (array, affine), job.case.images[0], first)
    array = other_formats.without_colours(file, array)
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
