"""One case: checked, brought into the data set, and recorded. Runs in worker processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from nnunet_ext.dataset_conversion import files, volumes
from nnunet_ext.dataset_conversion.cases import FOLDERS, Case, Rules
from nnunet_ext.dataset_conversion.label_values import LabelValues, mapped
from nnunet_ext.dataset_conversion.sources import SourceFile
from nnunet_ext.dataset_conversion.volumes import UnusableError, Volume
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
        check: "none" opens nothing but the first header (and labels that must be rewritten), "fast" reads headers and
            labels, "full" also the voxels of images.
        fix_nan: replace NaN and infinities instead of refusing them.
        reorient: turn all axes to RAS.
        copy_geometry: labels get the image's geometry even if the data set isn't known to be aligned.
        in_place: the download is the data set's own folder: it is checked, and no file of it is changed or moved.
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
    settings: str = ""

    @property
    def trusts_names(self) -> bool:
        """Whether only the first image's header is read, for its geometry, where nothing else has to be known."""
        return self.check == "none" and not self.reorient and not self.copy_geometry

    @property
    def headers_only(self) -> bool:
        """Whether images are looked at no further than their headers."""
        return self.check == "none" or self.case.part == "unlabelled"


def is_named_compressed(file: SourceFile) -> bool:
    """What the name says; the content decides where it is looked at."""
    return file.ending.endswith(".gz")


class Planned:
    """A file of the data set, from its source to what is written."""

    def __init__(self, source: SourceFile, name: str, channel: int | None = None) -> None:
        """Args: the source, the name in the data set's folder, and the place along the fourth axis, if it has one."""
        self.source, self.name, self.channel = source, name, channel
        self.header: Any = None
        self.compressed = is_named_compressed(source)
        self.original: dict[str, Any] = {}
        self.changes: list[str] = []
        self.checksum: str | None = None
        self._volume: Volume | None = None

    @property
    def grid(self) -> tuple[tuple[int, ...], np.ndarray]:
        """Shape and affine as they are to be written."""
        return tuple(self.header.get_data_shape()[:3]), np.asarray(self.header.get_best_affine(), float)

    def load(self, content: bytes | None = None) -> Volume:
        """The voxels (of the channel), with the header that is to be written."""
        if self._volume is None:
            if content is None:
                content = self.source.read()
                self.checksum = files.whole_checksum(self.source, content)
            volume = volumes.read_volume(self.source, content)
            stored = volume.stored if self.channel is None else volume.stored[..., self.channel]
            self._volume = Volume(self.header, stored.reshape(stored.shape[:3]), self.changes)
        return self._volume

    def change(self, what: str) -> None:
        """Note a change, for which the file must be written anew."""
        self.changes.append(what)


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
        for file in (*images, label) if job.reorient else ():
            if file is not None:  # all by the image's axes: a label's header may have been wrong
                _turn(file, volumes.turn_to(file.grid[1], "RAS"))
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
        Planned(source, f"{folder}/{job.case.id}_{channel:04d}{job.ending}", channel if split else None)
        for channel, source in enumerate(sources)
    ]
    for image in planned:
        if job.trusts_names and image is not planned[0] and not split:
            continue
        _read_header(image, channels, notices)
        if image is not planned[0]:
            _agree(image, planned[0], job, notices)
    return planned


def _read_header(file: Planned, channels: int, notices: list[str]) -> None:
    """Read and check a header; what is wrong with it is put right there."""
    header, file.compressed = volumes.read_header(file.source)
    where, shape = file.source.where, tuple(int(edge) for edge in header.get_data_shape())
    if file.channel is not None and (len(shape) != 4 or shape[3] != channels):
        raise UnusableError(f"{where}: shape {shape}; expected four axes, the last with the {channels} channels.")
    while file.channel is None and len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
        file.change(f"a {len(shape) + 1}th axis of length 1 dropped")
    if file.channel is None and len(shape) != 3:
        raise UnusableError(f"{where}: {len(shape)} axes, shape {shape}; expected 3, one file a channel.")
    if header.get_data_dtype().names is not None or header.get_data_dtype().kind == "c":
        raise UnusableError(f"{where}: voxels of type {header.get_value_label('datatype')}; expected one number each.")
    affine = np.asarray(header.get_best_affine(), float)
    if not np.isfinite(affine).all() or not (volumes.spacing_of(affine) > 0).all():
        raise UnusableError(f"{where}: no usable geometry: spacing {volumes.spacing_of(affine).round(6).tolist()}.")
    if isinstance(header, nibabel.Nifti2Header):
        header = volumes.as_nifti1(header)
        file.change("NIfTI-2 made NIfTI-1, which SimpleITK reads")
    file.header = header
    file.original = volumes.geometry(header, shape)
    if file.channel is not None:
        file.change(f"channel {file.channel} of the fourth axis")
    if len(header.get_data_shape()) > len(shape[:3]):
        _drop_axes(header, shape)
    _straighten(file, affine, notices)


def _drop_axes(header: Any, shape: tuple[int, ...]) -> None:
    header.set_data_shape(shape[:3])
    header["pixdim"][4:] = 1


def _straighten(file: Planned, affine: np.ndarray, notices: list[str]) -> None:
    """Make axes perpendicular that are nearly so: ITK refuses them otherwise."""
    skew = volumes.skew(affine)
    if skew <= volumes.ORTHOGONAL:
        return
    if skew > volumes.REPAIRABLE:
        raise UnusableError(
            f"{file.source.where}: its axes are not perpendicular (a cosine of {skew:.4f} between two of them; up to "
            f"{volumes.REPAIRABLE} is repaired): resample it to a rectangular grid first."
        )
    volumes.set_affine(file.header, volumes.made_perpendicular(affine), file.original["shape"])
    file.change(f"axes made perpendicular (largest cosine {skew:.1e})")
    notices.append(f"{file.source.base}: {file.changes[-1]}")


def _turn(file: Planned, turn: np.ndarray) -> None:
    if volumes.is_turn(turn):
        volume = file.load()
        volumes.turned(volume, turn)


def _agree(file: Planned, first: Planned, job: Job, notices: list[str]) -> None:
    """Make a channel or a label lie on the grid of the first image, or refuse it."""
    grids = file.grid, first.grid
    differs = volumes.difference(*grids)
    trusted = job.rules.aligned or job.copy_geometry
    if differs and not trusted:
        turn = volumes.turn_to(grids[0][1], grids[1][1])
        if volumes.is_turn(turn) and not volumes.difference(volumes.turned_grid(*grids[0], turn), grids[1]):
            _turn(file, turn)
            notices.append(f"{file.source.base}: {file.changes[-1]}, as the image {first.source.base} has them")
            return
    if differs.shape:
        raise UnusableError(
            f"{file.source.where}: shape {grids[0][0]}, but {grids[1][0]} of {first.source.base}: not the same case, "
            "or resampled."
        )
    if differs and trusted:
        _copy_geometry(file, first, notices, f"{differs} differed in the header")
    elif differs.spacing:
        raise UnusableError(
            f"{file.source.where}: spacing {_rounded(grids[0][1])} mm, but {_rounded(grids[1][1])} mm of "
            f"{first.source.base}. If their voxels do correspond, --copy-geometry lets it have the image's."
        )
    elif differs:
        notices.append(
            f"{file.source.base}: {differs} differ from those of {first.source.base}; left so, since nnU-Net goes by "
            "voxels. Look at an overlay; --copy-geometry lets it have the image's."
        )
    elif not np.allclose(volumes.spacing_of(grids[0][1]), volumes.spacing_of(grids[1][1])):
        _copy_geometry(file, first, notices, "spacing differed by less than 0.1 %, which nnU-Net does not accept")


def _rounded(affine: np.ndarray) -> list[float]:
    return [float(edge) for edge in volumes.spacing_of(affine).round(5)]


def _copy_geometry(file: Planned, first: Planned, notices: list[str], why: str) -> None:
    volumes.copy_geometry(file.header, first.header)
    file.change(f"geometry of {first.source.base} copied: {why}")
    notices.append(f"{file.source.base}: {file.changes[-1]}")


def _plan_label(job: Job, images: list[Planned], notices: list[str]) -> Planned | None:
    if job.case.label is None:
        if job.case.part == "training":
            raise UnusableError("no label. Is this the training part of the download?")
        return None
    label = Planned(job.case.label, f"{FOLDERS[job.case.part][1]}/{job.case.id}{job.ending}")
    if job.trusts_names and job.rules.label_map is None:
        return label
    _read_header(label, 1, notices)
    _agree(label, images[0], job, notices)
    return label


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
    if not file.changes and file.compressed != job.ending.endswith(".gz"):
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
