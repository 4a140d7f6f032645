"""Peak memory of `nnunet-ext predict-volume` for one case and outputs of 128³, 256³ and 512³ voxels.

A case is read, preprocessed, decoded adaptively and written as a NIfTI file, each output in a fresh process. The
network is an untrained `OSSNetLocal` of few features; to its logits those of a ball are added, so that points are
evaluated near a surface as of a trained network. The output lies in a file, not in memory: nothing is subtracted.

    python benchmarks/ossnet_volume.py                       # writes benchmarks/results/ossnet_volume.*
    python benchmarks/ossnet_volume.py --edges 64 128        # a quick look; writes nothing without -o
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measure
import nibabel
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_ext.architectures.ossnet_local import LocalContext, OSSNetLocal

RESULTS = Path(__file__).resolve().parent / "results"
MEGABYTE = 2**20
EDGES = (128, 256, 512)
FLAT = 1.10  # the largest peak by the smallest
IMAGE = (64, 64, 80)  # x, y, z: two windows
PATCH = [64, 64, 64]
RADIUS, STEEP = 24, 8
FEATURES = [8, 16, 32, 64]
RESAMPLING = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}


class Ball(OSSNetLocal):
    """Adds to its logits those of a class where the image is above 0; the untrained coarse heads are not asked."""

    def decode_nearby(self, context: LocalContext, coords: Tensor, x: Tensor) -> Tensor:
        size = torch.tensor(x.shape[2:], dtype=coords.dtype)
        at = ((coords + 0.5) / size * 2 - 1).flip(-1)[:, :, None, None]
        value = functional.grid_sample(x, at, padding_mode="border", align_corners=False)[..., 0, 0]
        return super().decode_nearby(context, coords, x) + STEEP * torch.cat([-value, value, -value.abs() - 1], 1)

    def presence(self, context: LocalContext) -> Any:
        return None


def image() -> np.ndarray:
    """(x, y, z), the distance to the surface of a ball in voxels, above 0 within."""
    axes = np.meshgrid(*(np.arange(edge) - (edge - 1) / 2 for edge in IMAGE), indexing="ij")
    distance: np.ndarray = RADIUS - np.sqrt(sum(axis**2 for axis in axes))
    return distance.astype(np.float32)


def plans() -> dict[str, Any]:
    """As much of nnU-Net's plans as prediction needs."""
    functions = {f"resampling_fn_{of}": "resample_data_or_seg_to_shape" for of in ("data", "seg", "probabilities")}
    configuration = {
        "spacing": [1.0, 1.0, 1.0],
        "patch_size": PATCH,
        "architecture": {"network_class_name": "OSSNetLocal", "arch_kwargs": {}, "_kw_requires_import": []},
        "preprocessor_name": "DefaultPreprocessor",
        "normalization_schemes": ["NoNormalization"],
        "use_mask_for_norm": [False],
        **functions,
        **{f"{name}_kwargs": {**RESAMPLING, "is_seg": name.endswith("seg")} for name in functions},
    }
    return {
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": {}},
        "configurations": {"3d_fullres": configuration},
    }


def predictor() -> Any:
    """nnU-Net's, on the CPU, with the untrained network."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    torch.manual_seed(0)
    strides = [[1] * 3] + [[2] * 3] * (len(FEATURES) - 1)
    network = Ball(1, len(FEATURES), FEATURES, nn.Conv3d, [[3] * 3] * len(FEATURES), strides, 3)
    made = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    manager = PlansManager(plans())
    labels = {"background": 0, "organ": 1, "core": 2}
    dataset_json = {"channel_names": {"0": "MRI"}, "labels": labels, "file_ending": ".nii.gz"}
    made.manual_initialization(
        network,
        manager,
        manager.get_configuration("3d_fullres"),
        [network.state_dict()],
        dataset_json,
        "OSSNetTrainer",
        None,
    )
    return made


def predict(edge: int) -> dict[str, float]:
    """Peak memory of this process, beyond what it had before, and seconds, for an output of edge³ voxels."""
    from nnunet_ext.inference.predict_volume import predict_case

    made = predictor()
    with tempfile.TemporaryDirectory() as folder:
        given, target = Path(folder) / "case_0000.nii.gz", Path(folder) / "case.nii.gz"
        nibabel.save(nibabel.Nifti1Image(image(), np.eye(4)), given)
        spacing = [size / edge for size in IMAGE[::-1]]
        measure.settle()
        before, start = measure.resident_bytes(), time.perf_counter()
        with measure.extra_peak() as peak:
            grid = predict_case(made, [str(given)], target, spacing=spacing)
        seconds = time.perf_counter() - start
        written: Any = nibabel.load(target)
        volume = float(np.mean(np.asarray(written.dataobj[::4, ::4, ::4]) == 1)) * np.prod(IMAGE)
        if not 0.95 < volume / (4 / 3 * np.pi * RADIUS**3) < 1.05:
            raise RuntimeError(f"The ball has {volume:.0f} voxels of the image.")
        if not written.shape == grid.shape == (edge,) * 3:
            raise RuntimeError(f"The output has {written.shape} voxels instead of {edge} an edge.")
    return {"edge": edge, "extra": peak["peak"], "peak": before + peak["peak"], "seconds": seconds}


def volume_rows(edges: Sequence[int] = EDGES, threads: int = 1) -> list[dict[str, float]]:
    """One row an output, each from a fresh process.

    Returns:
        edge: voxels an edge of the output; peak: bytes resident in the process at most, Python and libraries included;
        extra: bytes beyond what was resident before the prediction; seconds: of the prediction.
    """
    return [measure.in_fresh_process(__file__, ["--child", str(edge), "--threads", str(threads)]) for edge in edges]


def growth(rows: Sequence[dict[str, float]], key: str) -> float:
    """The largest of a column by the smallest."""
    values = [row[key] for row in rows]
    return max(values) / min(values)


def verdict(rows: Sequence[dict[str, float]], key: str) -> str:
    """Its growth, and whether it counts as none."""
    found = growth(rows, key)
    return f"**{found:.2f}** (at most {FLAT:.2f}: {'met' if found <= FLAT else 'not met'})"


def report(rows: Sequence[dict[str, float]]) -> str:
    """The table and the verdict, in Markdown."""
    header = ("output", "peak beyond start (MiB)", "peak of the process (MiB)", "output (MiB, uint8)", "seconds")
    cells = [
        (
            f"{row['edge']:.0f}³",
            f"{row['extra'] / MEGABYTE:.0f}",
            f"{row['peak'] / MEGABYTE:.0f}",
            f"{row['edge'] ** 3 / MEGABYTE:.0f}",
            f"{row['seconds']:.0f}",
        )
        for row in rows
    ]
    return "\n\n".join(
        [
            "# Whole-volume prediction: peak memory by size of the output",
            (__doc__ or "").split("\n\n")[1].replace("\n", " "),
            f"Input {' x '.join(map(str, IMAGE))} voxels, patch {' x '.join(map(str, PATCH))}, features {FEATURES}.",
            measure.markdown_table(header, cells),
            f"The largest by the smallest of these peaks: beyond start {verdict(rows, 'extra')}, of the process "
            f"{verdict(rows, 'peak')}.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edges", type=int, nargs="+", default=list(EDGES), metavar="N", help="default: 128 256 512")
    parser.add_argument("--threads", type=int, default=1, help="default: 1")
    parser.add_argument("-o", "--output", type=Path, help=f"folder (default: {RESULTS.name}, for the default edges)")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    if options.child is not None:
        print(json.dumps(predict(options.child)))
        return 0
    rows = volume_rows(options.edges, options.threads)
    text = f"{report(rows)}\n\n{measure.environment_list()}\n"
    print(text)
    output = options.output or (RESULTS if tuple(options.edges) == EDGES else None)
    if output is not None:
        measure.write_results(output, "ossnet_volume", text, {"rows": rows, "environment": measure.environment()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
