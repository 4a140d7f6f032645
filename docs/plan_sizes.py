"""Patch and batch sizes that planners choose for a data set described by its median image, without any images.

python docs/plan_sizes.py                                          # 300 x 300 x 300 voxels of 1 mm
python docs/plan_sizes.py --shape 40 512 512 --spacing 5 0.8 0.8   # thick slices
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

DATASET = "Dataset001_Described"
PLANNERS = (
    *("SSHUNetPlanner", "SSHUNetPlannerL", "SSHUNetPlannerXL", "SSHUNetPlanner_W16", "SSHUNetPlanner_Published"),
    *("UNETRPPPlanner", "UNETRPPPlannerL", "UNETRPPPlannerXL", "UNETRPPPlanner_W8", "UNETRPPPlanner_Synapse"),
    *("NNFormerPlanner", "NNFormerPlannerL", "NNFormerPlanner_W24"),
    *("OSSNetPlanner", "OSSNetPlannerL", "OSSNetPlanner_W16", "OSSNetPlanner_Published"),
)


def describe(folder: Path, options: argparse.Namespace) -> None:
    """Write dataset.json and dataset_fingerprint.json, which is all that planners read."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (folder / variable / DATASET).mkdir(parents=True)
        os.environ[variable] = str(folder / variable)
    os.environ["nnUNet_n_proc_DA"] = "1"
    dataset = {
        "channel_names": {str(i): "MRI" for i in range(options.channels)},
        "labels": {"background": 0, **{f"label{i}": i for i in range(1, options.classes)}},
        "numTraining": options.cases,
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "SimpleITKIO",
        "dataset": {"case": {"images": ["case_0000.nii.gz"], "label": "case.nii.gz"}},
    }
    statistics = dict.fromkeys(("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std"), 1.0)
    fingerprint = {
        "spacings": [options.spacing] * options.cases,
        "shapes_after_crop": [options.shape] * options.cases,
        "foreground_intensity_properties_per_channel": {str(i): statistics for i in range(options.channels)},
        "median_relative_size_after_cropping": 1.0,
    }
    (folder / "nnUNet_raw" / DATASET / "dataset.json").write_text(json.dumps(dataset))
    (folder / "nnUNet_preprocessed" / DATASET / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))


def row(planner: Any) -> str:
    """One row of the table: what this planner writes for 3d_fullres."""
    with contextlib.redirect_stdout(io.StringIO()):
        configuration = planner.plan_experiment()["configurations"]["3d_fullres"]
    patch = " x ".join(str(edge) for edge in configuration["patch_size"])
    stages = configuration["architecture"]["arch_kwargs"]["n_stages"]
    return f"| {type(planner).__name__} | {patch} | {configuration['batch_size']} | {stages} |"


def main() -> None:
    """Plan with every planner and write a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=[300, 300, 300], help="median image in voxels (z y x)")
    parser.add_argument("--spacing", type=float, nargs=3, default=[1.0, 1.0, 1.0], help="mm (z y x)")
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--classes", type=int, default=3, help="with the background (default: 3)")
    parser.add_argument("--cases", type=int, default=300)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        describe(Path(folder), options)
        from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

        from nnunet_ext.planners.variants import planner_class

        sys.stdout.write("| planner | patch | batch | stages |\n| --- | --- | --- | --- |\n")
        for planner in (ExperimentPlanner, *map(planner_class, PLANNERS)):
            sys.stdout.write(row(planner(DATASET)) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
