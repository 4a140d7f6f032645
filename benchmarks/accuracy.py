"""Plan, train one fold and validate it by stock commands on a CPU, and keep the curve: does a method learn real data?

python benchmarks/accuracy.py unetrpp UNETRPPPlanner_W8 UNETRPPTrainer_AdamW_NoMirroring_Seed0_20its_13epochs --gb 0.7

The data are the bundled hippocampus cases, or those of `--data` (an nnU-Net raw data set with id 4). Writes
`results/accuracy_NAME.md` with the CPU time of the training and the mean foreground Dice of the validation fold, and
nnU-Net's curve `results/accuracy_NAME.png`. One seed and few cases: this is no comparison of methods.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measure

from nnunet_ext.demo.folder import DATA, DATASET
from nnunet_ext.demo.steps import find_program
from nnunet_ext.names import plans_name

RESULTS = Path(__file__).resolve().parent / "results"
CONFIGURATION, FOLD = "3d_fullres", "0"
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def environment(folder: Path, threads: int) -> dict[str, str]:
    """nnU-Net's folders in `folder`, no augmentation workers, `threads` threads."""
    values = {name: str(folder / name) for name in FOLDERS}
    values |= {"nnUNet_def_n_proc": "1", "nnUNet_n_proc_DA": "0", "nnUNet_compile": "f"}
    return {**os.environ, **values, "OMP_NUM_THREADS": str(threads)}


def fill(folder: Path, data: Path | None) -> None:
    """Put the raw data into `folder`'s nnUNet_raw; the bundled cases where no data set is given."""
    for name in FOLDERS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    if data is None:
        shutil.copytree(DATA / DATASET, folder / "nnUNet_raw" / DATASET)
        (folder / "nnUNet_preprocessed" / DATASET).mkdir()
        splits = folder / "nnUNet_raw" / DATASET / "splits_final.json"
        shutil.copyfile(splits, folder / "nnUNet_preprocessed" / DATASET / "splits_final.json")
    else:
        shutil.copytree(data, folder / "nnUNet_raw" / DATASET)


def run(arguments: Sequence[str], env: dict[str, str]) -> float:
    """Run one of nnU-Net's commands; returns its CPU seconds, children included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    print("$", *arguments, flush=True)
    program = find_program(arguments[0], env.get("PATH", ""))
    subprocess.run([program, *arguments[1:]], env=env, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def train(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Plan, preprocess, train and validate; returns what was measured."""
    env, plans = environment(folder, options.threads), plans_name(options.planner)
    planning = ["-d", "4", "-pl", options.planner, "-c", CONFIGURATION, "-np", "1", "-npfp", "1"]
    planning += [] if options.gb is None else ["-gpu_memory_target", str(options.gb), "-overwrite_plans_name", plans]
    run(["nnUNetv2_plan_and_preprocess", *planning], env)
    training = ["4", CONFIGURATION, FOLD, "-tr", options.trainer, "-p", plans, "-device", "cpu"]
    seconds = run(["nnUNetv2_train", *training], env)
    model = folder / "nnUNet_results" / DATASET / f"{options.trainer}__{plans}__{CONFIGURATION}"
    summary = json.loads((model / f"fold_{FOLD}" / "validation" / "summary.json").read_text())
    configuration = json.loads((model / "plans.json").read_text())["configurations"][CONFIGURATION]
    shutil.copyfile(model / f"fold_{FOLD}" / "progress.png", options.output / f"accuracy_{options.name}.png")
    return {
        "patch": configuration["patch_size"],
        "batch": configuration["batch_size"],
        "cpu_minutes": seconds / 60,
        "cases": len(summary["metric_per_case"]),
        "dice": summary["foreground_mean"]["Dice"],
        "dice_per_label": {label: values["Dice"] for label, values in summary["mean"].items()},
    }


def report(result: dict[str, Any], options: argparse.Namespace) -> str:
    """The result in Markdown."""
    facts = "\n".join(f"* {name}: {value}" for name, value in measure.environment().items())
    labels = ", ".join(f"label {label} {dice:.3f}" for label, dice in result["dice_per_label"].items())
    target = "" if options.gb is None else f" with -gpu_memory_target {options.gb:g}"
    data = options.data.name if options.data else "the bundled hippocampus cases"
    return (
        f"# {options.trainer}\n\nPlans of {options.planner}{target}: patch {result['patch']}, batch "
        f"{result['batch']}. Fold {FOLD} of {data}.\n\n"
        f"Mean foreground Dice of the {result['cases']} validation cases: **{result['dice']:.3f}** ({labels}); per "
        "case 2 TP / (2 TP + FP + FN), then the mean over cases, then over labels.\n\n"
        f"CPU time of `nnUNetv2_train`, validation included: {result['cpu_minutes']:.1f} minutes.\n\n"
        f"![curve](accuracy_{options.name}.png)\n\n{facts}\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Train, print the report, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the results' files")
    parser.add_argument("planner")
    parser.add_argument("trainer")
    parser.add_argument("--gb", type=float, help="GPU memory target of the plans (default: the planner's)")
    parser.add_argument("--data", type=Path, help="raw data set folder (default: the bundled cases)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    parser.add_argument("--keep", type=Path, help="an empty folder for nnU-Net's files (default: temporary)")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args(argv)
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        fill(folder, options.data)
        result = train(folder, options)
    text = report(result, options)
    print(text)
    measure.write_results(options.output, f"accuracy_{options.name}", text, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
