"""Does pre-training help where labels are few? The protocol of `few_label_protocol.py`, by stock commands on CPUs.

python benchmarks/few_label.py DATA --work DIR

DATA is the raw Hippocampus data set (200 training cases). In DIR everything is kept: the same command goes on where it
was interrupted, and other programs may use the machine meanwhile (CPU time is measured). Writes
`results/few_label.md` and `.json`; the intervals are paired bootstrap intervals over test cases.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import few_label_report
import measure
from few_label_protocol import ARMS, CONFIGURATION, DATASET, NUMBER, PLANS, PROTOCOL, RECIPES, TRANSFERRED, folds, parts

RESULTS = Path(__file__).resolve().parent / "results"
PROGRAMS = Path(sys.executable).parent
METHODS = ("mae", "alice")


class Work:
    """The folder with everything that was finished.

    Args:
        folder: of nnU-Net's files and our states.
        data: the raw data set.
    """

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder, self.raw = folder, folder / "raw" / DATASET
        self.preprocessed = folder / "preprocessed" / DATASET
        for name in ("raw", "preprocessed", "results", "states", "logs", "weights"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        if not self.raw.is_dir():
            shutil.copytree(data, self.raw)
        names = sorted(path.name[: -len("_0000.nii.gz")] for path in (self.raw / "imagesTr").glob("*.nii.gz"))
        self.splits, self.numbers = folds(names)
        self.parts = parts(names)
        self.lock = threading.Lock()

    def environment(self, arm: str = "") -> dict[str, str]:
        """nnU-Net's folders, results of each arm apart; one thread."""
        values = {"nnUNet_raw": self.folder / "raw", "nnUNet_preprocessed": self.folder / "preprocessed"}
        results = self.folder / "results" / (arm or "any")
        results.mkdir(parents=True, exist_ok=True)
        settings = {"nnUNet_def_n_proc": "1", "nnUNet_n_proc_DA": "0", "nnUNet_compile": "f", "OMP_NUM_THREADS": "1"}
        return {**os.environ, **{k: str(v) for k, v in values.items()}, "nnUNet_results": str(results), **settings}

    def once(self, name: str, arguments: Sequence[str], arm: str = "", planning: bool = False) -> dict[str, Any]:
        """Run a command unless it was finished before; returns its CPU seconds."""
        state = self.folder / "states" / f"{name}.json"
        if state.is_file():
            return dict(json.loads(state.read_text()))
        env = self.environment(arm)
        if planning:
            env["nnUNet_n_proc_DA"] = "1"  # nnU-Net's planning fails with 0
        with (self.folder / "logs" / f"{name}.txt").open("w") as log:
            command = [str(PROGRAMS / arguments[0]), *arguments[1:]]
            child = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
            _, status, used = os.wait4(child.pid, 0)
        if status:
            raise RuntimeError(f"{name} failed; see {self.folder / 'logs' / f'{name}.txt'}")
        found = {"cpu_seconds": used.ru_utime + used.ru_stime}  # of grandchildren that were waited for, too
        state.write_text(json.dumps(found))
        with self.lock:
            print(f"{name}: {found['cpu_seconds']:.0f} CPU seconds", flush=True)
        return found


def prepare(work: Work) -> None:
    """Plan, preprocess, make the small network's plans and the splits, match the images."""
    plan = ["nnUNetv2_plan_and_preprocess", "-d", str(NUMBER), "-c", CONFIGURATION, "-np", "1", "-npfp", "1"]
    work.once("plan", plan, planning=True)
    plans = json.loads((work.preprocessed / "nnUNetPlans.json").read_text())
    plans["plans_name"] = PLANS
    configuration = plans["configurations"][CONFIGURATION]
    configuration["batch_size"], configuration["patch_size"] = PROTOCOL.batch, list(PROTOCOL.patch)
    configuration["architecture"]["arch_kwargs"]["features_per_stage"] = list(PROTOCOL.features)
    (work.preprocessed / f"{PLANS}.json").write_text(json.dumps(plans))
    (work.preprocessed / "splits_final.json").write_text(json.dumps(work.splits))
    reference = ["--reference", work.parts.rest[0]]  # no test case
    work.once("correspond", ["nnunet-ext", "correspond", *_place(), "--kind", "bodybox", "-np", "1", *reference])


def pretrain(work: Work, method: str, seed: int) -> None:
    """Pre-train on all images but the test cases', and make the files for -pretrained_weights."""
    folder = work.folder / "weights" / f"{method}_{seed}"
    command = ["nnunet-ext", "pretrain", *_place(), "-tr", "UNetTrainer", "--method", method, "--seed", str(seed)]
    command += ["--steps", str(PROTOCOL.steps[method]), "--batch-size", str(PROTOCOL.batch), "-device", "cpu"]
    command += ["-np", "1", "-o", str(folder), "--exclude", *work.parts.test]
    if method == "alice":
        command += ["--views", "bodybox", "--alice", *PROTOCOL.alice]
    command += ["--resume"] if (folder / "checkpoint_latest.pth").is_file() else []
    work.once(f"pretrain_{method}_{seed}", command)
    for arm, (wanted, what) in TRANSFERRED.items():
        if wanted == method:
            export = ["nnunet-ext", "pretrain-export", str(folder / "checkpoint_final.pth"), "--what", what]
            work.once(f"export_{_short(arm)}_{seed}", [*export, "-o", str(_weights(work, arm, seed))])


def fine_tune(work: Work, arm: str, fold: str, seed: int, recipe: str) -> dict[str, Any]:
    """Train and validate one fold by nnU-Net's own command."""
    epochs = PROTOCOL.longer if arm == "scratch, equal compute" else PROTOCOL.epochs
    trainer = f"{RECIPES[recipe]}_NoMirroring_Seed{seed}_{PROTOCOL.iterations}its_{epochs}epochs"
    short = _short(arm)
    name, number = f"{short}_{recipe}_{fold.replace('/', '_')}", work.numbers[fold]
    command = ["nnUNetv2_train", str(NUMBER), CONFIGURATION, str(number), "-tr", trainer, "-p", PLANS, "-device", "cpu"]
    if arm in TRANSFERRED:
        command += ["-pretrained_weights", str(_weights(work, arm, seed))]
    found = work.once(name, command, f"{short}_{recipe}")
    model = work.folder / "results" / f"{short}_{recipe}" / DATASET / f"{trainer}__{PLANS}__{CONFIGURATION}"
    summary = json.loads((model / f"fold_{number}" / "validation" / "summary.json").read_text())
    cases = {
        Path(case["reference_file"]).name.split(".")[0]: {k: v["Dice"] for k, v in case["metrics"].items()}
        for case in summary["metric_per_case"]
    }
    return {**found, "dice": cases, "validation": str(model / f"fold_{number}" / "validation")}


def choose(work: Work, pool: ThreadPoolExecutor) -> dict[str, Any]:
    """For pre-trained arms the recipe that is better on the inner cases, with the fewest labels of seed 0."""
    asked = [(arm, recipe) for arm in METHODS for recipe in RECIPES]
    found = list(pool.map(lambda pair: fine_tune(work, pair[0], "choice", 0, pair[1]), asked))
    dice = {pair: few_label_report.mean_dice(result["dice"]) for pair, result in zip(asked, found, strict=True)}
    best = {arm: max(RECIPES, key=lambda recipe: dice[arm, recipe]) for arm in METHODS}
    # From scratch a tenth of the rate makes no sense; the arm that was added had no choice made for it.
    best |= dict.fromkeys((arm for arm in ARMS if arm not in METHODS), "plain")
    return {"dice": {f"{arm}, {recipe}": value for (arm, recipe), value in dice.items()}, "recipe": best}


def run(work: Work, parallel: int) -> dict[str, Any]:
    """All of it."""
    prepare(work)
    with ThreadPoolExecutor(parallel) as pool:
        list(pool.map(lambda pair: pretrain(work, *pair), [(m, s) for s in PROTOCOL.seeds for m in METHODS]))
        chosen = choose(work, pool)
        asked = [(arm, seed, n) for seed in PROTOCOL.seeds for n in PROTOCOL.labels for arm in ARMS]
        found = list(pool.map(lambda a: fine_tune(work, a[0], f"{a[1]}/{a[2]}", a[1], chosen["recipe"][a[0]]), asked))
    runs = [
        {"arm": arm, "seed": seed, "labels": n, **result} for (arm, seed, n), result in zip(asked, found, strict=True)
    ]
    pretraining = {
        f"{method}_{seed}": work.once(f"pretrain_{method}_{seed}", ())["cpu_seconds"]
        for method in METHODS
        for seed in PROTOCOL.seeds
    }
    return {"choice": chosen, "pretraining_cpu_seconds": pretraining, "runs": runs}


def _short(arm: str) -> str:
    return arm.replace(", ", "_").replace(" ", "_")


def _weights(work: Work, arm: str, seed: int) -> Path:
    method, what = TRANSFERRED[arm]
    return work.folder / "weights" / f"{method}_{seed}" / ("exported.pth" if what == "all" else f"{what}.pth")


def _place() -> list[str]:
    return ["-d", str(NUMBER), "-c", CONFIGURATION, "-p", PLANS]


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, print the report, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="raw data set folder, Dataset004_Hippocampus")
    parser.add_argument("--work", type=Path, required=True, help="folder that keeps everything")
    parser.add_argument("--parallel", type=int, default=2, help="commands at the same time, one thread each")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args(argv)
    work = Work(options.work, options.data)
    result = run(work, options.parallel)
    summary = few_label_report.summarise(result, work.raw / "labelsTr")
    text = few_label_report.text(summary)
    print(text)
    measure.write_results(options.output, "few_label", text, summary)
    return 0


if __name__ == "__main__":
    sys.exit(main())
