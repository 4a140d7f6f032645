"""`nnunet-ext postprocess`: rules for small components, determined on cross-validation and applied to other cases."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunet_ext.cores import usable_cores
from nnunet_ext.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sub-commands; nothing heavy is imported."""
    commands = parser.add_subparsers(dest="action", metavar="ACTION")
    commands.required = True
    _add_determine(commands.add_parser("determine", help="find rules on cross-validation predictions"))
    _add_apply(commands.add_parser("apply", help="apply rules to a folder of predictions"))


def _add_determine(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Tries, of every label or region, the largest component alone and all thresholds below which components are "
        "removed; of a small enhancing tumour also its replacement. A rule is taken if the mean Dice over cases rises "
        "and that of no label falls."
    )
    parser.add_argument("references", type=Path, metavar="REFERENCE", help="folder of the training cases' labels")
    parser.add_argument(
        "predictions",
        nargs="*",
        type=Path,
        metavar="CV_PREDICTIONS",
        help="a trained model, folds, or folders of validation predictions (default: those of --model)",
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="JSON file of rules")
    parser.add_argument("--model", type=Path, metavar="MODEL_FOLDER", help="store the rules with this trained model")
    parser.add_argument(
        "--replace",
        nargs=2,
        action="append",
        metavar=("NAME", "LABEL"),
        help="try whether NAME should become LABEL where all of it is small (default: of regions, the innermost)",
    )
    parser.add_argument("--no-replace", action="store_true", help="try no replacement")
    parser.add_argument(
        "--both-empty",
        choices=("one", "nan"),
        default="one",
        help="Dice where neither reference nor prediction has a label: 1, or left out (default: %(default)s)",
    )
    parser.add_argument("--step", type=int, default=10, help="of thresholds, in voxels (default: %(default)s)")
    parser.add_argument("--end", type=int, default=750, help="largest threshold, in voxels (default: %(default)s)")
    parser.add_argument(
        "--unit",
        choices=("mm3", "voxels"),
        default="mm3",
        help="thresholds as volumes (of so many voxels of the median size), or as numbers of voxels (default: mm3)",
    )
    parser.add_argument(
        "--held-out",
        action="store_true",
        help="folders of nnUNetv2_predict are of training cases that their model has not seen",
    )
    _add_common(parser)


def _add_apply(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of label maps")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="for the new label maps")
    parser.add_argument(
        "--rules", type=Path, metavar="FILE", help="of `nnunet-ext postprocess determine`, or its --model"
    )
    parser.add_argument(
        "--largest", nargs="+", action="extend", default=[], metavar="NAME", help="labels or regions; all: every one"
    )
    parser.add_argument(
        "--smallest",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VOLUME"),
        help="remove components of NAME below VOLUME, such as 50mm3, 0.5ml or 200voxels; repeat it",
    )
    parser.add_argument(
        "--replace",
        nargs=3,
        action="append",
        default=[],
        metavar=("NAME", "VOLUME", "LABEL"),
        help="NAME becomes LABEL where all of it is below VOLUME; repeat it",
    )
    parser.add_argument("--own-cases", action="store_true", help="also to cases that determined the rules")
    parser.add_argument("--overwrite", action="store_true", help="make cases again that are there")
    _add_common(parser)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--nnunet",
        type=Path,
        metavar="FILE",
        help="apply nnU-Net's own post-processing first: postprocessing.json beside postprocessing.pkl, or its folder",
    )
    parser.add_argument("--dataset-json", type=Path, metavar="FILE", help="default: that of the predictions")
    parser.add_argument("-np", "--processes", type=int, default=min(4, usable_cores()), help="cases at a time")


def run(args: argparse.Namespace) -> int:
    """Determine or apply; returns the exit code, 1 if a case failed.

    Raises:
        UserError: folders, files or arguments cannot be used.
    """
    return _determine(args) if args.action == "determine" else _apply(args)


def _determine(args: argparse.Namespace) -> int:
    from nnunet_ext.inference.ensemble_command import show_progress
    from nnunet_ext.inference.postprocess import determine, model_file
    from nnunet_ext.inference.postprocess_options import replacements_of

    outputs = [path for path in (args.output, args.model and model_file(args.model)) if path is not None]
    predictions = args.predictions or ([args.model] if args.model else [])
    if not outputs or not predictions:
        raise UserError("name the predictions and -o FILE, or --model MODEL_FOLDER, or both")
    replacements: dict[str, int] | None = {} if args.no_replace else None
    if args.replace and not args.no_replace:
        replacements = replacements_of(_labels(args.dataset_json, predictions), args.replace)
    rules, found = determine(
        args.references,
        predictions,
        dataset_json=args.dataset_json,
        outputs=outputs,
        replacements=replacements,
        first=_nnunet(args.nnunet),
        both_empty=args.both_empty,
        step=args.step,
        end=args.end,
        unit=args.unit,
        held_out=args.held_out,
        processes=args.processes,
        progress=show_progress,
    )
    _tell(rules, found)
    for path in outputs:
        print(f"written  {path}")
    return 0


def _tell(rules: Any, found: Any) -> None:
    if missing := rules.how["without_prediction"]:
        print(f"nnunet-ext: {len(missing)} cases have no prediction, such as {missing[0]}", file=sys.stderr)
    print(f"{len(rules.cases)} cases. {rules.how['convention']}.")
    for step in found.steps:
        before, after = _shown(step["dice_before"]), _shown(step["dice_after"])
        if step["chosen"] is None:
            print(f"  no rule  {step['name']} ({step['kind']}): {before}")
            continue
        print(
            f"  rule     {step['chosen']}: {before} -> {after} ({step['cases_changed']} cases change; expect "
            f"{_shown(step['gain_on_left_out_cases'], '+.4f')}, the mean gain of each case by the choice of all others)"
        )
    print(f"mean     {_shown(rules.how['mean_dice_before'])} -> {_shown(rules.how['mean_dice_after'])}")


def _shown(value: float, form: str = ".4f") -> str:
    return "-" if math.isnan(value) else format(value, form)


def _apply(args: argparse.Namespace) -> int:
    from nnunet_ext.inference.ensemble_command import show_progress, tell
    from nnunet_ext.inference.postprocess import apply
    from nnunet_ext.inference.postprocess_files import read
    from nnunet_ext.inference.postprocess_options import rules_of

    own = bool(args.largest or args.smallest or args.replace)
    if own and args.rules is not None:
        raise UserError("--rules already says what to do; leave out --largest, --smallest and --replace")
    if not own and args.rules is None and args.nnunet is None:
        raise UserError("name --rules FILE, or what to do: --largest, --smallest, --replace or --nnunet")
    rules: Any = []
    if args.rules is not None:
        rules = read(args.rules)
    elif own:
        rules = rules_of(_labels(args.dataset_json, [args.folder]), args.largest, args.smallest, args.replace)
    first = _nnunet(args.nnunet)
    outcome = apply(
        args.folder,
        args.output,
        rules,
        first=first,
        dataset_json=args.dataset_json,
        own_cases=args.own_cases,
        processes=args.processes,
        overwrite=args.overwrite,
        progress=show_progress,
    )
    for rule in (*first, *(rules if isinstance(rules, list) else rules.rules)):
        print(f"rule  {rule}{f'  ({rule.origin})' if rule.origin else ''}", file=sys.stderr)
    changed = sum(voxels > 0 for voxels in outcome.done.values())
    code = tell(outcome, args.output, "processed")
    print(f"changed    {changed} cases, {sum(outcome.done.values())} voxels")
    return code


def _nnunet(place: Path | None) -> list[Any]:
    from nnunet_ext.inference.postprocess_files import nnunet_rules

    return [] if place is None else list(nnunet_rules(place))


def _labels(given: Path | None, folders: Sequence[Path]) -> Any:
    from nnunet_ext.inference.prediction_folders import common_labels, find_predictions

    return common_labels([find_predictions(folder, probabilities=False) for folder in folders], given)
