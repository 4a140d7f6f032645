"""What a training starts from: images, a landmark table, an earlier checkpoint."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nnunet_ext.cores import usable_cores
from nnunet_ext.errors import UserError
from nnunet_ext.plan import require_folder
from nnunet_ext.pretraining import checkpoint_format, leakage
from nnunet_ext.pretraining.cases import Pool
from nnunet_ext.pretraining.landmarks import LandmarkTable, table_path
from nnunet_ext.pretraining.preparing import dataset_name, open_pool
from nnunet_ext.pretraining.run_folder import FINAL, LATEST

PREFERRED = ("embedding", "affine", "bodybox")
LEAST_ACCEPTANCE = 0.5  # specification alice 3.3: below, overlap is better


def pool_of(args: argparse.Namespace, progress: bool) -> Pool:
    """The images that the command line asks for."""
    exclude = list(args.exclude)
    if args.exclude_fold is not None:
        preprocessed = require_folder("nnUNet_preprocessed") / dataset_name(args.dataset)
        exclude += leakage.validation_cases(preprocessed, args.exclude_fold)
    return open_pool(
        args.dataset,
        args.plans,
        args.configuration,
        args.unlabelled,
        processes=args.processes or usable_cores(),
        own_images=not args.only_unlabelled,
        exclude=sorted(set(exclude)),
        progress=progress,
    )


def landmark_table(
    pool: Pool, method: str, wished: str | None, stored: Mapping[str, Any] | None, warn: Callable[[str], object]
) -> LandmarkTable | None:
    """The table that pairs are drawn from; None for pairs of one volume only, and for methods without pairs.

    Args:
        pool: its folder holds the tables.
        method: of the training.
        wished: kind of the table, "auto" or None.
        stored: settings of the training that goes on: its kind must be there.
        warn: told what a user should know.

    Raises:
        UserError: the wished table is not there.
    """
    if method != "alice":
        return None
    kind = wished or "auto"
    automatic = kind == "auto" and stored is None
    if stored is not None:
        if wished not in (None, "auto", stored["landmarks"]):
            raise UserError(f"--views {wished}: the training was begun with {stored['landmarks']}")
        kind = stored["landmarks"]
    if kind == "auto":
        kind = next((k for k in PREFERRED if table_path(pool.folder, k).is_file()), "") or _make(pool, warn)
    if kind == "overlap":
        return None
    table = LandmarkTable.load(table_path(pool.folder, kind))
    if automatic and table.acceptance() < LEAST_ACCEPTANCE:
        warn(
            f"only {table.acceptance():.0%} of the points in the landmark table {kind} are accepted: pairs come from "
            f"one volume each (overlap). --views {kind} uses the table all the same."
        )
        return None
    missing = [case.name for case in pool.cases if case.name not in table.cases]
    if missing:
        warn(
            f"{len(missing)} of {len(pool.cases)} images are not in the landmark table {kind} (such as "
            f"{missing[0]}): their pairs come from one volume. nnunet-ext correspond --kind {kind} adds them."
        )
    return table


def _make(pool: Pool, warn: Callable[[str], object]) -> str:
    """Make the table that fits the images; returns its kind."""
    from nnunet_ext.pretraining.corresponding import auto_kind, make_table
    from nnunet_ext.pretraining.landmark_assembly import Options

    kind = str(auto_kind(pool, False))
    if kind != "overlap":
        warn(f"no landmark table yet: making one ({kind}); nnunet-ext correspond makes others")
        make_table(pool, Options(kind=kind, processes=usable_cores()))
    return kind


def checkpoint_to_resume(folder: Path) -> dict[str, Any]:
    """The latest checkpoint of a folder.

    Raises:
        UserError: there is none, or the training is over.
    """
    if (folder / LATEST).is_file():
        return checkpoint_format.read(folder / LATEST)
    if (folder / FINAL).is_file():
        raise UserError(f"{folder}: this training is over; begin another one with -o")
    raise UserError(
        f"--resume: there is no {LATEST} in {folder}; give -d, -p, -c, -tr and --method as at the beginning, or the "
        "folder with -o"
    )


def require_same_images(content: Mapping[str, Any], pool: Pool) -> None:
    """Refuse to go on with other images, or with other plans: samples are numbered by them.

    Raises:
        UserError: names what differs.
    """
    theirs = (content["provenance"]["plans"], content["configuration"])
    ours = (pool.plans["plans_name"], pool.configuration)
    if theirs != ours:
        raise UserError(
            f"the training to continue has the plans {theirs[0]} and configuration {theirs[1]}, given are {ours[0]} "
            f"and {ours[1]}: give -p {theirs[0]} -c {theirs[1]}"
        )
    before = {case["name"]: tuple(case["sha256"]) for case in content["cases"]}
    now = {case.name: case.sha256 for case in pool.cases}
    if list(before.items()) == list(now.items()):
        return
    gone, new = sorted(before.keys() - now.keys()), sorted(now.keys() - before.keys())
    changed = sorted(name for name in before.keys() & now.keys() if before[name] != now[name])
    listed = [f"{len(n)} {words} ({n[0]})" for n, words in ((gone, "gone"), (new, "new"), (changed, "changed")) if n]
    raise UserError(
        f"the images are not those that the training was begun with: {', '.join(listed) or 'another order'}; give the "
        "same ones, or begin another training with -o"
    )


def require_same_plans(content: Mapping[str, Any], plans: Mapping[str, Any]) -> None:
    """Refuse to go on with plans of the same name and another content.

    Raises:
        UserError: they differ.
    """
    if checkpoint_format.as_plain(dict(plans)) != content["plans"]:
        raise UserError(
            f"the plans {content['provenance']['plans']} were changed since the training was begun: bring the former "
            "ones back, or begin another training with -o"
        )


def require_same_table(content: Mapping[str, Any], table: LandmarkTable | None) -> None:
    """Refuse to go on with another landmark table of the same kind: pairs are drawn from it.

    Raises:
        UserError: it was made again.
    """
    stored = content["provenance"].get("landmarks")
    if stored and table is not None and stored.get("digest") not in (None, table.digest()):
        raise UserError(
            f"the landmark table {table.kind} was made again since the training was begun: bring the former one back, "
            "or begin another training with -o"
        )


def leakage_notice(pool: Pool, transductive: bool, excluded_fold: str | None = None) -> str | None:
    """A warning where a fold of the data set will validate on images that are pre-trained on.

    Args:
        pool: of images.
        transductive: they are meant to be among them: no warning.
        excluded_fold: a fold whose cases were left out: the training is for this one, so no warning either.
    """
    if transductive or excluded_fold is not None:
        return None
    dataset = pool.plans["dataset_name"]
    own = {case.name for case in pool.cases if case.source == dataset}
    preprocessed = require_folder("nnUNet_preprocessed") / dataset
    try:
        folds = range(leakage.number_of_folds(preprocessed))
        met = {fold: len(own.intersection(leakage.validation_cases(preprocessed, fold))) for fold in folds}
    except UserError:  # no labels, no folds
        return None
    leaking = [fold for fold, number in met.items() if number]
    if not leaking:
        return None
    return (
        f"validation cases of fold(s) {', '.join(map(str, leaking))} of {dataset} are among the images ({len(own)} of "
        "its training images are). Dice of these folds will be about images that the network has seen, though not "
        "about their labels. To keep them apart: --exclude-fold N, one pre-training for each fold. The checkpoint "
        "records its images, and our trainers warn; --transductive says that it is meant so."
    )


def parse_option(text: str) -> tuple[str, Any]:
    """``NAME=VALUE`` with a Python value; several numbers, separated by commas, are a tuple.

    Raises:
        UserError: no such pair.
    """
    name, sign, value = text.partition("=")
    if not (name and sign and value):
        raise UserError(f"--alice {text}: options are given as NAME=VALUE, such as prototypes=256")
    if value.lower() in ("true", "false"):
        return name, value.lower() == "true"
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value
