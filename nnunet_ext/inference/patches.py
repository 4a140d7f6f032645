"""Patches of images as nnU-Net's prediction makes them: the same files, preprocessing and sliding windows."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import Tensor
from torch.nn import functional

from nnunet_ext.errors import UserError


def load_predictor(folder: Path, fold: str | None, checkpoint: str, device: torch.device) -> tuple[Any, str]:
    """nnU-Net's predictor with a trained model, and the fold.

    Args:
        folder: as nnUNetv2_train writes it, with plans.json, dataset.json and fold_*.
        fold: None: the first that has the checkpoint.
        checkpoint: file name.
        device: to predict on.

    Raises:
        UserError: no such folder, fold or checkpoint, or it needs another stage's predictions.
    """
    fold = _fold_of(folder, fold, checkpoint)
    with contextlib.redirect_stdout(io.StringIO()):  # it remarks on devices
        predictor = nnUNetPredictor(device=device, perform_everything_on_device=False, allow_tqdm=False)
    try:
        predictor.initialize_from_trained_model_folder(str(folder), (fold,), checkpoint)
    except (RuntimeError, KeyError) as error:
        raise UserError(f"cannot load {folder.name}, fold {fold}: {str(error).splitlines()[0]}") from error
    if predictor.configuration_manager.previous_stage_name is not None:
        raise UserError(
            f"{folder.name} is the second stage of a cascade and needs the first one's predictions as input; give the "
            "folder of another configuration"
        )
    return predictor, fold


def _fold_of(folder: Path, fold: str | None, checkpoint: str) -> str:
    if not (folder / "plans.json").is_file() or not (folder / "dataset.json").is_file():
        raise UserError(
            f"{folder} is no model folder: it has no plans.json and dataset.json; give the folder "
            "TRAINER__PLANS__CONFIGURATION in nnUNet_results"
        )
    trained = sorted(path.parent.name.removeprefix("fold_") for path in folder.glob(f"fold_*/{checkpoint}"))
    if not trained or fold not in (None, *trained):
        asked = "no fold" if fold is None else f"no fold {fold}"
        raise UserError(f"{folder.name} has {asked} with {checkpoint}; there is: {', '.join(trained) or 'none'}")
    return fold or trained[0]


def find_cases(images: Path, dataset_json: dict[str, Any]) -> dict[str, list[str]]:
    """Case to its channels' files, named as for nnUNetv2_predict.

    Raises:
        UserError: no folder, no case, or a case without one of its channels.
    """
    ending, channels = dataset_json["file_ending"], len(dataset_json["channel_names"])
    if not images.is_dir():
        raise UserError(f"{images}: there is no such folder")
    named = re.compile(rf"(.+)_(\d{{4}}){re.escape(ending)}")
    cases: dict[str, list[str]] = {}
    for path in sorted(images.iterdir()):
        if match := named.fullmatch(path.name):
            cases.setdefault(match[1], []).append(str(path))
    if not cases:
        raise UserError(f"{images} has no images of the model's kind, such as CASE_0000{ending}")
    for case, files in cases.items():
        if len(files) != channels:
            raise UserError(f"{images}: {case} has {len(files)} channel(s), and the model needs {channels}")
    return cases


def central_patches(predictor: Any, data: Tensor, count: int) -> list[Tensor]:
    """Of the sliding windows in which nnU-Net would predict an image, those nearest to its centre.

    Args:
        predictor: nnU-Net's.
        data: (C, D, H, W), preprocessed.
        count: at most so many.

    Returns:
        (1, C, *patch) each; (1, C, H, W) slices for 2d configurations.
    """
    padded = padded_to(data, predictor.configuration_manager.patch_size)
    windows = predictor._internal_get_sliding_window_slicers(padded.shape[1:])

    def distance(window: Any) -> float:
        middles = [(s.start + s.stop) / 2 if isinstance(s, slice) else s + 0.5 for s in window[1:]]
        return sum((m - edge / 2) ** 2 for m, edge in zip(middles, padded.shape[1:], strict=True))

    return [padded[window][None] for window in sorted(windows, key=distance)[:count]]


def padded_to(data: Tensor, patch_size: Sequence[int]) -> Tensor:
    """With zeros on both sides of the last axes that are smaller than the patch, as nnU-Net does."""
    missing = [max(0, p - n) for p, n in zip(patch_size, data.shape[-len(patch_size) :], strict=True)]
    return functional.pad(data, [side for m in reversed(missing) for side in (m // 2, m - m // 2)])


def cases_of(predictor: Any, cases: dict[str, list[str]], count: int) -> Iterator[tuple[str, list[Tensor]]]:
    """Each case with its central patches, on the predictor's device; preprocessed here, without other processes.

    Raises:
        UserError: an image cannot be read.
    """
    plans, configuration = predictor.plans_manager, predictor.configuration_manager
    preprocessor = configuration.preprocessor_class(verbose=False)
    for case, files in cases.items():
        try:
            data, *_ = preprocessor.run_case(files, None, plans, configuration, predictor.dataset_json)
        except RuntimeError as error:
            raise UserError(f"cannot read the images of {case}: {str(error).splitlines()[0]}") from error
        patches = central_patches(predictor, torch.from_numpy(data).float(), count)
        yield case, [patch.to(predictor.device) for patch in patches]
