"""Whether validation cases of a fine-tuning were among the images of the pre-training (specification alice 4.6).

Reconstructing a validation case's image is no look at its label, but a network that was pre-trained on the images that
it is measured on (transductive) is measured too well. Exported files list the images, each with the SHA-256 of its
files; here they are compared with a data set's.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.crossval_split import generate_crossval_split

from nnunet_ext.errors import UserError
from nnunet_ext.pretraining import checkpoint_format
from nnunet_ext.pretraining.raw_images import checksum, dataset_cases, read_json
from nnunet_ext.weights.loading import shorten

SPLITS = "splits_final.json"
SEED, FOLDS, TRAINING_SHARE = 12345, 5, 0.8  # nnU-Net's own split (nnUNetTrainer.do_split)


@dataclass(frozen=True)
class Overlap:
    """A case that was pre-trained on.

    Attributes:
        case: its identifier in the data set.
        pretrained: its name in the pre-training.
        same_file: whether an image file is the same to the byte; else data set and name are.
    """

    case: str
    pretrained: str
    same_file: bool


@dataclass(frozen=True)
class Origin:
    """What a file says of the images that its weights were pre-trained on."""

    cases: tuple[Mapping[str, Any], ...]
    transductive: bool


def origin_of(path: str | Path) -> Origin | None:
    """The images behind a file for ``-pretrained_weights``, or a checkpoint of pre-training.

    Returns:
        None where the file says nothing, as with weights from elsewhere.

    Raises:
        UserError: there is no such file.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: there is no such file")
    try:  # the weights stay on the disk
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # somebody else's file; whether it can be used is for its reader to say
        return None
    if not isinstance(content, Mapping):
        return None
    told = content if checkpoint_format.is_ours(content) else content.get("nnunet_ext", {})
    if not isinstance(told, Mapping) or "cases" not in told:
        return None
    return Origin(tuple(told["cases"]), bool(told.get("provenance", {}).get("transductive", False)))


def validation_cases(preprocessed: Path, fold: int | str) -> tuple[str, ...]:
    """The cases that nnU-Net validates a fold on: by its splits file, or by the split that it is going to make.

    Args:
        preprocessed: the data set's folder in nnUNet_preprocessed.
        fold: number of the split, or "all", which has none of its own.

    Raises:
        UserError: the fold is none, or there is neither a splits file nor a preprocessed data set.
    """
    if fold == "all":
        return ()
    if not str(fold).isdecimal():
        raise UserError(f"fold {fold}: a fold is 0, 1, 2, ... or all")
    number, path = int(fold), preprocessed / SPLITS
    splits = _read_splits(path) if path.is_file() else None
    if splits is None:
        cases = _identifiers(preprocessed)
        if len(cases) < FOLDS:
            raise UserError(
                f"{preprocessed.name} has {len(cases)} labelled case(s), too few for nnU-Net's {FOLDS} folds, and no "
                f"{SPLITS}: write one, or train fold all"
            )
        splits = generate_crossval_split(cases, seed=SEED, n_splits=FOLDS)
    if number < len(splits):
        return tuple(str(case) for case in splits[number]["val"])
    keys = _identifiers(preprocessed)
    random = np.random.RandomState(seed=SEED + number)
    training = set(random.choice(len(keys), int(len(keys) * TRAINING_SHARE), replace=False).tolist())
    return tuple(key for i, key in enumerate(keys) if i not in training)


def number_of_folds(preprocessed: Path) -> int:
    """How many splits the data set has, or is going to have."""
    path = preprocessed / SPLITS
    return len(_read_splits(path)) if path.is_file() else FOLDS


def overlap(pretrained: Iterable[Mapping[str, Any]], raw: Path, cases: Sequence[str]) -> list[Overlap]:
    """Which of a data set's cases were pre-trained on.

    Args:
        pretrained: the images of the pre-training: name, source, sha256.
        raw: the data set's folder in nnUNet_raw; where it is gone, names and data set alone are compared.
        cases: identifiers to look for.

    Returns:
        In the order of `cases`.
    """
    known = list(pretrained)
    by_file = {digest: str(case["name"]) for case in known for digest in case["sha256"]}
    by_name = {str(case["name"]) for case in known if case["source"] == raw.name}
    digests = _digests(raw, cases) if by_file else {}
    found = []
    for case in cases:
        same = next((by_file[digest] for digest in digests.get(case, ()) if digest in by_file), None)
        if same is not None or case in by_name:
            found.append(Overlap(case, same if same is not None else case, same is not None))
    return found


def warning(found: Sequence[Overlap], total: int, dataset: str, fold: int | str) -> str:
    """Sentences for people: which cases, of which fold, and the way out.

    Args:
        found: of `overlap`, not empty.
        total: how many validation cases the fold has.
        dataset: its name.
        fold: its number.
    """
    named = shorten(f"{o.case}{'' if o.case == o.pretrained else f' (as {o.pretrained})'}" for o in found)
    how = "the same image files" if all(o.same_file for o in found) else "the same files, or the same data set and name"
    return (
        f"{len(found)} of {total} validation cases of {dataset}, fold {fold}, were pre-trained on ({how}): {named}. "
        "Scores on them are too good, although no label was seen. Pre-train without them by `nnunet-ext pretrain "
        f"... --exclude-fold {fold}`, one pre-training a fold; or, if that is what you study (transductive), say so "
        "wherever you report them, and pre-train with --transductive to be told no more."
    )


def _digests(raw: Path, cases: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Case -> SHA-256 of its image files; without those that cannot be read."""
    wished, digests = set(cases), {}
    try:
        listed = dataset_cases(raw, read_json(raw / "dataset.json"))
    except UserError:
        return {}
    for case in listed:
        if case.name in wished:
            with contextlib.suppress(UserError):
                digests[case.name] = tuple(checksum(path) for path in case.files)
    return digests


def _read_splits(path: Path) -> list[dict[str, list[str]]]:
    try:
        splits = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(splits, list) and all({"train", "val"} <= split.keys() for split in splits):
            return splits
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    raise UserError(f"{path} is no splits file of nnU-Net: a list of folds with train and val")


def _identifiers(preprocessed: Path) -> list[str]:
    """All training cases, sorted as nnU-Net sorts them."""
    folder, path = preprocessed / "gt_segmentations", preprocessed / "dataset.json"
    if not folder.is_dir() or not path.is_file():
        raise UserError(
            f"{preprocessed} has neither {SPLITS} nor preprocessed cases, so the folds are not known: run "
            "nnUNetv2_plan_and_preprocess first"
        )
    ending = read_json(path)["file_ending"]
    return [str(name) for name in np.sort([file.name[: -len(ending)] for file in folder.glob(f"*{ending}")])]
