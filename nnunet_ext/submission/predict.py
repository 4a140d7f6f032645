"""Entry script of a container, into which it is copied as it is: one process, the model loaded once, case by case.

A case that fails is named, and the others are predicted; every label map is in the output folder as soon as it is
there, so that a limit of time costs what is not done yet and nothing else. No worker is started: nnU-Net's hand over
volumes through /dev/shm, of which Docker gives 64 MB by default, less than one CT needs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ENDING = ".nii.gz"


def main(arguments: Sequence[str] | None = None) -> int:
    """Predict a folder of images; returns the exit code, 1 if any was not predicted."""
    args = _parser().parse_args(arguments)
    images = sorted(path for path in args.i.glob(f"*{ENDING}") if not path.name.startswith("."))
    if not images:
        _say(f"no *{ENDING} in {args.i}")
        return 1
    args.o.mkdir(parents=True, exist_ok=True)
    for image in images:
        (args.o / _name(image)).unlink(missing_ok=True)  # an earlier run's: it would pass for this one's
    predictor = _load(args)
    predicted = [_predict(predictor, image, args.o / _name(image)) for image in images]
    return 0 if all(predicted) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="CASE.nii.gz or CASE_0000.nii.gz becomes CASE.nii.gz.")
    parser.add_argument("-i", type=Path, required=True, help="folder of images")
    parser.add_argument("-o", type=Path, required=True, help="folder of label maps")
    parser.add_argument("-m", type=Path, required=True, help="trained model")
    parser.add_argument("-f", nargs="+", required=True, help="folds that are averaged")
    parser.add_argument("-chk", default="checkpoint_final.pth", help="checkpoint of each fold")
    parser.add_argument("--light", action="store_true", help="no mirroring, steps of 0.7 windows")
    parser.add_argument("-device", choices=("cuda", "cpu"), help="default: cuda where there is a GPU")
    return parser


def _say(text: str) -> None:
    sys.stderr.write(f"predict.py: {text}\n")


def _name(image: Path) -> str:
    return image.name.removesuffix(ENDING).removesuffix("_0000") + ENDING


def _load(args: argparse.Namespace) -> Any:
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if args.device is None and device == "cpu":
        _say("no GPU is seen (docker run --gpus all?): predicting on the CPU, which takes long")
    predictor = nnUNetPredictor(
        tile_step_size=0.7 if args.light else 0.5,
        use_mirroring=not args.light,
        device=torch.device(device),
        allow_tqdm=False,
    )
    predictor.initialize_from_trained_model_folder(str(args.m), tuple(args.f), args.chk)
    return predictor


def _predict(predictor: Any, image: Path, output: Path) -> bool:
    """Predict one case; False, and a line that says why, if that failed."""
    unfinished = output.with_name(f".{output.name}")
    try:
        with tempfile.TemporaryDirectory() as work:
            made = Path(work) / output.name
            predictor.predict_from_files_sequential([[str(image)]], [str(made).removesuffix(ENDING)])
            shutil.copyfile(made, unfinished)
        os.replace(unfinished, output)
    except Exception as error:  # whatever is wrong with this image, the others shall be predicted
        _say(f"{output.name.removesuffix(ENDING)} was not predicted: {type(error).__name__}: {error}")
        return False
    finally:
        unfinished.unlink(missing_ok=True)
    return True


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(main())
