"""`nnunet-ext predict-volume`: an OSS-Net's labels at the images' own resolution or any other, in bounded memory."""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nnunet_ext.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments; imports neither torch nor nnU-Net."""
    parser.epilog = (
        "For models of OSSNetTrainer, 3d configurations, and for imported published OSS-Nets. Images are read and "
        "preprocessed as for nnUNetv2_predict; labels are decoded brick by brick at the voxels of the output and "
        "streamed into NIfTI files, so that memory does not grow with the output. (Files of other kinds are written by "
        "nnU-Net, which needs all labels at once.)"
    )
    parser.add_argument("model", type=Path, metavar="MODEL_FOLDER", help="TRAINER__PLANS__CONFIGURATION, trained")
    parser.add_argument("-i", "--images", type=Path, required=True, help="folder of images, named CASE_0000.nii.gz")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="for CASE.nii.gz of each case")
    parser.add_argument(
        "--spacing",
        type=float,
        nargs="+",
        metavar="MM",
        help="of the output: one number, or three for x, y and z as in the image's header; the extent stays that of "
        "the image, so that the spacing is met as nearly as whole voxels allow (default: the image's own)",
    )
    parser.add_argument(
        "-f",
        "--folds",
        nargs="+",
        metavar="FOLD",
        help="numbers, or all; several are averaged (default: the first that was trained)",
    )
    parser.add_argument("-chk", "--checkpoint", default="checkpoint_final.pth", help="default: %(default)s")
    parser.add_argument("-device", choices=("cpu", "cuda"), help="default: cuda where there is one, else cpu")
    parser.add_argument(
        "--mode",
        choices=("adaptive", "dense", "budget", "reference"),
        help="evaluate where classes meet, everywhere, a fixed number of points, or (imported published models only) "
        "as the authors' own procedure does (default: the network's own)",
    )
    parser.add_argument(
        "--mirroring", action="store_true", help="average over mirrored windows, as nnUNetv2_predict does: slower"
    )
    parser.add_argument(
        "--continue_prediction", "--c", action="store_true", help="leave out cases that are there already"
    )


def run(args: argparse.Namespace) -> int:
    """Predict all cases; returns the exit code, 1 if one of them failed.

    Raises:
        UserError: the model or the arguments cannot be used.
    """
    spacing = _spacing(args.spacing)
    if twice := [fold for fold in dict.fromkeys(args.folds or ()) if args.folds.count(fold) > 1]:
        raise UserError(f"-f names fold {', '.join(twice)} more than once; name each fold once")
    with contextlib.redirect_stdout(sys.stderr):  # nnU-Net's remarks are not the answer
        predictor, cases, predict = _prepare(args, spacing)
    ending = predictor.dataset_json["file_ending"]
    failed = []
    for case, files in cases.items():
        target = args.output / f"{case}{ending}"
        if args.continue_prediction and target.is_file():
            print(f"there already  {target}")
            continue
        try:
            with contextlib.redirect_stdout(sys.stderr):
                grid = predict(case, files, target)
        except Exception as error:  # whatever is wrong with a case, the others are predicted
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise
            failed.append(case)
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = lines[-1] if lines else type(error).__name__
            print(f"nnunet-ext: {case} is not predicted: {reason}", file=sys.stderr)
        else:
            print(f"written  {target}  {' x '.join(str(edge) for edge in grid.shape[::-1])} voxels")
    if failed:
        print(f"nnunet-ext: {len(failed)} of {len(cases)} cases failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def _spacing(given: list[float] | None) -> list[float] | None:
    """(z, y, x) of what was given for x, y and z, or for all of them."""
    if given is None:
        return None
    if len(given) not in (1, 3) or not all(0 < value < math.inf for value in given):
        got = " ".join(f"{value:g}" for value in given)
        raise UserError(f"--spacing takes one number of millimetres or three, each above 0; got {got}")
    return (given * 3 if len(given) == 1 else given)[::-1]


def _prepare(
    args: argparse.Namespace, spacing: list[float] | None
) -> tuple[Any, dict[str, list[str]], Callable[..., Any]]:
    """The predictor, the cases, and what predicts one of them."""
    from nnunet_ext.inference.device import chosen_device
    from nnunet_ext.inference.patches import find_cases
    from nnunet_ext.inference.predict_volume import predict_case, predict_published_case
    from nnunet_ext.inference.volume_field import case_adapter, check_model
    from nnunet_ext.lookup import install

    install()
    predictor = _load(args, chosen_device(args.device))
    adapter = case_adapter(predictor)
    if adapter is None:
        check_model(predictor)
        if args.mode == "reference":
            raise UserError("--mode reference is for imported published models; take adaptive, dense or budget")
    elif spacing is not None or args.mirroring or len(args.folds or ()) > 1:
        raise UserError(
            "the model is an imported published one: it gives labels at the images' own voxels, of one fold and "
            "without mirroring; leave out --spacing, --mirroring and further folds"
        )
    cases = find_cases(args.images, predictor.dataset_json)
    _make_output(args.output, predictor)

    def predict(case: str, files: list[str], target: Path) -> Any:
        if adapter is not None:
            return predict_published_case(predictor, files, target, adapter, mode=args.mode)
        options = {"spacing": spacing, "mode": args.mode, "mirroring": args.mirroring, "progress": case}
        return predict_case(predictor, files, target, **options)

    return predictor, cases, predict


def _make_output(folder: Path, predictor: Any) -> None:
    """Make the folder, with what nnU-Net puts beside its predictions."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in (("dataset.json", predictor.dataset_json), ("plans.json", predictor.plans_manager.plans)):
            (folder / name).write_text(json.dumps(content, indent=4), encoding="utf-8")
    except FileExistsError as error:
        raise UserError(f"{folder} is a file; choose another folder") from error
    except OSError as error:
        raise UserError(f"cannot write {error.filename or folder}: {error.strerror}; choose another folder") from error


def _load(args: argparse.Namespace, device: Any) -> Any:
    """nnU-Net's predictor with the weights of all folds."""
    from nnunet_ext.inference.patches import load_predictor

    predictor, _ = load_predictor(args.model, None if not args.folds else args.folds[0], args.checkpoint, device)
    for fold in (args.folds or [])[1:]:
        predictor.list_of_parameters += load_predictor(args.model, fold, args.checkpoint, device)[0].list_of_parameters
    return predictor
