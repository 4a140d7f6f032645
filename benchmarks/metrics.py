"""HD95 and surface Dice of 13 organs on 120 x 512 x 512 voxels, beside medpy, DeepMind's surface-distance and MONAI.

Organs are ellipsoids with rough surfaces, the prediction is the reference with its surface moved here and there. Every
library gets the same two label maps in memory and computes each organ; ours computes all organs of the pair. Values are
compared before times are believed. CPU time of one thread; the libraries take turns; medpy, which takes minutes, once.

    pip install medpy surface-distance-based-measures monai     # the extra `metrics`; what is missing is left out
    python benchmarks/metrics.py                                # writes benchmarks/results/metrics.*
    python benchmarks/metrics.py --shape 40 160 160             # a quick look; writes nothing without -o
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import measure
import numpy as np

from nnunet_ext.evaluation_scripts.metrics import CasePair

RESULTS = Path(__file__).resolve().parent / "results"
SHAPE = (120, 512, 512)
SPACING = (2.5, 0.78, 0.78)
ORGANS = 13
TARGETS = {"medpy": 150.0, "surface-distance": 3.0}
FAR = 3.0  # a prediction with far false positives, of the time of the normal one
MEMORY = 300  # MiB above the two label maps
TOLERANCE = 2.0
SAME = {"MONAI": 1e-5}  # computes in float32; others to 1e-9
#: name -> (module, what it computes)
LIBRARIES = {
    "medpy": ("medpy", "HD95"),
    "surface-distance": ("surface_distance", "HD95, NSD"),
    "MONAI": ("monai", "HD95 (larger of the directed)"),
}


def rough(shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Smooth noise of standard deviation 1: a coarse random field, interpolated."""
    from scipy.ndimage import zoom

    coarse = rng.standard_normal([max(2, edge // 8) for edge in shape])
    fine = zoom(coarse, [edge / size for edge, size in zip(shape, coarse.shape, strict=True)], order=1)
    return fine[tuple(slice(0, edge) for edge in shape)]


def label_maps(shape: Sequence[int], far: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Reference and prediction, uint8 (z, y, x); with `far`, each organ has false positives in the image's corners."""
    rng = np.random.default_rng(0)
    maps = np.zeros((2, *shape), np.uint8)
    sizes = np.geomspace(0.32, 0.05, ORGANS)
    for organ, size in enumerate(sizes, start=1):
        radius = [max(3.0, size * edge / 2 * rng.uniform(0.8, 1.2)) for edge in shape]
        centre = [rng.uniform(0.25, 0.75) * edge for edge in shape]
        start = [max(0, int(c - 1.4 * r)) for c, r in zip(centre, radius, strict=True)]
        stop = [min(edge, int(c + 1.4 * r) + 1) for c, r, edge in zip(centre, radius, shape, strict=True)]
        box = tuple(slice(*ends) for ends in zip(start, stop, strict=True))
        axes = np.meshgrid(*(np.arange(*ends) for ends in zip(start, stop, strict=True)), indexing="ij", sparse=True)
        distance = sum(((axis - c) / r) ** 2 for axis, c, r in zip(axes, centre, radius, strict=True))
        noise = rough(distance.shape, rng)
        maps[0][box][distance + 0.1 * noise < 1] = organ
        maps[1][box][distance + 0.1 * noise + 0.05 * rough(distance.shape, rng) < 1] = organ
        if far:
            corner = tuple(
                slice(-2 - 2 * organ, -2 * organ) if organ % 2 else slice(2 * organ, 2 + 2 * organ) for _ in shape
            )
            maps[1][corner] = organ
    return maps[0], maps[1]


def ours_hd95(reference: np.ndarray, predicted: np.ndarray) -> list[float]:
    """Pooled HD95 in mm."""
    pair = CasePair(reference, predicted, SPACING)
    return [pair.border_distances((organ,)).pooled_percentile(95) for organ in range(1, ORGANS + 1)]


def ours_elements(reference: np.ndarray, predicted: np.ndarray) -> list[float]:
    """Area-weighted HD95 in mm, and NSD."""
    pair = CasePair(reference, predicted, SPACING)
    found = [pair.element_distances((organ,)) for organ in range(1, ORGANS + 1)]
    return [value for one in found for value in (one.weighted_percentile(95), one.surface_dice(TOLERANCE))]


def ours_larger(reference: np.ndarray, predicted: np.ndarray) -> list[float]:
    """The larger of the directed percentiles in mm."""
    pair = CasePair(reference, predicted, SPACING)
    return [pair.border_distances((organ,)).larger_percentile(95) for organ in range(1, ORGANS + 1)]


def medpy_hd95(reference: np.ndarray, predicted: np.ndarray) -> list[float]:
    """As the papers' scripts do: masks of the full size, organ by organ."""
    from medpy.metric.binary import hd95

    return [hd95(predicted == organ, reference == organ, SPACING) for organ in range(1, ORGANS + 1)]


def deepmind(reference: np.ndarray, predicted: np.ndarray) -> list[float]:
    """HD95 and surface Dice of the package, which crops by itself."""
    import surface_distance as package

    values = []
    for organ in range(1, ORGANS + 1):
        distances = package.compute_surface_distances(reference == organ, predicted == organ, SPACING)
        values.append(package.compute_robust_hausdorff(distances, 95))
        values.append(package.compute_surface_dice_at_tolerance(distances, TOLERANCE))
    return values


def monai_hd95(reference: np.ndarray, predicted: np.ndarray) -> list[float]:
    """MONAI's function on the organ's masks, with its own cropping."""
    import torch
    from monai.metrics import compute_hausdorff_distance

    values = []
    for organ in range(1, ORGANS + 1):
        masks = [torch.from_numpy(labels == organ)[None, None] for labels in (predicted, reference)]
        found = compute_hausdorff_distance(*masks, include_background=True, percentile=95, spacing=list(SPACING))
        values.append(float(found))
    return values


PAIRS: dict[str, tuple[Callable[..., list[float]], Callable[..., list[float]]]] = {
    "medpy": (medpy_hd95, ours_hd95),
    "surface-distance": (deepmind, ours_elements),
    "MONAI": (monai_hd95, ours_larger),
}


def seconds_of(task: Callable[..., list[float]], maps: tuple[np.ndarray, np.ndarray]) -> tuple[float, list[float]]:
    """CPU seconds and values."""
    start = time.process_time()
    values = task(*maps)
    return time.process_time() - start, values


def compared(name: str, maps: tuple[np.ndarray, np.ndarray], rounds: int) -> dict[str, Any]:
    """A library and ours in turns: times, their ratio, and how far the values are apart."""
    theirs, ours = PAIRS[name]
    times: dict[str, list[float]] = {"theirs": [], "ours": []}
    for _ in range(1 if name == "medpy" else rounds):
        spent, expected = seconds_of(theirs, maps)
        times["theirs"].append(spent)
        spent, found = seconds_of(ours, maps)
        times["ours"].append(spent)
    apart = max(abs(a - b) / max(1.0, abs(b)) for a, b in zip(found, expected, strict=True))
    faster = median(a / b for a, b in zip(times["theirs"], times["ours"], strict=True))
    return {"seconds": times, "faster": faster, "apart": apart, "computes": LIBRARIES[name][1]}


def far_ratio(maps: tuple[np.ndarray, np.ndarray], shape: Sequence[int], rounds: int) -> float:
    """Time of a prediction with far false positives by that of the normal one; HD95."""
    bad = label_maps(shape, far=True)
    times = [(seconds_of(ours_hd95, bad)[0], seconds_of(ours_hd95, maps)[0]) for _ in range(rounds)]
    return median(one / other for one, other in times)


def child(shape: Sequence[int], task: str) -> None:
    """Peak memory above the label maps, in a process of its own."""
    maps = label_maps(shape)
    with measure.extra_peak() as peak:
        {"hd95": ours_hd95, "elements": ours_elements}[task](*maps)
    print(json.dumps({"mib": peak["peak"] / 2**20}))


def table(found: dict[str, Any]) -> str:
    """The result as Markdown."""
    shape = " x ".join(map(str, found["shape"]))
    lines = [
        f"{ORGANS} organs on {shape} voxels of {SPACING} mm, {found['border_voxels']} border voxels in the reference; "
        "CPU time of one thread.",
        "",
        "| library | computes | ours is faster by | values differ by at most |",
        "|---|---|---|---|",
    ]
    for name, row in found["libraries"].items():
        target = TARGETS.get(name)
        met = "" if target is None else f" (target {target:g}: {'met' if row['faster'] >= target else 'MISSED'})"
        lines.append(f"| {name} | {row['computes']} | {row['faster']:.1f}{met} | {row['apart']:.1e} |")
    far, memory = found["far"], found["memory"]
    lines += [
        "",
        f"* A prediction with false positives in far corners takes {far:.2f} times as long (at most {FAR:g}: "
        f"{'met' if far <= FAR else 'MISSED'}).",
        *(
            f"* Peak memory above the two label maps, {name}: {mib:.0f} MiB (less than {MEMORY}: "
            f"{'met' if mib < MEMORY else 'MISSED'})."
            for name, mib in memory.items()
        ),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write the result of a full run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--shape", type=int, nargs=3, default=SHAPE)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", dest="output", type=Path, help="folder of the result")
    parser.add_argument("--child", choices=("hd95", "elements"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    shape = tuple(options.shape)
    if options.child:
        child(shape, options.child)
        return 0
    maps = label_maps(shape)
    ours_hd95(*maps)  # everything is imported
    installed = [name for name, (module, _) in LIBRARIES.items() if importlib.util.find_spec(module)]
    found: dict[str, Any] = {
        "shape": list(shape),
        "border_voxels": sum(len(CasePair(*maps, SPACING)._borders[0].of((organ,))) for organ in range(1, ORGANS + 1)),
        "libraries": {name: compared(name, maps, options.rounds) for name in reversed(installed)},
        "far": far_ratio(maps, shape, options.rounds),
        "memory": {
            name: measure.in_fresh_process(__file__, ["--child", task, "--shape", *map(str, shape)])["mib"]
            for name, task in (("border voxels", "hd95"), ("surface elements", "elements"))
        },
        "environment": measure.environment(),
    }
    text = table(found)
    print(text)
    for name in set(LIBRARIES) - set(installed):
        print(f"{name} is not installed and was left out.")
    output = options.output or (RESULTS if shape == SHAPE and len(installed) == len(LIBRARIES) else None)
    if output is not None:
        measure.write_results(output, "metrics", text, found)
    apart = {name: row["apart"] for name, row in found["libraries"].items()}
    return int(any(not value <= SAME.get(name, 1e-9) for name, value in apart.items()))


if __name__ == "__main__":
    sys.exit(main())
