"""`nnunet-ext import-weights`: a published checkpoint becomes a model folder that stock nnU-Net predicts with."""

from __future__ import annotations

import argparse
import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_ext.errors import UserError

if TYPE_CHECKING:
    from nnunet_ext.weights.model_folder import FolderOptions

METHODS = ("sshunet",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments; imports neither torch nor nnU-Net."""
    parser.add_argument("method", choices=METHODS, help="the network that the checkpoint belongs to")
    parser.add_argument("checkpoint", type=Path, help="the authors' .pt file; nothing in it is executed")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the model folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier import in that folder")
    gates = parser.add_argument_group("gates", "what files of TSM networks cannot show; default: the published setting")
    gates.add_argument("--gate", choices=("tsm", "none", "gsm", "gsf"), help="default: tsm, or what the file shows")
    gates.add_argument(
        "--gate-pos", type=int, nargs="+", metavar="I", help="gated levels below full resolution; default: all"
    )
    gates.add_argument("--no-gate-bottleneck", action="store_true", help="the bottleneck is not gated")
    gates.add_argument("--no-gate-decoder", action="store_true", help="the decoder is not gated")
    images = parser.add_argument_group("images", "what the weights do not say about their images")
    images.add_argument("--modality", choices=("ct", "mr"), default="ct", help="default: ct")
    images.add_argument(
        "--window", type=float, nargs=2, metavar=("A_MIN", "A_MAX"),
        help="CT numbers (HU) mapped to [0, 1]; default: -175 250 (BTCV), with --labels amos -991 362",
    )  # fmt: skip
    images.add_argument("--patch-size", type=int, nargs=3, metavar=("Z", "Y", "X"), help="voxels; default: 96 96 96")
    images.add_argument("--spacing", type=float, nargs=3, metavar=("Z", "Y", "X"), help="mm; default: 1 1 1")
    named = images.add_mutually_exclusive_group()
    named.add_argument(
        "--dataset-json", type=Path, metavar="FILE", help="the dataset.json to take labels and channels from"
    )
    named.add_argument(
        "--labels", nargs="+", metavar="NAME",
        help="names of the classes after the background, or one of: btcv, amos; default: class_1 class_2 ...",
    )  # fmt: skip
    images.add_argument("--dataset-name", metavar="DatasetXXX_NAME", help="default: Dataset900_SSHUNetImport")


def run(args: argparse.Namespace) -> int:
    """Import the checkpoint and say what was done; returns the exit code.

    Raises:
        UserError: the checkpoint or an option cannot be used.
    """
    from nnunet_ext.weights.configuration import GateChoice, infer_configuration
    from nnunet_ext.weights.loading import read_checkpoint
    from nnunet_ext.weights.model_folder import assumptions, write_model_folder
    from nnunet_ext.weights.sshunet import build_network, canonical_state, load_weights

    options = _folder_options(args)
    choice = GateChoice(
        args.gate,
        None if args.gate_pos is None else tuple(args.gate_pos),
        False if args.no_gate_bottleneck else None,
        False if args.no_gate_decoder else None,
    )
    checkpoint = read_checkpoint(args.checkpoint)
    state, aliases = canonical_state(checkpoint.state)
    configuration = infer_configuration(state, choice)
    network = build_network(configuration)
    report = replace(load_weights(network, state, configuration), dropped_aliases=aliases)
    told = choice != GateChoice()
    folder = write_model_folder(
        args.output, network, configuration, options, checkpoint, report, told_gates=told, overwrite=args.overwrite
    )
    print(report.summary())
    for sentence in assumptions(configuration, options, told):
        print(f"assumed  {sentence}")
    print(f"written  {folder}")
    print(f"use      nnUNetv2_predict_from_modelfolder -i IMAGES -o PREDICTIONS -m {shlex.quote(str(folder))} -f 0")
    return 0


def _folder_options(args: argparse.Namespace) -> FolderOptions:
    from nnunet_ext.weights.model_folder import FolderOptions

    if args.modality == "mr" and args.window is not None:
        raise UserError("--window belongs to CT images; MR images are normalised by their own mean and deviation")
    given: dict[str, Any] = {"modality": args.modality}
    for name in ("window", "patch_size", "spacing", "labels"):
        if getattr(args, name) is not None:
            given[name] = tuple(getattr(args, name))
    if args.dataset_name is not None:
        given["dataset_name"] = args.dataset_name
    if args.dataset_json is not None:
        given["dataset_json"] = _read_json(args.dataset_json)
    return FolderOptions(**given)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} as JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("labels"), dict):
        raise UserError(f"{path} is not a dataset.json: it has no labels")
    return content
