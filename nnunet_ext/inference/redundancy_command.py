"""`nnunet-ext redundancy`: how much alike the channels of a trained model's feature maps are, stage by stage."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from nnunet_ext.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments; imports neither torch nor nnU-Net."""
    parser.epilog = (
        "The mean absolute Pearson correlation between the channels of each feature map, where 0 is none and 1 means "
        "copies. Images are read and preprocessed as for nnUNetv2_predict; of each, only the sliding windows nearest "
        "to its centre go through the network. With or without KD, for every network whose feature points are known."
    )
    parser.add_argument("model", type=Path, metavar="MODEL_FOLDER", help="TRAINER__PLANS__CONFIGURATION, trained")
    parser.add_argument("-i", "--images", type=Path, required=True, help="folder of images, named CASE_0000.nii.gz")
    parser.add_argument("-f", "--fold", help="number of the fold, or all; default: the first that was trained")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="write redundancy.json, .txt and .png there")
    parser.add_argument("-chk", "--checkpoint", default="checkpoint_final.pth", help="default: %(default)s")
    parser.add_argument("-device", choices=("cpu", "cuda", "mps"), help="default: cuda where there is one, else cpu")
    parser.add_argument("--patches", type=int, default=3, metavar="N", help="of each image (default: 3)")
    parser.add_argument("--json", action="store_true", help="for scripts: print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Measure, print, and write what was asked for; returns the exit code.

    Raises:
        UserError: the model or the images cannot be used.
    """
    if args.patches < 1:
        raise UserError(f"--patches must be at least 1; got {args.patches}")
    with contextlib.redirect_stdout(sys.stderr):  # nnU-Net's remarks are not the answer
        found, about = _measure(args)
    from nnunet_ext.inference import redundancy_report as report

    text = report.table(found)
    content = json.dumps(report.as_data(found, about), indent=2)
    print(content if args.json else f"{text}\n\n{_note(about)}")
    if args.output is not None:
        _write(args.output, text, content)
        report.draw(args.output / "redundancy.png", found, f"{about['model']}, fold {about['fold']}")
        print(f"written  {args.output}", file=sys.stderr if args.json else sys.stdout)
    return 0


def _measure(args: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """What was found, and what it was found with."""
    from nnunet_ext.inference.device import chosen_device
    from nnunet_ext.inference.patches import cases_of, find_cases, load_predictor
    from nnunet_ext.inference.redundancy import measure
    from nnunet_ext.lookup import install

    install()
    device = chosen_device(args.device)
    predictor, fold = load_predictor(args.model, args.fold, args.checkpoint, device)
    cases = find_cases(args.images, predictor.dataset_json)
    network = getattr(predictor.network, "_orig_mod", predictor.network).to(device)
    try:
        found = measure(network, cases_of(predictor, cases, args.patches))
    except NotImplementedError as error:
        raise UserError(str(error)) from error
    about = {
        "model": args.model.resolve().name,
        "fold": fold,
        "checkpoint": args.checkpoint,
        "images": len(cases),
        "patches": args.patches,
    }
    return found, about


def _note(about: dict[str, Any]) -> str:
    return (
        f"{about['model']}, fold {about['fold']}: mean absolute correlation between channels (0: none, 1: copies); "
        f"{about['images']} image(s), at most {about['patches']} central patches each. "
        "Maps of few positions have more by chance."
    )


def _write(folder: Path, text: str, content: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise UserError(f"{folder} is a file; choose another folder") from error
    (folder / "redundancy.json").write_text(f"{content}\n", encoding="utf-8")
    (folder / "redundancy.txt").write_text(f"{text}\n", encoding="utf-8")
