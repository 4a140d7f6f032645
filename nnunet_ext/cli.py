"""The command line, ``nnunet-ext``: what nnU-Net's own commands lack; every verb is a function as well."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nnunet_ext import __version__, names, registry
from nnunet_ext.errors import NameNotFoundError, UnsupportedNnunetError, UserError

VERBS = {
    "list": "show all trainers, planners and networks, and what their names may be followed by",
    "doctor": "check the installation through nnU-Net's own look-ups, and say what to do",
    "env": 'print the folder for the manual way: export nnUNet_extTrainer="$(nnunet-ext env)"',
    "plan": "nnUNetv2_plan_and_preprocess, with the same flags, where Python does not read our start-up file",
    "convert": "turn a challenge's download into nnU-Net's raw data, checked, with the papers' splits",
    "import-weights": "turn a published checkpoint into a model folder for nnU-Net's commands",
    "correspond": "find the same anatomical points in many cases, for pre-training on pairs of patients",
    "pretrain-export": "turn a checkpoint of pre-training into a file for nnU-Net's -pretrained_weights",
    "adapt-patch": "re-sample a UNETR++ checkpoint to another patch size, for -pretrained_weights",
    "predict-volume": "predict at the images' own resolution or any other by an OSS-Net, in bounded memory",
    "redundancy": "show how much alike the channels of a trained model's feature maps are, stage by stage",
    "mesh": "surfaces of classes and regions of a label map, of probabilities or of a trained OSS-Net",
    "pretrain": "train a plan's own network without labels (masked autoencoding, Alice), for -pretrained_weights",
    "ensemble": "combine several models' predictions: weighted mean of probabilities, votes or STAPLE over label maps",
    "evaluate": "compare predictions with references: Dice, HD95, surface Dice and more, by named conventions",
    "compare": "compare models on the same cases: two by paired tests, more by rankings and their stability",
    "reproduce": "print a paper's table beside the same numbers of your predictions, with the difference",
    "postprocess": "remove small or all but the largest components, by rules found on cross-validation",
    "submit": "make of predictions what a challenge's server takes, or check such a folder or zip",
    "demo": "convert, plan, train, predict, evaluate and submit on bundled MRI data by stock nnU-Net commands",
}


def shim_folder() -> Path:
    """The folder for ``nnUNet_extTrainer``: nnU-Net finds our trainers there without the start-up file."""
    return Path(__file__).resolve().parent / "_discovery"


def listing() -> dict[str, Any]:
    """Everything registered, as plain types: the entries' fields, and ``suffixes`` in canonical order."""
    trainers = [
        {**dataclasses.asdict(entry), "suffixes": names.trainer_suffixes(entry)} for entry in registry.TRAINERS.values()
    ]
    planners = [
        {**dataclasses.asdict(entry), "suffixes": names.planner_suffixes(entry)} for entry in registry.PLANNERS.values()
    ]
    networks = [dataclasses.asdict(entry) for entry in registry.NETWORKS.values()]
    return {"version": __version__, "trainers": trainers, "planners": planners, "networks": networks}


def _list_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for scripts: one JSON object")


def _list(args: argparse.Namespace) -> int:
    if args.json:
        print(json.dumps(listing(), indent=2))
        return 0
    for trainer in registry.TRAINERS.values():
        yes_no = {True: "yes", False: "no"}
        print(f"trainer  {trainer.name}  (-tr)\n  {trainer.summary}")
        print(f"  name      {trainer.name}{''.join(f'[_{s}]' for s in names.trainer_suffixes(trainer))}")
        print(f"  plans     {names.plans_name(trainer.planner)}, made by {trainer.planner}")
        print(f"  does      {', '.join(f'{d}d' for d in trainer.dimensions)}", end="")
        print(f"; deep supervision: {yes_no[trainer.deep_supervision]}", end="")
        print(f"; cascade: {yes_no[trainer.cascade]}; self-regularisation (KD): {yes_no[trainer.kd]}")
    for planner in registry.PLANNERS.values():
        print(f"planner  {planner.name}  (-pl)\n  {planner.summary}")
        print(f"  name      {planner.name}{''.join(f'[{s}]' for s in names.planner_suffixes(planner))}")
        print(f"  plans     {names.plans_name(planner.name)}")
    for network in registry.NETWORKS.values():
        print(f"network  {network.name}\n  {network.summary}")
        print(f"  class     {network.target.replace(':', '.')}")
    return 0


def _env(args: argparse.Namespace) -> int:
    print(shim_folder())
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from nnunet_ext import doctor

    findings = doctor.examine()
    if args.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    else:
        print(doctor.report(findings))
    return int(any(finding.status == "fail" for finding in findings))


def _no_arguments(parser: argparse.ArgumentParser) -> None:
    pass


_OWN: dict[str, tuple[Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]] = {
    "list": (_list_arguments, _list),
    "doctor": (_list_arguments, _doctor),
    "env": (_no_arguments, _env),
}
_MODULES = {
    "convert": "nnunet_ext.dataset_conversion.command",
    "import-weights": "nnunet_ext.weights.cli",
    "correspond": "nnunet_ext.pretraining.correspond_command",
    "pretrain-export": "nnunet_ext.pretraining.export_command",
    "adapt-patch": "nnunet_ext.weights.adapt_patch_command",
    "predict-volume": "nnunet_ext.inference.predict_volume_command",
    "redundancy": "nnunet_ext.inference.redundancy_command",
    "mesh": "nnunet_ext.inference.mesh_command",
    "pretrain": "nnunet_ext.pretraining.command",
    "ensemble": "nnunet_ext.inference.ensemble_command",
    "evaluate": "nnunet_ext.evaluation_scripts.evaluate_command",
    "compare": "nnunet_ext.evaluation_scripts.compare_command",
    "reproduce": "nnunet_ext.evaluation_scripts.reproduce_command",
    "postprocess": "nnunet_ext.inference.postprocess_command",
    "submit": "nnunet_ext.submission.command",
    "demo": "nnunet_ext.demo",
}


def _parser(verb: str | None) -> argparse.ArgumentParser:
    """The parser; only the arguments of ``verb`` are added, so that no other verb's modules are imported."""
    parser = argparse.ArgumentParser(prog="nnunet-ext", description="More segmentation methods for nnU-Net v2.")
    parser.add_argument("--version", action="version", version=f"nnunet-ext {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    verbs.required = True  # no keyword: nnU-Net's dependencies may bring the old argparse of PyPI
    for name, help_text in VERBS.items():
        subparser = verbs.add_parser(name, help=help_text, description=help_text[0].upper() + help_text[1:] + ".")
        if name != verb:
            continue
        if name in _MODULES:
            module = importlib.import_module(_MODULES[name])
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
        elif name in _OWN:
            add_arguments, run = _OWN[name]
            add_arguments(subparser)
            subparser.set_defaults(run=run)
    return parser


def _run(argv: Sequence[str]) -> int:
    verb = next((argument for argument in argv if not argument.startswith("-")), None)
    if verb == "plan" and argv[0] == "plan":
        from nnunet_ext.plan import plan

        plan(argv[1:])  # nnU-Net's own parser reads the flags
        return 0
    if verb in ("convert", "submit") and len(argv) > 1:
        argv = [argv[0], argv[1].lower() if not argv[1].startswith("-") else argv[1], *argv[2:]]  # ACDC is acdc
    args = _parser(verb).parse_args(argv)
    return int(args.run(args))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code: 0, or 1 with one sentence on stderr for what the user can put right."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        return _run(argv)
    except (UserError, NameNotFoundError, UnsupportedNnunetError) as error:
        sentence = str(error)
    except BrokenPipeError:  # as in `nnunet-ext list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        place = f" while writing {error.filename}" if error.filename else ""
        sentence = f"no space left on the device{place}: free some, or point nnU-Net's folders to a larger disk."
    print(f"nnunet-ext: {sentence}", file=sys.stderr)
    return 1
