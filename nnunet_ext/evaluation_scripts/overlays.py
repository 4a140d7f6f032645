"""The contours of reference and prediction over the image, in the planes where a case is worst."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke

from nnunet_ext.dataset_conversion import other_formats, volumes
from nnunet_ext.dataset_conversion.sources import IMAGE_ENDINGS, SourceFile, ending_of
from nnunet_ext.errors import UserError
from nnunet_ext.evaluation_scripts import label_maps
from nnunet_ext.evaluation_scripts.results import CaseResult
from nnunet_ext.evaluation_scripts.views import Box, Plane, Upright, box_around, cut, upright
from nnunet_ext.evaluation_scripts.worst_places import mask_of, most_different, worst_place

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = (
    "#ff9f1c",
    "#2ec4ff",
    "#7ae582",
    "#ff6b9d",
    "#c9a7ff",
    "#f4e04d",
    "#ff5a4f",
    "#2fe0c8",
    "#b5d99c",
    "#e0a899",
    "#8fb8ff",
    "#ff8cf0",
    "#d4b483",
)
"""Of structures, on grey images; they repeat."""
HEIGHT = 3.0
"""Inches of the highest plane of a case; all planes of a case have the same scale."""
DPI = 150
_DASHES = (0, (3.0, 2.2))


@dataclass(frozen=True)
class Picture:
    """One plane.

    Attributes:
        png: the file.
        width: of the picture in pixels.
        height: likewise.
        caption: plane and slice.
        alt: what is shown, for those who don't see it.
    """

    png: bytes
    width: int
    height: int
    caption: str
    alt: str


@dataclass(frozen=True)
class Overlay:
    """The pictures of a case.

    Attributes:
        pictures: the axial plane with the largest symmetric difference, and the coronal and sagittal ones through the
            worst place; one of a picture.
        legend: structures that occur in reference or prediction -> colour.
        worst: structure and distance in millimetres at the worst place, in words.
        notice: why there is no image under the contours, or "".
    """

    pictures: tuple[Picture, ...]
    legend: Mapping[str, str]
    worst: str
    notice: str = ""


def overlay(
    result: CaseResult,
    structures: Mapping[str, Sequence[int]],
    images: Path | None = None,
    ignore: int | None = None,
) -> Overlay:
    """Draw a case.

    Args:
        result: with the files of reference and prediction.
        structures: name -> label values; those with the background among them are not drawn.
        images: folder of nnU-Net's images CASE_0000.*; None: the label maps alone.
        ignore: label of the reference where nothing is evaluated.

    Raises:
        UserError: a file can't be read, or there is no prediction.
    """
    if result.predicted is None:
        raise UserError(f"{result.case} has no prediction to be drawn")
    reference, predicted = label_maps.read(Path(result.reference)), label_maps.read(Path(result.predicted))
    label_maps.same_grid(reference, predicted, (Path(result.reference), Path(result.predicted)))
    image, notice = find_image(images, result.case, reference.labels.shape)
    labels = predicted.labels if ignore is None else np.where(reference.labels == ignore, 0, predicted.labels)
    known = reference.labels if ignore is None else np.where(reference.labels == ignore, 0, reference.labels)
    stored = [known, labels] + ([] if image is None else [image])
    turned = upright(stored, reference.spacing, reference.affine)
    return draw(result.case, turned, {name: tuple(values) for name, values in structures.items()}, notice)


def draw(case: str, turned: Upright, structures: Mapping[str, tuple[int, ...]], notice: str = "") -> Overlay:
    """Draw volumes.

    Args:
        case: its id, for the alternative texts.
        turned: reference and predicted labels and, where there is one, the image.
        structures: name -> label values.
        notice: of the result.
    """
    reference, predicted = turned.volumes[:2]
    colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(structures)}
    present = set(np.unique(reference).tolist()) | set(np.unique(predicted).tolist())
    shown = {name: values for name, values in structures.items() if 0 not in values and present & set(values)}
    box = box_around(_any(reference, shown) | _any(predicted, shown), turned.spacing)
    place, structure, distance = worst_place(reference, predicted, shown, turned.spacing)
    positions = list(place)
    positions[2] = most_different(reference, predicted, shown.values(), 2)
    legend = {name: colours[name] for name in shown}
    pictures = tuple(_picture(case, turned, plane, positions, box, shown, legend) for plane in turned.planes)
    return Overlay(pictures, legend, _words(structure, distance, turned), notice)


def find_image(folder: Path | None, case: str, shape: tuple[int, ...]) -> tuple[np.ndarray | None, str]:
    """The first channel of a case's image.

    Args:
        folder: of nnU-Net's images; None: there are none.
        case: its id.
        shape: of its label map.

    Returns:
        (z, y, x) or (y, x), or None; and in words why there is none, unless none was asked for.
    """
    if folder is None:
        return None, ""
    named = (folder / f"{case}_0000{ending}" for ending in IMAGE_ENDINGS)
    path = next((path for path in named if path.is_file()), None)
    if path is None:
        return None, f"no image {case}_0000.* in {folder}"
    try:
        image = _read_image(path)
    except volumes.UnusableError as error:
        return None, str(error)
    if image.shape != shape:
        return None, f"{path.name} has the shape {image.shape}, its labels {shape}"
    return image, ""


def _read_image(path: Path) -> np.ndarray:
    """(z, y, x), of pictures (y, x), the mean of colours."""
    file = SourceFile(path.name, path, None, path.stat().st_size, path.stat().st_mtime_ns)
    if ending_of(path.name) in (".nii", ".nii.gz"):
        array = volumes.read_volume(file, file.read()).values()
        return array.reshape(array.shape[:3]).transpose(2, 1, 0) if array.size else array
    array, affine = other_formats.read(file)
    if affine is not None:
        return array.transpose(2, 1, 0)
    colours = array.ndim == 3 and array.shape[-1] in (3, 4)
    grey: np.ndarray = array[..., :3].mean(axis=-1) if colours else array
    return grey


def _any(labels: np.ndarray, structures: Mapping[str, Sequence[int]]) -> np.ndarray:
    values = {value for structure in structures.values() for value in structure}
    return mask_of(labels, values) if values else np.zeros(labels.shape, bool)


def _words(structure: str, distance: float, turned: Upright) -> str:
    if not structure or distance == 0:
        return "reference and prediction are alike"
    if math.isinf(distance):
        return f"{structure} is in the reference or the prediction alone"
    unit = "mm" if turned.planes[0].letters[0] else "voxels"
    return f"largest distance between the contours' surfaces: {distance:.1f} {unit}, {structure}"


def _picture(
    case: str,
    turned: Upright,
    plane: Plane,
    positions: Sequence[int],
    box: Box,
    structures: Mapping[str, tuple[int, ...]],
    colours: Mapping[str, str],
) -> Picture:
    """One plane, as a PNG at the case's scale."""
    position, count = positions[plane.axis], turned.volumes[0].shape[plane.axis]
    cuts = [cut(volume, plane, position, box) for volume in turned.volumes]
    edges = turned.spacing[plane.right], turned.spacing[plane.up]
    sizes = cuts[0].shape[1] * edges[0], cuts[0].shape[0] * edges[1]
    highest = max((ends[1] - ends[0]) * edge for ends, edge in zip(box[1:], turned.spacing[1:], strict=True))
    inches = [max(0.3, HEIGHT * size / highest) for size in sizes]
    limit = min(1.0, 2 * HEIGHT / max(inches))
    figure = Figure(figsize=(inches[0] * limit, inches[1] * limit), dpi=DPI, facecolor="black")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    draw_plane(axes, cuts, edges, list(structures.values()), [colours[name] for name in structures])
    if len(turned.volumes) > 2:
        inside = turned.volumes[2][tuple(slice(*ends) for ends in box)]
        low, high = np.percentile(inside, (0.5, 99.5))
        axes.images[0].set_clim(float(low), float(max(high, low + 1e-9)))
    _letters(axes, plane)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI, facecolor="black")
    width, height = (round(float(size) * DPI) for size in figure.get_size_inches())
    counted = f", slice {position + 1} of {count} {plane.start}" if plane.start else ""
    names = ", ".join(structures) or "nothing labelled"
    alt = f"{case}, {plane.name}{counted}: {names}; contours of the reference solid, of the prediction dashed"
    return Picture(content.getvalue(), width, height, f"{plane.name}{counted}", alt)


def draw_plane(
    axes: Axes,
    cuts: Sequence[np.ndarray],
    edges: tuple[float, float],
    structures: Sequence[tuple[int, ...]],
    colours: Sequence[str],
) -> None:
    """Image and contours in millimetres, the middle of the first pixel at half an edge.

    Args:
        axes: to draw in.
        cuts: reference, prediction and, where there is one, the image; (rows from below, columns).
        edges: of a pixel, across and up.
        structures: label values of each.
        colours: of each.
    """
    rows, columns = cuts[0].shape
    extent = (0.0, columns * edges[0], 0.0, rows * edges[1])
    image = cuts[2] if len(cuts) > 2 else np.zeros((rows, columns))
    axes.imshow(image, "gray", origin="lower", extent=extent, interpolation="bilinear", aspect="equal")
    x, y = ((np.arange(-1, n + 1) + 0.5) * edge for n, edge in ((columns, edges[0]), (rows, edges[1])))
    halo = [Stroke(linewidth=2.6, foreground="#000000aa"), Normal()]
    for values, colour in zip(structures, colours, strict=True):
        for labels, style, width in ((cuts[0], "solid", 1.2), (cuts[1], _DASHES, 1.5)):
            mask = np.pad(mask_of(labels, values), 1).astype(float)
            if mask.any():
                lines = axes.contour(x, y, mask, levels=[0.5], colors=[colour], linewidths=width, linestyles=[style])
                if style == "solid":
                    lines.set_path_effects(halo)
        if len(cuts) < 3:
            mask = np.pad(mask_of(cuts[0], values), 1).astype(float)
            if mask.any():
                axes.contourf(x, y, mask, levels=[0.5, 1.5], colors=[colour], alpha=0.3)
    axes.set_xlim(extent[0], extent[1])
    axes.set_ylim(extent[2], extent[3])


def _letters(axes: Axes, plane: Plane) -> None:
    """The patient's sides at the borders."""
    edge = [Stroke(linewidth=2, foreground="black"), Normal()]
    places = ((0.0, 0.5, 4, 0), (1.0, 0.5, -4, 0), (0.5, 0.0, 0, 4), (0.5, 1.0, 0, -4))
    aligned = (("left", "center"), ("right", "center"), ("center", "bottom"), ("center", "top"))
    for letter, (x, y, right, up), (ha, va) in zip(plane.letters, places, aligned, strict=True):
        axes.annotate(
            letter,
            (x, y),
            xycoords="axes fraction",
            xytext=(right, up),
            textcoords="offset points",
            ha=ha,
            va=va,
            color="white",
            fontsize=9,
            path_effects=edge,
        )
