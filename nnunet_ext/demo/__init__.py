"""The demo: real MRI data through nnU-Net's stock commands and ours, from the download to the server's folder.

``nnunet-ext demo`` lays the bundled hippocampus data (``nnunet_ext/data``) out as the challenge's download, prints and
runs the commands that a user would type, and shows what came out. Nothing here reaches into nnU-Net: every step is a
console command, listed in ``FOLDER/commands.sh`` as well, so that it can be repeated by hand.

Imported by the command line at every call, so nothing heavy is imported here.
"""

from __future__ import annotations

import argparse
from pathlib import Path

DEFAULT_FOLDER = "demo_output"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the demo's options to the parser of ``nnunet-ext demo``."""
    parser.add_argument(
        "--quick",
        action="store_true",
        help="the same way with fewer cases and iterations: about two minutes on two CPU cores, and no useful Dice",
    )
    parser.add_argument(
        "-o",
        dest="folder",
        type=Path,
        default=Path(DEFAULT_FOLDER),
        metavar="FOLDER",
        help=f"where everything goes (default: {DEFAULT_FOLDER}); an earlier demo in it is replaced, any other "
        "folder must be empty",
    )
    parser.add_argument(
        "-device",
        choices=("auto", "cuda", "cpu", "mps"),
        default="auto",
        help="nnU-Net's -device (default: auto, which is cuda where torch finds one, else cpu)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the demo.

    Args:
        args: what the parser of ``add_arguments`` returned.

    Returns:
        The exit code: 0.

    Raises:
        UserError: the folder cannot be used, or a step failed; the text says which and why.
    """
    from nnunet_ext.demo.main import run_demo

    run_demo(args.folder, quick=args.quick, device=args.device)
    return 0
