"""Images with the place where they lie: what SimpleITK or nibabel read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nnunet_ext.errors import UserError
from nnunet_ext.inference.label_volume import image_affine
from nnunet_ext.inference.mesh import Geometry

NIBABEL_ENDINGS = (".nii", ".nii.gz", ".mgz", ".mgh", ".img", ".hdr")
ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".gipl.gz", ".gipl", ".mgz", ".mgh", ".img", ".hdr")
LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def case_name(path: Path) -> str:
    """The file's name without its ending."""
    for ending in (*ENDINGS, ".npz"):
        if path.name.lower().endswith(ending):
            return path.name[: -len(ending)]
    return path.stem


def read_image(path: Path) -> tuple[np.ndarray, Geometry]:
    """An image (D, H, W) and where it lies.

    Raises:
        UserError: there is no such file, it is no image, or not one channel in three dimensions.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    try:
        array, affine = _by_simpleitk(path)
    except RuntimeError as error:
        if not path.name.lower().endswith(NIBABEL_ENDINGS):
            raise UserError(f"cannot read {path} as an image: {_reason(error)}") from error
        array, affine = _by_nibabel(path)  # SimpleITK refuses sheared axes
    if array.ndim != 3 or 0 in array.shape:
        raise UserError(
            f"{path} is {' x '.join(map(str, array.shape))} (last axis first); surfaces need an image of three "
            "dimensions and one channel"
        )
    geometry = Geometry(tuple(array.shape), affine)
    if not (np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 0):
        raise UserError(f"{path}: its axes do not span a space; correct its header")
    return array, geometry


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].removeprefix("sitk::ERROR: ") if lines else type(error).__name__


def itk_affine(spacing: Any, origin: Any, direction: Any) -> np.ndarray:
    """From array indices (d, h, w, 1) to LPS, by SimpleITK's values, which are in x, y, z order."""
    affine = np.eye(4)
    affine[:3, :3] = (np.reshape(direction, (3, 3)) * np.asarray(spacing))[:, ::-1]
    affine[:3, 3] = origin
    return affine


def nifti_affine(affine: np.ndarray) -> np.ndarray:
    """From array indices (d, h, w, 1) to LPS, by nibabel's affine, which is from (w, h, d, 1) to RAS."""
    return (LPS_FROM_RAS @ affine)[:, [2, 1, 0, 3]]


def _by_simpleitk(path: Path) -> tuple[np.ndarray, np.ndarray]:
    import SimpleITK

    image = SimpleITK.ReadImage(str(path))
    array = SimpleITK.GetArrayFromImage(image)
    while array.ndim > 3 and array.shape[0] == 1 and image.GetNumberOfComponentsPerPixel() == 1:
        image, array = image[..., 0], array[0]
    if array.ndim != 3 or image.GetDimension() != 3:
        return array if array.ndim != 3 else array[None], np.eye(4)
    return array, itk_affine(image.GetSpacing(), image.GetOrigin(), image.GetDirection())


def _by_nibabel(path: Path) -> tuple[np.ndarray, np.ndarray]:
    import nibabel

    try:
        image: Any = nibabel.load(path)
        array = np.asarray(image.dataobj)
    except (OSError, ValueError, EOFError, nibabel.filebasedimages.ImageFileError) as error:
        raise UserError(f"cannot read {path} as an image: {_reason(error)}") from error
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    return array.T, nifti_affine(image.affine)


def reoriented_geometry(path: Path, reader: str) -> Geometry | None:
    """Where an image lies after one of nnU-Net's readers has turned its axes to RAS; None for those that turn nothing.

    Args:
        path: of an image that can be read.
        reader: its name, as in plans.json.
    """
    if reader == "NibabelIOWithReorient":
        import nibabel

        image: Any = nibabel.load(path)
        turned = image.as_reoriented(nibabel.io_orientation(image.affine))
        return Geometry(tuple(turned.shape[:3][::-1]), nifti_affine(turned.affine))
    if reader == "SimpleITKIOWithReorient":
        import SimpleITK

        image = SimpleITK.DICOMOrient(SimpleITK.ReadImage(str(path)), "RAS")
        affine = itk_affine(image.GetSpacing(), image.GetOrigin(), image.GetDirection())
        return Geometry(tuple(image.GetSize()[::-1]), affine)
    return None


def geometry_of_properties(properties: dict[str, Any], shape: tuple[int, ...], spacing: tuple[float, ...]) -> Geometry:
    """Where an image (D, H, W) lies that one of nnU-Net's readers has read; where it does not say, at the origin."""
    affine = image_affine(properties)
    if affine is None:
        return Geometry(shape, itk_affine(spacing[::-1], (0.0, 0.0, 0.0), np.eye(3)))
    return Geometry(shape, nifti_affine(affine))
