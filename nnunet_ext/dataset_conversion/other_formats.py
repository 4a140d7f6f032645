"""Images that are no NIfTI files: ITK's formats (.nrrd, .mha, .gipl), and pictures (.png, .bmp, .tif)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_ext.dataset_conversion.sources import SourceFile
from nnunet_ext.dataset_conversion.volumes import UnusableError

ITK = (".nrrd", ".mha", ".mhd", ".gipl")
TIFF = (".tif", ".tiff")


def read(file: SourceFile) -> tuple[np.ndarray, np.ndarray | None]:
    """Read an image.

    Returns:
        Its array, with ITK's formats (x, y, z) and its affine (RAS, mm); of pictures (row, column), with colours
        (row, column, colour), of TIFF files also (slice, row, column), and None. `has_colours` tells which.

    Raises:
        UnusableError: it can't be read.
    """
    try:
        with on_disk(file) as path:
            return _read_itk(path) if file.ending in ITK else (_read_picture(path), None)
    except Exception as error:  # libraries raise whatever they like
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[-1] if lines else type(error).__name__
        raise UnusableError(f"{file.where}: cannot be read ({reason}).") from error


@contextmanager
def on_disk(file: SourceFile) -> Iterator[Path]:
    """The path of a file; a member of an archive is written to a temporary one."""
    if file.member is None:
        yield file.container
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"image{file.ending}"
        path.write_bytes(file.read())
        yield path


def _read_itk(path: Path) -> tuple[np.ndarray, np.ndarray]:
    import SimpleITK

    image = SimpleITK.ReadImage(str(path))
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise ValueError(f"{image.GetDimension()} axes and {image.GetNumberOfComponentsPerPixel()} values a voxel")
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.asarray(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image).T, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _read_picture(path: Path) -> np.ndarray:
    array: np.ndarray
    if path.suffix.lower() in TIFF:
        import tifffile

        array = tifffile.imread(path)
    else:
        from skimage import io

        array = io.imread(path)
    if array.ndim not in (2, 3):
        raise ValueError(f"{array.ndim} axes")
    return array


def has_colours(file: SourceFile, array: np.ndarray) -> bool:
    """Whether the last axis of an image is one of colours. TIFF files say so; (3, row, column) counts as slices.

    Args:
        file: where the image comes from.
        array: as `read` returned it.
    """
    if file.ending in ITK or array.ndim != 3:
        return False
    if file.ending not in TIFF:
        return True
    import tifffile

    with on_disk(file) as path, tifffile.TiffFile(path) as stored:
        return str(stored.series[0].axes).endswith("S")


def without_colours(file: SourceFile, array: np.ndarray) -> np.ndarray:
    """A label map's values: of a grey picture that is stored in colours (row, column), else as they are.

    Args:
        file: where it comes from.
        array: as `read` returned it.

    Raises:
        UnusableError: the colours differ.
    """
    if not has_colours(file, array):
        return array
    if not (array[..., :1] == array[..., :3]).all():
        raise UnusableError(f"{file.where}: a picture in colours; labels must be one number a pixel.")
    return array[..., 0]


def write_labels(path: Path, labels: np.ndarray, source: SourceFile) -> None:
    """Write a label map in the format of the file that it was read from, with its geometry.

    Args:
        path: its ending chooses the format.
        labels: as `read` returned them, with other values; uint8 or uint16.
        source: the file.
    """
    if source.ending in TIFF:
        import tifffile

        tifffile.imwrite(path, labels, photometric="minisblack", compression="zlib")
        return
    if source.ending not in ITK:
        from skimage import io

        io.imsave(path, labels, check_contrast=False)
        return
    import SimpleITK

    image = SimpleITK.GetImageFromArray(labels.T)
    with on_disk(source) as original:
        image.CopyInformation(SimpleITK.ReadImage(str(original)))
    SimpleITK.WriteImage(image, str(path), True)


def geometry(array: np.ndarray, affine: np.ndarray | None) -> dict[str, Any]:
    """What conversion.json keeps of where the image lies; see `volumes.geometry`."""
    spacing = None if affine is None else np.sqrt((affine[:3, :3] ** 2).sum(axis=0)).tolist()
    return {
        "shape": [int(edge) for edge in array.shape],
        "affine": None if affine is None else affine.tolist(),
        "spacing": spacing,
    }
