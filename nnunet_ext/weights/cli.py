"""`nnunet-ext import-weights`: a published checkpoint becomes a model folder that stock nnU-Net predicts with."""

from __future__ import annotations

import argparse
import importlib
import shlex
from typing import Any

METHODS = {
    "sshunet": "SSH-UNet, the authors' .pt files",
    "unetrpp": "UNETR++, the authors' .model files",
    "swinunet": "Swin-Unet, the authors' .pth files, or Swin-T's ImageNet weights",
    "nnformer": "nnFormer, as Alice's pre-training or its own authors save it",
    "ossnet": "OSS-Net, the authors' .pt files",
    "unet2d": "SelfReg-UNet's plain 2D U-Net, the authors' .pth files",
}
"""Method -> help; its arguments and steps are in `nnunet_ext.weights.METHOD_command`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments; imports neither torch nor nnU-Net."""
    methods = parser.add_subparsers(dest="method", metavar="METHOD", help="the network that the checkpoint belongs to")
    methods.required = True
    for method, help_text in METHODS.items():
        subparser = methods.add_parser(method, help=help_text, description=f"Import weights: {help_text}.")
        _command(method).add_arguments(subparser)


def _command(method: str) -> Any:
    return importlib.import_module(f"nnunet_ext.weights.{method}_command")


def run(args: argparse.Namespace) -> int:
    """Import the checkpoint and say what was done; returns the exit code.

    Raises:
        UserError: the checkpoint or an option cannot be used.
    """
    outcome = _command(args.method).import_weights(args)
    print(outcome.report.summary())
    for sentence in outcome.assumptions:
        print(f"assumed  {sentence}")
    folder = shlex.quote(str(outcome.folder))
    print(f"written  {outcome.folder}")
    predict = f"nnUNetv2_predict_from_modelfolder -i IMAGES -o PREDICTIONS -m {folder} -f 0"
    print(f"use      {outcome.use or predict}")
    return 0
