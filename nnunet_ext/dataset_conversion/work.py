"""One case: checked, brought into the data set, and recorded. Runs in worker processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_ext.dataset_conversion import files, volumes
from nnunet_ext.dataset_conversion.cases import FOLDERS, Case, Rules
from nnunet_ext.dataset_conversion.label_values import LabelValues, mapped
from nnunet_ext.dataset_conversion.planned import Planned, agree, read_header, turn_all_to_ras
from nnunet_ext.dataset_conversion.volumes import UnusableError
from nnunet_ext.errors import UserError

NIFTI = (".nii", ".nii.gz")
_HOUNSFIELD = (-200, 100)  # a CT reaches below the first and above the second


@dataclass(frozen=True)
class Job:
    """What to do with one case.

    Attributes:
        case: what was found of it.
        target: the raw data set's folder.
        ending: of all its files.
        rules: how it is checked.
        values: that its labels may have in the data set.
        mode: "symlink", "hardlink" or "copy", for files that are right as they are.
        check: "none" opens nothing but the first header (and files that must be rewritten), "fast" reads headers and
            labels, "full" also the voxels of images.
        fix_nan: replace NaN and infinities instead of refusing them.
        reorient: turn all axes to RAS.
        copy_geometry: labels get the image's geometry even if the data set isn't known to be aligned.
        in_place: the download is the data set's own folder: it is checked, and no file of it is changed or moved.
        reader: name of nnU-Net's reader in dataset.json; None: SimpleITK's, which nnU-Net chooses for NIfTI files.
        settings: a checksum of all these but the case (`state.settings_of`), so that a later run knows whether they
            are the same.
    """

    case: Case
    target: Path
    ending: str
    rules: Rules
    values: frozenset[int]
    mode: str = "symlink"
    check: str = "full"
    fix_nan: bool = False
    reorient: bool = False
    copy_geometry: bool = False
    in_place: bool = False
    reader: str | None = field(default=None, kw_only=True)
    settings: str = ""

    @property
    def trusts_names(self) -> bool:
        """Whether only the first image's header is read, for its geometry, where nothing else has to be known."""
        return self.check == "none" and not self.reorient and not self.copy_geometry

    @property
    def headers_only(self) -> bool:
        """Whether images are looked at no further than their headers."""
        return self.check == "none" or self.case.part == "unlabelled"


def convert_case(job: Job) -> dict[str, Any]:
    """Check a case and bring its files into the data set; all of them, or none.

    Returns:
        Its entry in conversion.json.

    Raises:
        UnusableError: the case has to be left out; says why.
        OSError: the target can't be written.
    """
    if job.ending not in NIFTI:
        from nnunet_ext.dataset_conversion.other_work import convert_other

        return convert_other(job)
    try:
        notices = list(job.case.notices)
        images = _plan_images(job, notices)
        label = _plan_label(job, images, notices)
        if job.reorient:
            turn_all_to_ras([*images, *([] if label is None else [label])])
        label_values = None if label is None else _check_label(job, label, notices)
        _check_images(job, images, label, notices)
        with files.Outputs(job.target) as outputs:
            entries = [_write(job, image, outputs, files.IMAGE_LEVEL) for image in images]
            label_entry = None if label is None else _write(job, label, outputs, files.LABEL_LEVEL)
    except UserError as error:  # of an archive
        raise UnusableError(str(error)) from error
    if label_entry is not None and label_values is not None:
        label_entry["values"] = {str(value): count for value, count in sorted(label_values.items())}
    return {
        "part": job.case.part,
        "group": job.case.group or job.case.id,
        "details": dict(job.case.details),
        "images": entries,
        "label": label_entry,
        "geometry": {"original": images[0].original, "written": volumes.geometry(images[0].header, images[0].grid[0])},
        "notices": notices,
    }


def _plan_images(job: Job, notices: list[str]) -> list[Planned]:
    """The channels' files, their headers read and made to agree."""
    folder, channels = FOLDERS[job.case.part][0], job.rules.channels
    split = len(job.case.images) == 1 and channels > 1
    sources = job.case.images * channels if split else job.case.images
    if len(sources) != channels:
        raise UnusableError(f"{len(sources)} images for {channels} channels.")
    planned = [
        Planned(
            source, f"{folder}/{job.case.id}_{channel:04d}{job.ending}", channel if split else None, reader=job.reader
        )
        for channel, source in enumerate(sources)
    ]
    for image in planned:
        if job.trusts_names and image is not planned[0] and not split and not _recompressed(job, image):
            continue
        read_header(image, channels, notices)
        if image is not planned[0]:
            agree(image, planned[0], _trusted(job), notices)
    return planned


def _plan_label(job: Job, images: list[Planned], notices: list[str]) -> Planned | None:
    if job.case.label is None:
        if job.case.part == "training":
            raise UnusableError("no label. Is this the training part of the download?")
        return None
    label = Planned(job.case.label, f"{FOLDERS[job.case.part][1]}/{job.case.id}{job.ending}", reader=job.reader)
    if job.trusts_names and job.rules.label_map is None and not _recompressed(job, label):
        return label
    read_header(label, 1, notices)
    agree(label, images[0], _trusted(job), notices)
    return label


def _recompressed(job: Job, file: Planned) -> bool:
    """Whether a file must be written anew because it is compressed, or is not."""
    return file.compressed != job.ending.endswith(".gz")


def _trusted(job: Job) -> bool:
    return job.rules.aligned or job.copy_geometry


def _check_label(job: Job, label: Planned, notices: list[str]) -> dict[int, int] | None:
    """Check a label's values, map them, and count the voxels of each; None if it needn't be opened."""
    if job.check == "none" and job.rules.label_map is None and not label.changes:
        return None  # it is linked as it is
    volume = label.load()
    found = LabelValues(volume.values(), label.source.where)
    target = found.targets(job.rules, job.values)
    if not any(value for value in target.values()):
        text = f"{label.source.base}: no voxel is labelled"
        if job.rules.empty == "error":
            raise UnusableError(f"{text}; in this data set every case has some: a broken download?")
        if job.rules.empty == "notice":
            notices.append(text)
    renamed = {old: new for old, new in target.items() if old != new}
    if renamed:
        label.change(f"labels mapped: {', '.join(f'{old} to {new}' for old, new in sorted(renamed.items()))}")
    elif not found.stored_as_integers or volumes.scaling(label.header) != (1.0, 0.0):
        stored = f"{label.header.get_data_dtype()}, slope and intercept {volumes.scaling(label.header)}"
        if job.in_place:
            notices.append(f"{label.source.base}: stored as {stored}; left so, nnU-Net reads it")
        else:
            label.change(f"stored as integers, not as {stored}")
    if label.changes:
        volume.stored = mapped(found.integers, target)
        label.header.set_data_dtype(volume.stored.dtype)
        label.header.set_slope_inter(1, 0)
    counts: dict[int, int] = {}
    for old, count in found.counts.items():
        counts[target[old]] = counts.get(target[old], 0) + count
    return counts


def _check_images(job: Job, images: list[Planned], label: Planned | None, notices: list[str]) -> None:
    """Check what lies behind the headers, as far as asked for."""
    if job.headers_only:
        return
    for image in images:
        if job.check == "full":
            _check_voxels(job, image, notices)
        elif not image.changes:
            _check_length(image)
    if job.rules.inspect is not None and label is not None:
        reason = job.rules.inspect(images[0].load().values(), label.load().values())
        if reason:
            raise UnusableError(reason)


def _check_voxels(job: Job, image: Planned, notices: list[str]) -> None:
    volume = image.load()
    if volume.stored.dtype.kind == "f" and not np.isfinite(volume.stored).all():
        bad = ~np.isfinite(volume.stored)
        if not job.fix_nan:
            raise UnusableError(
                f"{image.source.where}: {int(bad.sum())} voxels NaN or infinite. --fix-nan sets them to "
                f"{'0' if job.rules.nan == 'zero' else 'the lowest finite value'}."
            )
        lowest = volume.stored[~bad].min() if not bad.all() else 0
        stored = volume.stored.copy()
        stored[bad] = 0 if job.rules.nan == "zero" else lowest
        volume.stored = stored
        image.change(f"NaN or infinite voxels ({int(bad.sum())}) set to {stored[bad][0]:g}")
        notices.append(f"{image.source.base}: {image.changes[-1]}")
    if job.rules.ct:
        slope, inter = volumes.scaling(volume.header)
        low, high = sorted(float(value) * slope + inter for value in (volume.stored.min(), volume.stored.max()))
        if low >= _HOUNSFIELD[0] or high <= _HOUNSFIELD[1]:
            notices.append(f"{image.source.base}: {low:g} to {high:g} do not look like Hounsfield units")


def _check_length(image: Planned) -> None:
    """Notice a file that is cut off, without uncompressing it where its last bytes tell its length."""
    header = image.header
    shape, dtype = header.get_data_shape(), header.get_data_dtype()
    needed = int(header.get_data_offset()) + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if not image.compressed:
        if image.source.size < needed:
            raise volumes.damaged(image.source, f"{image.source.size} bytes of {needed}")
        return
    with image.source.open() as stream:
        stream.seek(image.source.size - 4)
        stated = int.from_bytes(stream.read(4), "little")
    if stated != needed % (1 << 32):
        image.load()  # says what is wrong, if anything is: a file may be longer than it must be


def _write(job: Job, file: Planned, outputs: files.Outputs, level: int) -> dict[str, Any]:
    """Bring one file to its place, or leave it where it already is; its entry in conversion.json."""
    source, path = file.source, job.target / file.name
    if not file.changes and _recompressed(job, file):
        file.change("uncompressed" if file.compressed else "compressed")
    own = files.lies_at(source, path)
    if (own or job.in_place) and (file.changes or not own):
        raise UnusableError(files.untouchable(source, file.changes if own else ()))
    if own:
        action = "keep"
    elif file.changes:
        volume = file.load()
        files.write_compressed(outputs.unfinished(file.name), volume.write, level)
        action = "write"
    else:
        action = files.place(source, outputs.unfinished(file.name), job.mode)
    return files.entry(source, file.name, action, file.changes, short=job.headers_only, checksum=file.checksum)
