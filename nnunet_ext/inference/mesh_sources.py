"""What surfaces are made of: a label map or probabilities, as fields that are positive inside of a class."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from scipy import ndimage

from nnunet_ext.architectures.blocks.point_grid import PointGrid
from nnunet_ext.errors import UserError
from nnunet_ext.inference.mesh import Geometry, PointField, ends_of
from nnunet_ext.inference.mesh_boxes import Box, along_axes, box_around, interpolated
from nnunet_ext.inference.mesh_images import ENDINGS, case_name, read_image, reoriented_geometry
from nnunet_ext.inference.mesh_labels import Target, channel_targets, label_targets, numbered
from nnunet_ext.inference.mesh_levels import levelled
from nnunet_ext.inference.mesh_smoothing import smoothed
from nnunet_ext.labels import has_regions

SMOOTH = 0.8  # voxels
SMALLEST_PROBABILITY = 1e-4
ROUNDING = 1e-3  # of probabilities, which may be stored as 16 bits
MOST_LABELS = 256
MOST_MEASURED = 2**27  # points of a field whose pieces are measured; of more, their voxels are counted
NAMES_FILE = "dataset.json"


class Source(Protocol):
    """Fields of classes or regions of one image.

    Attributes:
        case: its name.
        geometry: where it lies.
        targets: all classes and regions but the background.
        any_number: whether other numbers than those of `targets` may be labels too.
        joinable: whether several targets may be joined to one.
        on_voxels: whether `boxes` asks every voxel of the image, however coarse the grid.
    """

    case: str
    geometry: Geometry
    targets: list[Target]
    any_number: bool
    joinable: bool
    on_voxels: bool

    def boxes(self, targets: Sequence[Target], grid: PointGrid) -> dict[Target, Box]:
        """The part of the grid in which each target lies; without those that do not occur."""
        ...

    def fields(self, boxes: Mapping[Target, Box], grid: PointGrid) -> Iterator[tuple[Target, np.ndarray]]:
        """Each target's field, float32, at the points of its box."""
        ...

    def points(self, target: Target) -> PointField | None:
        """The field itself, at any voxel indices (N, 3); None where there is nothing between the voxels."""
        ...


class _OnVoxels:
    """A source that has one value a voxel."""

    case: str
    geometry: Geometry
    targets: list[Target]
    any_number = False
    joinable = True
    on_voxels = True
    margin = 2.0

    def inside(self, target: Target) -> np.ndarray:
        raise NotImplementedError

    def sampled(self, target: Target, voxels: tuple[slice, ...], grid: PointGrid) -> np.ndarray:
        raise NotImplementedError

    def boxes(self, targets: Sequence[Target], grid: PointGrid) -> dict[Target, Box]:
        found = {}
        for target in targets:
            inside = self.inside(target)
            if inside.any():
                found[target] = box_around(along_axes(inside), PointGrid.of_voxels(inside.shape), grid, self.margin)
        return found

    def fields(self, boxes: Mapping[Target, Box], grid: PointGrid) -> Iterator[tuple[Target, np.ndarray]]:
        for target, (start, shape) in boxes.items():
            part = grid.brick(start, shape)
            voxels = []
            for n, offset, scale, count in zip(self.geometry.shape, part.offset, part.scale, part.shape, strict=True):
                reach = self.margin * max(1.0, scale) + 2
                first = min(n - 1, max(0, int(np.floor(offset - reach))))
                voxels.append(slice(first, min(n, int(np.ceil(offset + scale * (count - 1) + reach)) + 1)))
            within = tuple(o - v.start for o, v in zip(part.offset, voxels, strict=True))
            yield target, self.sampled(target, tuple(voxels), PointGrid(part.shape, part.scale, within))

    def points(self, target: Target) -> PointField | None:
        return None


class LabelMap(_OnVoxels):
    """Labels of voxels; what lies between them is made smooth (`mesh_smoothing`)."""

    any_number = True

    def __init__(
        self,
        case: str,
        labels: np.ndarray,
        geometry: Geometry,
        names: Mapping[str, tuple[int, ...]] | None = None,
        smooth: float = SMOOTH,
    ) -> None:
        """Make a source of whole numbers (D, H, W).

        Args:
            case: its name.
            labels: whole numbers; other types are turned to integers.
            geometry: where it lies.
            names: of labels and regions; None: every label is one.
            smooth: standard deviation in voxels; 0 leaves stairs.
        """
        self.case, self.geometry, self.smooth = case, geometry, smooth
        self.labels = labels if labels.dtype.kind in "iu" else labels.astype(np.int64)
        self.margin = 3 * smooth + 1
        self.targets = label_targets(dict(names)) if names else self._numbered()

    def _numbered(self) -> list[Target]:
        values = [int(value) for value in np.unique(self.labels) if value > 0]
        if len(values) > MOST_LABELS:
            raise UserError(
                f"{self.case} has {len(values)} different values: an image rather than a label map; surfaces are made "
                "of label maps, probabilities between 0 and 1, and OSS-Net models"
            )
        return numbered(values)

    def inside(self, target: Target) -> np.ndarray:
        return np.isin(self.labels, target.values)

    def sampled(self, target: Target, voxels: tuple[slice, ...], grid: PointGrid) -> np.ndarray:
        inside = np.isin(self.labels[voxels], target.values)
        if self.smooth <= 0:
            return interpolated(inside.astype(np.float32) - 0.5, grid, order=1)
        smooth = smoothed(inside, [self.smooth * max(1.0, scale) for scale in grid.scale])
        if math.prod(grid.shape) > MOST_MEASURED:
            return interpolated(smooth.above_levels, grid, order=3)
        owner = ndimage.affine_transform(
            smooth.owner, grid.scale, grid.offset, grid.shape, output=np.int32, order=0, mode="nearest"
        )
        offset = tuple(o + v.start for o, v in zip(grid.offset, voxels, strict=True))
        ends = ends_of(PointGrid(grid.shape, grid.scale, offset), self.geometry)
        volumes = smooth.voxels / math.prod(grid.scale)
        return levelled(interpolated(smooth.field, grid, order=3), owner, smooth.levels, smooth.peaks, volumes, ends)


class Probabilities(_OnVoxels):
    """Probabilities (K, D, H, W) of classes or regions; the surface is where a class is as likely as all others."""

    def __init__(self, case: str, values: np.ndarray, geometry: Geometry, targets: list[Target], regions: bool) -> None:
        """Make a source; `targets` have channels for values, and regions cannot be joined."""
        self.case, self.geometry, self.targets, self.values = case, geometry, targets, values
        self.joinable = not regions

    def _of(self, target: Target, voxels: tuple[slice, ...]) -> np.ndarray:
        found = self.values[target.values[0]][voxels].astype(np.float32)
        for channel in target.values[1:]:
            found = found + self.values[channel][voxels]
        return found

    def inside(self, target: Target) -> np.ndarray:
        return self._of(target, (slice(None),) * 3) > 0.5

    def sampled(self, target: Target, voxels: tuple[slice, ...], grid: PointGrid) -> np.ndarray:
        p = np.clip(self._of(target, voxels), SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
        return interpolated(np.log(p) - np.log1p(-p), grid, order=1)


def probability_file(path: Path, names: dict[str, tuple[int, ...]] | None, image: Path | None = None) -> Probabilities:
    """nnUNetv2_predict --save_probabilities: CASE.npz beside CASE.nii.gz, which says where it lies.

    Args:
        path: of the .npz.
        names: of classes or regions; None: they have numbers.
        image: any image of the same geometry; None: the one beside it.

    Raises:
        UserError: a file is missing, is not what it should be, or they do not fit.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    try:
        with np.load(path, allow_pickle=False) as content:
            values = content["probabilities"]
    except KeyError as error:
        raise UserError(f'{path} has no "probabilities", which nnUNetv2_predict --save_probabilities writes') from error
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"cannot read {path} as a file of probabilities: {error}") from error
    image = image or _image_beside(path)
    geometry = read_image(image)[1]
    geometry = reoriented_geometry(image, _reader(path.parent)) or geometry
    if values.ndim != 4 or values.dtype.kind != "f" or tuple(values.shape[1:]) != geometry.shape:
        raise UserError(
            f"{path} has numbers of shape {values.shape}, and {image} has voxels {geometry.shape}; they must be "
            "probabilities (classes, *voxels)"
        )
    _check_probabilities(path, values)
    return _probabilities(case_name(path), values, geometry, names)


def _check_probabilities(path: Path, values: np.ndarray) -> None:
    if not values.size:
        raise UserError(f"{path} has no probabilities: its shape is {values.shape}")
    low, high = float(values.min()), float(values.max())  # NaN if any is
    if not (np.isfinite(low) and np.isfinite(high)):
        raise UserError(f"{path} has values that are no numbers (NaN) or infinite")
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise UserError(
            f"{path} has values from {low:g} to {high:g}; probabilities are between 0 and 1, and logits are not taken: "
            "give what nnUNetv2_predict --save_probabilities writes"
        )


def _probabilities(
    case: str, values: np.ndarray, geometry: Geometry, names: dict[str, tuple[int, ...]] | None
) -> Probabilities:
    channels = len(values)
    if names:
        regions = has_regions({"labels": names})
        targets = channel_targets(names, regions)
        if channels != len(names) + (0 if regions else 1) or max(max(t.values) for t in targets) >= channels:
            raise UserError(
                f"{case} has {channels} channels of probabilities, which are not those of the names "
                f"{', '.join(names)}; give the model's {NAMES_FILE} by --names"
            )
        return Probabilities(case, values, geometry, targets, regions)
    some = values[:, :: max(1, values.shape[1] // 16)].astype(np.float32).sum(0)
    regions = channels == 1 or bool(np.abs(some - 1).max() > 0.02)  # classes add up to 1
    if regions:
        return Probabilities(case, values, geometry, [Target(f"region{k}", (k,), k + 1) for k in range(channels)], True)
    return Probabilities(case, values, geometry, numbered(range(1, channels)), False)


def _image_beside(path: Path) -> Path:
    for ending in ENDINGS:
        candidate = path.with_name(case_name(path) + ending)
        if candidate.is_file():
            return candidate
    raise UserError(
        f"{path} does not say where it lies: its image {case_name(path)}.nii.gz is not beside it; give any image of "
        "the same geometry by --image"
    )


def _reader(folder: Path) -> str:
    """The name of nnU-Net's reader by the plans.json that nnUNetv2_predict leaves with its predictions."""
    try:
        plans = json.loads((folder / "plans.json").read_text(encoding="utf-8"))
        return str(plans.get("image_reader_writer", ""))
    except (OSError, ValueError, AttributeError):
        return ""


def image_file(path: Path, names: dict[str, tuple[int, ...]] | None, smooth: float) -> LabelMap | Probabilities:
    """A label map; or, of numbers between 0 and 1 that are not whole, the probability of one class.

    Raises:
        UserError: it cannot be read, or is neither.
    """
    values, geometry = read_image(path)
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise UserError(f"{path} has values that are no numbers (NaN) or infinite")
        if (values != np.rint(values)).any():
            if values.min() < 0 or values.max() > 1:
                raise UserError(
                    f"{path} has values from {values.min():g} to {values.max():g} that are not whole; surfaces are "
                    "made of label maps, probabilities between 0 and 1, and OSS-Net models"
                )
            return Probabilities(case_name(path), values[None], geometry, [Target("foreground", (0,), 1)], True)
    elif values.dtype.kind not in "iub":
        raise UserError(f"{path} has values of the type {values.dtype}; surfaces are made of labels and probabilities")
    return LabelMap(case_name(path), values, geometry, names, smooth)
