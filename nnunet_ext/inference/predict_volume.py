"""Labels of whole cases at their own resolution or any other, in memory that does not grow with the output."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from tqdm import tqdm

from nnunet_ext.architectures.blocks.adaptive_decoding import DecodeMode
from nnunet_ext.architectures.blocks.point_grid import PointGrid
from nnunet_ext.errors import UserError
from nnunet_ext.inference.label_volume import LONGEST, NIFTI, LabelVolume, image_affine, save, whole, write_nifti
from nnunet_ext.inference.volume_field import CaseField

#: Points an edge of a brick at most, and logits of a brick at most.
BRICK_EDGE, BRICK_LOGITS = 64, 1 << 23
_ROUNDING = 1e-4  # of a spacing: headers hold float32, users give a few digits


def output_grid(shape: Sequence[int], spacing: Sequence[float], wanted: Sequence[float] | None) -> PointGrid:
    """The points to be decoded: an image's voxels, or those of another spacing with the same extent.

    Args:
        shape: voxels of the image.
        spacing: of the image, in millimetres.
        wanted: as near to these as whole numbers of voxels allow; None: the image's.

    Returns:
        In voxels of the image; the spacing is ``scale * spacing``.

    Raises:
        UserError: a voxel would be larger than the image.
    """
    if wanted is None:
        return PointGrid.of_voxels(shape)
    extent = [n * old for n, old in zip(shape, spacing, strict=True)]
    if any(new > most * (1 + _ROUNDING) for new, most in zip(wanted, extent, strict=True)):
        given, most = (" x ".join(f"{mm:g}" for mm in reversed(each)) for each in (wanted, extent))
        raise UserError(f"--spacing of {given} mm (x, y, z) is larger than the image; it may be at most {most} mm")
    edges = [max(1, round(n * old / new)) for n, old, new in zip(shape, spacing, wanted, strict=True)]
    return PointGrid.resized(shape, edges)


def decode_labels(
    field: CaseField, grid: PointGrid, labels: LabelVolume, mode: DecodeMode | None = None, progress: str | None = None
) -> None:
    """Decode a grid brick by brick into labels, by nnU-Net's rules for classes and regions.

    Args:
        field: the case.
        grid: of points in its image.
        labels: of the grid's shape; what lies outside of nnU-Net's crop is left as it is, background.
        mode: how bricks are decoded; None for the network's own.
        progress: title of a progress bar; None: no bar.
    """
    edge = min(BRICK_EDGE, max(16, int((BRICK_LOGITS / field.num_classes) ** (1 / 3))))
    for brick in tqdm(field.bricks(grid, edge), desc=progress, disable=progress is None):
        part = grid.brick([s.start for s in brick], [s.stop - s.start for s in brick])
        logits = field.logits(part, mode).logits.cpu()
        labels.write(brick, field.label_manager.convert_logits_to_segmentation(logits))


def predict_case(
    predictor: Any,
    files: Sequence[str],
    target: Path,
    *,
    spacing: Sequence[float] | None = None,
    mode: DecodeMode | None = None,
    mirroring: bool = False,
    progress: str | None = None,
) -> PointGrid:
    """Predict a case and write its labels.

    Args:
        predictor: nnU-Net's, with an OSS-Net.
        files: the case's channels.
        target: the image to write, with nnU-Net's file ending.
        spacing: of the output, in millimetres, in the reader's axis order (z, y, x); None: that of the image.
        mode: how points are decoded; None for the network's own.
        mirroring: average over mirrored windows.
        progress: title of a progress bar; None: no bar.

    Returns:
        The points whose labels were written, in voxels of the image.

    Raises:
        UserError: the images cannot be read or are not in 3D, the output is too large for its format, or the model is
            none that this works for.
    """
    field = CaseField.load(predictor, files, mirroring=mirroring)
    grid = output_grid(field.shape, field.spacing, spacing)
    image_affine(field.properties)
    if max(grid.shape) > LONGEST:
        raise UserError(f"an output of {grid.shape} voxels (z, y, x) is too large; give a coarser --spacing")
    manager = field.label_manager
    highest = max(manager.regions_class_order if field.regions else manager.all_labels)
    with _labels(target, grid.shape, highest) as labels:
        decode_labels(field, grid, labels, mode, progress)
        save(labels, target, grid, field.properties, predictor.plans_manager.image_reader_writer_class())
    return grid


def predict_published_case(
    predictor: Any, files: Sequence[str], target: Path, adapter: str, *, mode: str | None = None
) -> PointGrid:
    """Predict a case by an imported published network, with its authors' preprocessing instead of nnU-Net's.

    Args:
        predictor: nnU-Net's, with the network.
        files: the case's channels, NIfTI.
        target: the image to write, NIfTI.
        adapter: name of the preprocessing.
        mode: how points are decoded, "reference" as by the authors; None for the network's own.

    Returns:
        The image's voxels, axes (z, y, x).

    Raises:
        UserError: the images cannot be read, or are no NIfTI files.
    """
    from nnunet_ext.inference.published_volume import predict_published

    if not all(name.endswith(NIFTI) for name in (*files, target.name)):
        raise UserError(f"imported OSS-Nets are given NIfTI files, as they were published; got {', '.join(files)}")
    images: list[Any] = [nibabel.load(name) for name in files]
    shapes = {image.shape for image in images}
    if len(shapes) > 1 or len(images[0].shape) != 3:
        raise UserError(f"channels must be 3D images of one shape; got {', '.join(map(str, sorted(shapes)))}")
    image = np.stack([image.get_fdata(dtype=np.float32) for image in images])
    network = getattr(predictor.network, "_orig_mod", predictor.network).to(predictor.device).eval()
    found = np.asarray(predict_published(network, image, adapter, mode))
    grid = PointGrid.of_voxels(found.shape[::-1])
    with _labels(target, grid.shape, int(found.max())) as labels, whole(target) as path:
        labels.write((slice(None),) * 3, found.T)
        write_nifti(labels, path, images[0].affine)
    return grid


@contextmanager
def _labels(target: Path, shape: Sequence[int], highest: int) -> Iterator[LabelVolume]:
    """Labels in a temporary file beside the image that is to be made of them: as much room as that, uncompressed."""
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        yield LabelVolume(Path(folder) / "labels", shape, highest)
