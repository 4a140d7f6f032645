"""`nnunet-ext pretrain-export`: from a checkpoint of pre-training, a file for nnU-Net's `-pretrained_weights`."""

from __future__ import annotations

import argparse
import contextlib
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_ext.errors import UserError

if TYPE_CHECKING:
    from nnunet_ext.pretraining.copying import Copied
    from nnunet_ext.pretraining.exporting import Source, Target

_SHOWN = {"rest": "decoder and others"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments; imports neither torch nor nnU-Net."""
    parser.add_argument(
        "checkpoint",
        type=Path,
        help="of nnunet-ext pretrain, or a published one of Alice or nnFormer; with --check also an exported file",
    )
    parser.add_argument("-o", "--output", type=Path, help="the file to write, for nnUNetv2_train -pretrained_weights")
    parser.add_argument(
        "-d", "--dataset", help="the data set to fine-tune on, name or number; default: the pre-training's"
    )
    parser.add_argument("-c", "--configuration", help="to fine-tune; default: the pre-training's")
    parser.add_argument("-p", "--plans", help="name of the plans to fine-tune with; default: the pre-training's")
    parser.add_argument("-tr", "--trainer", help="to fine-tune with, its suffixes do not matter; default: the same")
    parser.add_argument(
        "--branch", choices=("student", "teacher"), help="which network; default: the teacher where there is one"
    )
    parser.add_argument(
        "--what",
        choices=("all", "encoder"),
        help="encoder: leave the decoder random; default: encoder after masked autoencoding, else all",
    )
    parser.add_argument(
        "--partial", action="store_true", help="write the file though less than 95%% of the encoder's parameters fit"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the weights that stay random; default: 0")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; say for each fold of the data set which validation cases were pre-trained on (exit 1)",
    )


def run(args: argparse.Namespace) -> int:
    """Export, or check; returns the exit code.

    Raises:
        UserError: what the user can put right.
    """
    if args.check:
        return _check(args)
    if args.output is None:
        raise UserError("-o is missing: name the file to write, or use --check")
    if args.output.exists() and not args.overwrite:
        raise UserError(f"{args.output} exists; choose another name, or add --overwrite")
    return _export(args)


def _export(args: argparse.Namespace) -> int:
    from nnunet_ext.pretraining import checkpoint_format, export_check, exporting
    from nnunet_ext.weights.saving import save_atomically

    source, target, notes = _source(args)
    what = args.what or exporting.default_part(source)
    content, copied = exporting.export(source, target, what=what, partial=args.partial, seed=args.seed)
    content["nnunet_ext"]["checkpoint_sha256"] = _digest(args.checkpoint)
    unchecked = args.output.with_name(f".{args.output.name}.{uuid.uuid4().hex[:8]}")
    try:
        save_atomically(checkpoint_format.as_plain(content), unchecked)
        export_check.check(unchecked, target, content["network_weights"])
        unchecked.replace(args.output)  # only now, so that a file that is there is as it was if this one is bad
    finally:
        with contextlib.suppress(OSError):
            unchecked.unlink()
    print(f"source   {_described(content['nnunet_ext'])}")
    for note in notes:
        print(f"note     {note}")
    _print_table(copied)
    print("checked  nnU-Net's own loader makes the same network of it")
    print(f"written  {args.output}")
    if "cases" in source.facts and not source.facts["provenance"].get("transductive"):
        _print_leakage(source.facts["cases"], target.plans["dataset_name"])
    _print_use(args, target)
    return 0


def _source(args: argparse.Namespace) -> tuple[Source, Target, list[str]]:
    """The pre-trained weights, the network that they are for, and notes for people."""
    from nnunet_ext.pretraining import checkpoint_format, exporting, published

    found = None
    if args.checkpoint.is_file() and not checkpoint_format.recognise(args.checkpoint):
        found = published.find_published(args.checkpoint, args.branch)
    if found is None:
        read = checkpoint_format.read(args.checkpoint)
        return exporting.source_of(read, args.branch), _target(args, read), []
    if args.dataset is None:
        raise UserError(f"-d is missing: {args.checkpoint.name} is a published checkpoint, which knows no data set")
    plans = {"plans_name": published.PLANS}
    target = _target(args, {"trainer": published.TRAINER, "configuration": published.CONFIGURATION, "plans": plans})
    source, notes = published.published_source(found, target, args.seed)
    return source, target, notes


def _described(facts: dict[str, Any]) -> str:
    """Of what the weights were made, in a line."""
    if "step" in facts:
        return f"{facts['method']}, step {facts['step']} of {facts['total_steps']}, {facts['branch']}"
    return f"published, {facts['provenance']['layout']} layout{', ' + facts['branch'] if facts['branch'] else ''}"


def _target(args: argparse.Namespace, read: dict[str, Any]) -> Target:
    """The network that the options name; what they leave out is as in the pre-training."""
    from nnunet_ext.pretraining import exporting

    trainer, configuration = args.trainer or read["trainer"], args.configuration or read["configuration"]
    if args.dataset is None and args.plans is None:
        return exporting.make_target(trainer, read["plans"], configuration, read["dataset_json"])
    from nnunet_ext.pretraining.raw_images import read_json

    folder = _preprocessed(args.dataset or read["plans"]["dataset_name"])
    name = args.plans or read["plans"]["plans_name"]
    path = folder / f"{name}.json"
    if not path.is_file():
        there = sorted(file.stem for file in folder.glob("*lans*.json"))
        raise UserError(f"-p {name}: {folder} has no such plans; it has {', '.join(there) or 'none'}")
    return exporting.make_target(trainer, read_json(path), configuration, read_json(folder / "dataset.json"))


def _preprocessed(dataset: str) -> Path:
    """The data set's folder in nnUNet_preprocessed."""
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

    from nnunet_ext.plan import require_folder

    root = require_folder("nnUNet_preprocessed")
    try:
        name = maybe_convert_to_dataset_name(int(dataset) if dataset.isdecimal() else dataset)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"-d {dataset}: {' '.join(str(error).split())}") from error
    return root / name


def _digest(path: Path) -> str:
    from nnunet_ext.pretraining.raw_images import checksum

    return checksum(path)


def _print_table(copied: Copied) -> None:
    print(f"{'weights of':19} {'what became of them':20} {'tensors':>7} {'numbers':>13} {'per cent':>8}")
    for part, fate, tensors, numbers, share in copied.table():
        print(f"{_SHOWN.get(part, part):19} {fate:20} {tensors:7} {numbers:13,} {share:8.1f}")


def _print_use(args: argparse.Namespace, target: Target) -> None:
    tuned, plans = fine_tuning_name(target.trainer.__name__), target.plans
    print(f"use      nnUNetv2_train {plans['dataset_name']} {target.configuration} FOLD -tr {tuned} \\")
    print(f"           -p {plans['plans_name']} -pretrained_weights {args.output}")


def fine_tuning_name(trainer: str) -> str:
    """The trainer's name with `_FineTune` in its place; nnU-Net's own trainer becomes ours for the same networks."""
    from nnunet_ext.names import UnknownNameError, parse_trainer

    base, *suffixes = ("UNetTrainer" if trainer == "nnUNetTrainer" else trainer).split("_")
    for place in range(len(suffixes), -1, -1):
        name = "_".join((base, *suffixes[:place], "FineTune", *suffixes[place:]))
        try:
            if parse_trainer(name) is not None:
                return name
        except UnknownNameError:
            continue
    return trainer


# ---------------------------------------------------------------------------------------------------------- leakage


def _check(args: argparse.Namespace) -> int:
    from nnunet_ext.pretraining import leakage

    origin = leakage.origin_of(args.checkpoint)
    if origin is None:
        raise UserError(f"{args.checkpoint.name}: the file does not say what it was pre-trained on; nothing to check")
    if args.dataset is None:
        raise UserError("--check needs -d, the data set that is fine-tuned on")
    name = _preprocessed(args.dataset).name
    lines = leakage_lines(origin.cases, name)
    for line in lines.values():
        print(line)
    if not lines:
        print(f"ok       none of the validation cases of {name} is among the {len(origin.cases)} images")
    return int(bool(lines))


def leakage_lines(cases: Any, dataset: str) -> dict[int, str]:
    """A sentence for each fold of a data set whose validation cases were pre-trained on.

    Args:
        cases: of the pre-training: name, source, sha256.
        dataset: name; where it is not preprocessed, so that its folds are not known, there are no sentences.
    """
    import os

    from nnunet_ext.pretraining import leakage

    roots = [os.environ.get(name) for name in ("nnUNet_raw", "nnUNet_preprocessed")]
    raw, preprocessed = (Path(root or ".") / dataset for root in roots)
    if roots[1] is None:
        return {}
    try:
        numbers = range(leakage.number_of_folds(preprocessed))
        folds = {fold: leakage.validation_cases(preprocessed, fold) for fold in numbers}
    except UserError:
        return {}
    found = {o.case: o for o in leakage.overlap(cases, raw, sorted({case for fold in folds.values() for case in fold}))}
    theirs = {fold: [found[name] for name in names if name in found] for fold, names in folds.items()}
    return {
        fold: f"WARNING: {leakage.warning(met, len(folds[fold]), dataset, fold)}" for fold, met in theirs.items() if met
    }


def _print_leakage(cases: Any, dataset: str) -> None:
    """One warning on stderr: of one fold its cases, of several which."""
    import sys

    lines = leakage_lines(cases, dataset)
    if len(lines) == 1:
        print(*lines.values(), file=sys.stderr)
    elif lines:
        print(
            f"WARNING: validation cases of {dataset}, folds {', '.join(map(str, lines))}, were pre-trained on: the "
            "file is not for these folds, whose scores would be too good (--check lists the cases; `nnunet-ext "
            "pretrain ... --exclude-fold N` makes one pre-training a fold, --transductive says that it is meant)",
            file=sys.stderr,
        )
