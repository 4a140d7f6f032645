"""`nnunet-ext ensemble`: weighted mean of probabilities, votes or STAPLE over label maps."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nnunet_ext.cores import usable_cores

_METHODS = ("mean", "vote", "staple")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments; nothing heavy is imported."""
    parser.epilog = (
        "Folders are those of nnUNetv2_predict --save_probabilities, of any trainers, plans and configurations with "
        "the same labels; or of folds or trained models, whose validation cases are combined. The mean with equal "
        "weights is that of nnUNetv2_ensemble. Interrupted, the same command goes on where it stopped."
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="of predictions, one a model")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="for the label maps")
    parser.add_argument(
        "--weights",
        type=float,
        nargs="+",
        metavar="W",
        help="one a folder, above 0, of any sum (default: all the same)",
    )
    parser.add_argument(
        "--method",
        choices=_METHODS,
        default="mean",
        help="mean of probabilities; or, of label maps, the label with the most votes (of equally many, the one that "
        "the folder named first votes for), or SimpleITK's MultiLabelSTAPLE (default: %(default)s)",
    )
    parser.add_argument(
        "--save-probabilities", action="store_true", help="write the mean's as CASE.npz and CASE.pkl, as nnU-Net does"
    )
    parser.add_argument(
        "--dataset-json", type=Path, metavar="FILE", help="default: that of the folders, whose labels must be the same"
    )
    parser.add_argument("--plans", type=Path, metavar="FILE", help="plans.json (default: the first in the folders)")
    parser.add_argument("--overwrite", action="store_true", help="make cases again that are there")
    parser.add_argument("-np", "--processes", type=int, default=min(4, usable_cores()), help="cases at a time")


def run(args: argparse.Namespace) -> int:
    """Combine all cases; returns the exit code, 1 if one of them failed.

    Raises:
        UserError: the folders or arguments cannot be used.
    """
    from nnunet_ext.inference.ensemble import ensemble

    outcome = ensemble(
        args.folders,
        args.output,
        method=args.method,
        weights=args.weights,
        save_probabilities=args.save_probabilities,
        dataset_json=args.dataset_json,
        plans=args.plans,
        processes=args.processes,
        overwrite=args.overwrite,
        progress=show_progress,
    )
    return tell(outcome, args.output, "combined")


def show_progress(cases: Iterable[Any], total: int) -> Iterable[Any]:
    """A bar on stderr, where that is a terminal."""
    from tqdm import tqdm

    bar: Iterable[Any] = tqdm(cases, total=total, unit="case", file=sys.stderr, disable=None)
    return bar


def tell(outcome: Any, output: Path, verb: str) -> int:
    """Print what became of the cases; returns the exit code."""
    there = f", {len(outcome.there)} were there already" if outcome.there else ""
    print(f"{verb}  {len(outcome.done)} cases{there}  {output}")
    for notice in outcome.notices:
        print(f"nnunet-ext: {notice}", file=sys.stderr)
    for case, reason in sorted(outcome.failed.items()):
        print(f"nnunet-ext: {case} is not {verb}: {reason}", file=sys.stderr)
    if outcome.failed:
        total = len(outcome.done) + len(outcome.there) + len(outcome.failed)
        print(f"nnunet-ext: {len(outcome.failed)} of {total} cases failed", file=sys.stderr)
    return int(bool(outcome.failed))
