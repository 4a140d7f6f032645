"""The same training with and without KD, several seeds each, by stock commands on a CPU: does it change anything?

    python benchmarks/kd_training.py                   # writes benchmarks/results/kd_training.*, and goes on from there
    python benchmarks/kd_training.py --seeds 0 1 2 3 4

Same plans, data, fold, iterations and seeds (SSH-UNet with 8 features in its first stage, on the bundled hippocampus
cases); the trainers differ in the suffix `_KD` alone. Reported are all values, their means, and the spread over seeds;
with so few cases and iterations only a large difference would show.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import accuracy
import measure

PLANNER = "SSHUNetPlanner_W8"
VARIANTS = {"without KD": "", "KD": "_KD"}


def trainer(variant: str, seed: int, epochs: int) -> str:
    """The trainer's name."""
    return f"SSHUNetTrainer{VARIANTS[variant]}_AdamW_NoMirroring_Seed{seed}_20its_{epochs}epochs"


def train_missing(found: dict[str, Any], options: argparse.Namespace) -> None:
    """Train what is not yet in `found`, seed by seed, and write it after each training."""
    for seed in options.seeds:
        for variant in VARIANTS:
            name = trainer(variant, seed, options.epochs)
            if name in found:
                continue
            with tempfile.TemporaryDirectory() as temporary, tempfile.TemporaryDirectory() as curves:
                accuracy.fill(Path(temporary), None)
                asked = Namespace(planner=PLANNER, trainer=name, gb=None, threads=1, name="kd", output=Path(curves))
                found[name] = accuracy.train(Path(temporary), asked)
            measure.write_results(options.output, "kd_training", report(found, options), found)


def report(found: dict[str, Any], options: argparse.Namespace) -> str:
    """All values in Markdown; complete or not."""
    header = ("seed", *VARIANTS, "difference")
    dice = {
        variant: {
            seed: found[name]["dice"]
            for seed in options.seeds
            if (name := trainer(variant, seed, options.epochs)) in found
        }
        for variant in VARIANTS
    }
    both = [seed for seed in options.seeds if all(seed in values for values in dice.values())]
    plain, kd = dice["without KD"], dice["KD"]
    rows: list[tuple[object, ...]] = [
        (seed, f"{plain[seed]:.3f}", f"{kd[seed]:.3f}", f"{kd[seed] - plain[seed]:+.3f}") for seed in both
    ]
    if len(both) > 1:
        differences = [kd[seed] - plain[seed] for seed in both]
        columns = ([plain[seed] for seed in both], [kd[seed] for seed in both], differences)
        rows.append(("mean", *(f"{mean(values):.3f}" for values in columns)))
        rows.append(("standard deviation", *(f"{stdev(values):.3f}" for values in columns)))
    setting = f"fold {accuracy.FOLD} of the bundled hippocampus cases, {20 * options.epochs} iterations"
    facts = "\n".join(f"* {name}: {value}" for name, value in measure.environment().items())
    return (
        f"# The same training with and without KD\n\n{PLANNER}, {trainer('KD', 0, options.epochs)} and its like: "
        f"{setting}. Mean foreground Dice of the validation cases: per case 2 TP / (2 TP + FP + FN), then the mean "
        "over cases, then over labels.\n\n"
        f"{measure.markdown_table(header, rows)}\n\n{facts}\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is missing, print the report, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--epochs", type=int, default=15, help="of 20 iterations (default: 15)")
    parser.add_argument("-o", "--output", type=Path, default=accuracy.RESULTS, help="folder of the results")
    options = parser.parse_args(argv)
    file = options.output / "kd_training.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    train_missing(found, options)
    print(report(found, options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
