"""The demo's pictures: image, reference and prediction in three planes, and the training curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import Normal, Stroke

from nnunet_ext.demo.results import case_dice, lowest_median_highest
from nnunet_ext.demo.training_log import read_epochs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure
    from numpy.typing import NDArray

COLOURS = ("#ff9f1c", "#2ec4ff", "#7ae582", "#ff6b9d", "#c9a7ff", "#f4e04d")  # of the structures, on grey images
FOLD_COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#8d6a9f")
# Name, axis that is cut, axes shown to the right and upwards, flip the first (patient's right on the left), borders.
PLANES: tuple[tuple[str, int, tuple[int, int], bool, tuple[str, str]], ...] = (
    ("sagittal", 0, (1, 2), False, ("P", "A")),
    ("coronal", 1, (0, 2), True, ("R", "L")),
    ("axial", 2, (0, 1), True, ("R", "L")),
)
CREDIT = "Data: Medical Segmentation Decathlon, Task04 Hippocampus (arXiv:1902.09063). Data and picture: CC-BY-SA 4.0."


def draw_overlay(
    path: Path,
    images: Path,
    references: Path,
    predictions: Path,
    summary: Mapping[str, Any],
    names: Mapping[str, str],
    title: str,
) -> None:
    """Draw the held-back cases with the lowest, the median and the highest Dice.

    Args:
        path: the PNG to write.
        images: the folder of images, ``CASE_0000.nii.gz``.
        references: the folder of their labels, ``CASE.nii.gz``.
        predictions: the folder of predicted segmentations.
        summary: their ``summary.json``.
        names: label to structure.
        title: of the picture.
    """
    dice = case_dice(summary)
    chosen = lowest_median_highest(dice)
    words = ("lowest", "median", "highest") if len(chosen) == 3 else ("lowest", "highest")
    figure = Figure(figsize=(5.8 * len(chosen), 7.0), facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(f"Held-back cases, ensemble of two folds of {title}", fontsize=13, y=0.985)
    grid = figure.add_gridspec(3, len(chosen), height_ratios=(0.6, 10, 1))  # title, cases, legend
    legend = figure.add_subfigure(grid[2, :])
    parts = [figure.add_subfigure(grid[1, column]) for column in range(len(chosen))]
    for part, case, word in zip(parts, chosen, words[: len(chosen)], strict=True):
        image, spacing = _canonical(images / f"{case}_0000.nii.gz")
        reference, _ = _canonical(references / f"{case}.nii.gz")
        prediction, _ = _canonical(predictions / f"{case}.nii.gz")
        draw_case(part, image, reference, prediction, spacing, [int(label) for label in names])
        part.suptitle(f"{case}: Dice {dice[case]:.2f} ({word})", fontsize=12, y=0.97)
    handles: list[Any] = [
        Patch(facecolor=colour, label=name) for name, colour in zip(names.values(), COLOURS, strict=False)
    ]
    handles.append(Line2D([], [], color="white", linestyle="--", label="reference's outline, on the prediction"))
    legend.legend(handles=handles, loc="upper center", ncols=len(handles), facecolor="#777777", labelcolor="white")
    legend.text(0.5, 0.12, CREDIT, ha="center", fontsize=8, color="#555555")
    figure.savefig(path, dpi=130)


def draw_case(
    figure: SubFigure,
    image: NDArray[np.floating[Any]],
    reference: NDArray[np.integer[Any]],
    prediction: NDArray[np.integer[Any]],
    spacing: Sequence[float],
    labels: Sequence[int],
) -> None:
    """Three rows (sagittal, coronal, axial) of image, reference and prediction.

    Each plane is cut where it shows most of the reference. Coronal and axial: the patient's right is on the left.

    Args:
        figure: where to draw.
        image: (X, Y, Z), increasing to the patient's right, front and head (RAS).
        reference: (X, Y, Z), labels.
        prediction: (X, Y, Z), labels.
        spacing: of the voxels along X, Y and Z, in mm.
        labels: the structures' labels.
    """
    low, high = np.percentile(image, (0.5, 99.5))
    heights = [image.shape[up] * spacing[up] for _, _, (_, up), _, _ in PLANES]  # planes at about one scale
    margins = {"top": 0.87, "bottom": 0.01, "left": 0.06, "right": 0.98, "hspace": 0.03, "wspace": 0.03}
    grid = figure.subplots(3, 3, gridspec_kw={**margins, "height_ratios": heights})
    for row, (plane, axis, _, _, borders) in zip(grid, PLANES, strict=True):
        position = most_labelled(reference, axis)
        cuts = [cut(volume, axis, position) for volume in (image, reference, prediction)]
        extent, marked = _extent(cuts[0].shape, axis, spacing), (None, cuts[1], cuts[2])
        for axes, title, labelled in zip(row, ("image", "reference", "prediction"), marked, strict=True):
            axes.imshow(cuts[0], "gray", vmin=low, vmax=high, origin="lower", extent=extent, interpolation="bicubic")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if labelled is not None:
                _draw_structures(axes, labelled, labels, extent)
            if axis == 0:
                axes.set_title(title, fontsize=10, pad=4)
        _draw_outlines(row[2], cuts[1], labels, extent)
        row[0].set_ylabel(plane, fontsize=10)
        edge = [Stroke(linewidth=2, foreground="black"), Normal()]
        for x, border in zip((0.05, 0.95), borders, strict=True):
            place = {"transform": row[0].transAxes, "ha": "center", "va": "center"}
            row[0].text(x, 0.5, border, color="white", fontsize=10, path_effects=edge, **place)


def most_labelled(labels: NDArray[np.integer[Any]], axis: int) -> int:
    """The position along an axis of the plane with most foreground; the middle of the volume if there is none."""
    others = tuple(other for other in range(3) if other != axis)
    area = (labels > 0).sum(axis=others)
    return int(area.argmax()) if area.any() else labels.shape[axis] // 2


def cut(volume: NDArray[Any], axis: int, position: int) -> NDArray[Any]:
    """A plane of an RAS volume (X, Y, Z) as it is shown, (rows from below, columns): see `PLANES`."""
    plane = np.take(volume, position, axis=axis).T
    return plane[:, ::-1] if PLANES[axis][3] else plane


def draw_training_curve(path: Path, logs: Mapping[str, Path], iterations: int, title: str) -> None:
    """Draw losses and pseudo Dice of every fold over the iterations.

    Args:
        path: the PNG to write.
        logs: fold to the output of its training.
        iterations: of an epoch.
        title: of the picture.
    """
    figure = Figure(figsize=(10, 4.2), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12)
    losses, dice = figure.subplots(1, 2)
    for (fold, log), colour in zip(logs.items(), FOLD_COLOURS, strict=False):
        epochs = read_epochs(log.read_text(errors="replace"))
        steps = [iterations * (number + 1) for number in range(len(epochs))]
        losses.plot(steps, [epoch.train_loss for epoch in epochs], ".-", color=colour, label=f"{fold}, training")
        losses.plot(steps, [epoch.val_loss for epoch in epochs], ".--", color=colour, label=f"{fold}, validation")
        dice.plot(steps, [epoch.mean_dice for epoch in epochs], ".-", color=colour, label=fold)
    losses.set(xlabel="iteration", ylabel="loss (Dice + cross-entropy)")
    dice.set(xlabel="iteration", ylabel="pseudo Dice on validation patches", ylim=(0, 1))
    for axes in (losses, dice):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=130)


def _canonical(path: Path) -> tuple[NDArray[Any], tuple[float, ...]]:
    """An image file as (X, Y, Z) in RAS order, and its spacing in mm."""
    image: Any = nibabel.as_closest_canonical(nibabel.load(path))
    return np.asarray(image.dataobj), tuple(float(size) for size in image.header.get_zooms()[:3])


def _extent(shape: tuple[int, ...], axis: int, spacing: Sequence[float]) -> tuple[float, float, float, float]:
    right, up = PLANES[axis][2]
    return 0.0, shape[1] * float(spacing[right]), 0.0, shape[0] * float(spacing[up])


def _draw_structures(axes: Axes, plane: NDArray[Any], labels: Sequence[int], extent: tuple[float, ...]) -> None:
    for label, colour in zip(labels, COLOURS, strict=False):
        mask = (plane == label).astype(float)
        if mask.any():
            axes.contourf(mask, levels=[0.5, 1.5], colors=[colour], alpha=0.35, extent=extent, origin="lower")
            axes.contour(mask, levels=[0.5], colors=[colour], linewidths=1.6, extent=extent, origin="lower")


def _draw_outlines(axes: Axes, plane: NDArray[Any], labels: Sequence[int], extent: tuple[float, ...]) -> None:
    for label in labels:
        mask = (plane == label).astype(float)
        if mask.any():
            axes.contour(
                mask, levels=[0.5], colors=["white"], linewidths=1.0, linestyles="--", extent=extent, origin="lower"
            )
