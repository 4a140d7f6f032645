"""Surfaces of what a trained OSS-Net says of an image, at any spacing: its field is asked where points are wanted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunet_ext.architectures.blocks.point_grid import PointGrid
from nnunet_ext.errors import UserError
from nnunet_ext.inference import mesh
from nnunet_ext.inference.mesh import Geometry, PointField, check_size, grid_of
from nnunet_ext.inference.mesh_boxes import Box, along_axes, box_around
from nnunet_ext.inference.mesh_images import geometry_of_properties
from nnunet_ext.inference.mesh_labels import Target, channel_targets

BRICK = 128  # points along each axis
ONE_PASS_BYTES = 2**31
MARGIN = 2.0
OUTSIDE = -10.0  # of the field where nnU-Net has cropped the image
CHUNK = 2**17  # points asked for at once while vertices are polished


def margin_of(logits: Tensor, channels: Sequence[int], regions: bool) -> Tensor:
    """Logits (K, ...) to a field (...), positive where these channels are likelier than all others together."""
    if regions:
        return logits[channels[0]]
    inside = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    inside[list(channels)] = True
    return logits[inside].logsumexp(0) - logits[~inside].logsumexp(0)


class ModelField:
    """A source (`mesh_sources.Source`) that asks a network.

    Where the spacing is that of the image, all is evaluated once. Else the image's voxels (or the wanted points, if
    those are fewer) tell where each class lies, and only the bricks there are evaluated.
    """

    any_number = False
    on_voxels = False

    def __init__(self, case: str, field: Any, names: dict[str, tuple[int, ...]], regions: bool) -> None:
        """Make a source.

        Args:
            case: its name.
            field: a `volume_field.CaseField`.
            names: the model's classes or regions.
            regions: whether a channel is a region.
        """
        self.case, self.field, self.regions = case, field, regions
        self.joinable = not regions
        self.geometry: Geometry = geometry_of_properties(field.properties, tuple(field.shape), tuple(field.spacing))
        self.targets = channel_targets(names, regions)

    def boxes(self, targets: Sequence[Target], grid: PointGrid) -> dict[Target, Box]:
        coarse = grid_of(
            self.geometry, [max(s, 1.0) * mm for s, mm in zip(grid.scale, self.geometry.spacing, strict=True)]
        )
        if coarse.shape == grid.shape and len(targets) * math.prod(grid.shape) * 4 <= ONE_PASS_BYTES:
            return dict.fromkeys(targets, ((0,) * 3, grid.shape))
        occupied = {target: [np.zeros(n, dtype=bool) for n in coarse.shape] for target in targets}
        for where in self.field.bricks(coarse, BRICK):
            logits = self._logits(coarse.brick([s.start for s in where], [s.stop - s.start for s in where]))
            for target, found in occupied.items():
                inside = (margin_of(logits, target.values, self.regions) > 0).cpu().numpy()
                for axis, along in enumerate(along_axes(inside)):
                    found[axis][where[axis]] |= along
        return {target: box_around(found, coarse, grid, MARGIN) for target, found in occupied.items() if found[0].any()}

    def fields(self, boxes: Mapping[Target, Box], grid: PointGrid) -> Iterator[tuple[Target, np.ndarray]]:
        for target, (start, shape) in boxes.items():
            check_size(grid.brick(start, shape), target.name)
        for together in _held_together(boxes):
            yield from self._evaluated(together, grid)

    def _evaluated(self, boxes: Mapping[Target, Box], grid: PointGrid) -> Iterator[tuple[Target, np.ndarray]]:
        values = {target: np.full(shape, OUTSIDE, dtype=np.float32) for target, (_, shape) in boxes.items()}
        first = tuple(min(start[axis] for start, _ in boxes.values()) for axis in range(3))
        ends = tuple(max(start[axis] + shape[axis] for start, shape in boxes.values()) for axis in range(3))
        union = grid.brick(first, tuple(end - begin for begin, end in zip(first, ends, strict=True)))
        for where in self.field.bricks(union, BRICK):
            start = tuple(s.start + begin for s, begin in zip(where, first, strict=True))
            shape = tuple(s.stop - s.start for s in where)
            parts = {target: part for target, box in boxes.items() if (part := _common(start, shape, box)) is not None}
            if not parts:
                continue
            logits = self._logits(grid.brick(start, shape))
            for target, (in_brick, in_box) in parts.items():
                values[target][in_box] = margin_of(logits, target.values, self.regions)[in_brick].cpu().numpy()
        for target in boxes:
            yield target, values.pop(target)

    def _logits(self, grid: PointGrid) -> Tensor:
        with torch.no_grad():
            logits: Tensor = self.field.logits(grid).logits.float()
        return logits

    def points(self, target: Target) -> PointField | None:
        def at(coords: np.ndarray) -> np.ndarray:
            found = []
            for part in torch.from_numpy(coords.astype(np.float32)).split(CHUNK):
                with torch.no_grad():
                    logits = self.field.logits_at(part).float()
                found.append(margin_of(logits, target.values, self.regions).cpu().numpy())
            return np.concatenate(found) if found else np.zeros(0, np.float32)

        return at


def _held_together(boxes: Mapping[Target, Box]) -> list[dict[Target, Box]]:
    """The boxes in their order, in groups whose fields can be held at once, and a padded copy of the largest."""
    groups: list[dict[Target, Box]] = []
    points = largest = 0
    for target, box in boxes.items():
        count = math.prod(box[1])
        points, largest = points + count, max(largest, count)
        if not groups or points + largest > 2 * mesh.LIMIT_POINTS:
            groups.append({})
            points = largest = count
        groups[-1][target] = box
    return groups


def _common(start: Sequence[int], shape: Sequence[int], box: Box) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
    """What a brick and a box have in common, in indices of each; None if nothing."""
    first = [max(a, b) for a, b in zip(start, box[0], strict=True)]
    last = [min(a + n, b + m) for a, n, b, m in zip(start, shape, *box, strict=True)]
    if any(end <= begin for begin, end in zip(first, last, strict=True)):
        return None

    def slices(origin: Sequence[int]) -> tuple[slice, ...]:
        return tuple(slice(f - o, e - o) for f, e, o in zip(first, last, origin, strict=True))

    return slices(start), slices(box[0])


def load_model(folder: Any, files: Sequence[Any], fold: str | None, checkpoint: str, device: str | None) -> ModelField:
    """A trained OSS-Net and an image.

    Args:
        folder: as nnUNetv2_train writes it.
        files: the image's channels.
        fold: None: the first that has the checkpoint.
        checkpoint: file name.
        device: "cpu" or "cuda"; None: cuda where there is one.

    Raises:
        UserError: the model is none, or no OSS-Net, or the files are not its channels, or there is no such device.
    """
    from nnunet_ext.inference.device import chosen_device
    from nnunet_ext.inference.mesh_images import case_name
    from nnunet_ext.inference.mesh_labels import read_names
    from nnunet_ext.inference.patches import load_predictor
    from nnunet_ext.inference.volume_field import CaseField, check_model
    from nnunet_ext.lookup import install

    install()
    predictor, _ = load_predictor(folder, fold, checkpoint, chosen_device(device))
    try:
        check_model(predictor)
    except UserError as error:
        raise UserError(f"{error}, with --save_probabilities for surfaces of its .npz files") from error
    channels = len(predictor.dataset_json["channel_names"])
    if len(files) != channels:
        raise UserError(f"{folder.name} needs {channels} channel(s) of the image by --image; got {len(files)}")
    for file in files:
        if not file.is_file():
            raise UserError(f"{file}: there is no such file")
    try:
        field = CaseField.load(predictor, [str(file) for file in files])
    except RuntimeError as error:
        raise UserError(f"cannot read {files[0].name}: {str(error).splitlines()[0]}") from error
    case = case_name(files[0])
    return ModelField(
        case.removesuffix("_0000"), field, read_names(folder / "dataset.json"), predictor.label_manager.has_regions
    )
