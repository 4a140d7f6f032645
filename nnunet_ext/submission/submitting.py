"""Predictions become what a challenge's server takes: all or nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from nnunet_ext import __version__
from nnunet_ext.errors import UserError
from nnunet_ext.submission.archive import sha256_of, write_json, write_zip
from nnunet_ext.submission.challenges import Challenge
from nnunet_ext.submission.checking import Checked, Progress, background_notices, check_place
from nnunet_ext.submission.output import Output
from nnunet_ext.submission.places import opened
from nnunet_ext.submission.planning import Item, Plan, make_plan
from nnunet_ext.submission.predictions import find_predictions
from nnunet_ext.submission.problems import Problem, RefusedError, without_excused
from nnunet_ext.submission.raw_data import find_raw
from nnunet_ext.submission.servers import challenge_named
from nnunet_ext.submission.writing import Written, write_item
from nnunet_ext.versions import installed_nnunet

Places = Sequence[Path | str] | Path | str


def submit(
    challenge: str,
    predictions: Places,
    raw: Places,
    output: Path | str,
    *,
    allow_incomplete: bool = False,
    name_template: str | None = None,
    labels: Iterable[int] | None = None,
    fill_empty: Places = (),
    overwrite: bool = False,
    processes: int = 1,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write a submission: a folder, as the server unpacks it, and its zip; or the zip alone.

    Everything is checked first, written beside the output, read again and checked by the code of `check`, and renamed.

    Args:
        challenge: a name as on the command line.
        predictions: the folder that nnU-Net predicted into; for MSD one a task.
        raw: path, name or number of the raw data set, which `nnunet-ext convert` made; one for each of `predictions`.
        output: a folder, or a file that ends with .zip.
        allow_incomplete: cases may be missing; whatever is wrong otherwise is still refused.
        name_template: of the files' names, in place of the challenge's, such as ``label{num:04d}.nii.gz``.
        labels: values that the server takes, in place of the challenge's.
        fill_empty: folders of MSD tasks that get label maps of background only.
        overwrite: replace what an earlier submit wrote.
        processes: cases at a time.
        progress: shows how far it is.

    Returns:
        The report, which is also written beside the output: JSON values.

    Raises:
        RefusedError: with all that is wrong; nothing was written.
        UserError: the arguments cannot be used, or the output may not be replaced.
        OSError: the disk is full, or something cannot be written; nothing was.
    """
    labels = None if labels is None else frozenset(labels)
    server = challenge_named(challenge)
    pairs = _pairs(server, _several(predictions), _several(raw))
    if _several(fill_empty) and server.key != "msd":
        raise UserError(f"--fill-empty is for the tasks of msd; {server.key} has none")
    target = Output(output)
    target.keep_out_of([find_predictions(folder).folder for folder, _ in pairs] + [find_raw(raw) for _, raw in pairs])
    target.recover()
    target.check(overwrite)
    plan = make_plan(server, pairs, name_template=name_template, labels=labels, fill_empty=_several(fill_empty))
    wrong = without_excused(plan.problems, allow_incomplete)
    if wrong or not plan.items:
        written = _write_all(plan.items, None, processes, progress)
        raise _refused(plan, [*wrong, *_problems(written)])
    with target.workshop() as new:
        tree, archive = new / "folder", new / "zip"
        written = _write_all(plan.items, tree, processes, progress)
        if found := _problems(written):
            raise _refused(plan, found)
        write_zip(archive, tree, [item.path for item in plan.items])
        with opened(archive) as place:
            again = check_place(
                place, server, plan.expected, labels, allow_incomplete=allow_incomplete, processes=processes
            )
        if again.problems:
            raise _refused(plan, again.problems)
        report = _report(plan, written, tree, archive, again, target)
        write_json(new / "record", report)
        target.move_in(new, overwrite)
    return report


def _several(given: Places) -> list[Path | str]:
    return [given] if isinstance(given, str | Path) else list(given)


def _pairs(
    challenge: Challenge, predictions: Sequence[Path | str], raws: Sequence[Path | str]
) -> list[tuple[Path | str, Path | str]]:
    if not predictions or len(predictions) != len(raws):
        raise UserError(
            f"{len(predictions)} folder(s) of predictions and {len(raws)} --raw: give one data set for each folder, in "
            "the same order"
        )
    if len(predictions) > 1 and len(challenge.sections) == 1:
        raise UserError(f"{challenge.key} takes one folder of predictions, got {len(predictions)}")
    return list(zip(predictions, raws, strict=True))


def _write_all(items: Sequence[Item], folder: Path | None, processes: int, progress: Progress | None) -> list[Written]:
    """Write in threads: compression and decompression, which take the time, run beside each other."""
    pool = ThreadPoolExecutor(max(1, processes))
    try:
        results: Iterable[Written] = pool.map(lambda item: write_item(item, folder), items)
        return list(results if progress is None else progress(results, len(items)))
    finally:
        pool.shutdown(cancel_futures=True)


def _problems(written: Sequence[Written]) -> list[Problem]:
    return [problem for done in written for problem in done.problems]


def _refused(plan: Plan, problems: Sequence[Problem]) -> RefusedError:
    start = f"{plan.challenge.key}: refused, nothing was written"
    if not plan.items:
        return RefusedError(f"{start}: there is no prediction of any of its cases.", problems or plan.problems)
    only_missing = all(problem.kind == "missing" for problem in problems)
    hint = "--allow-incomplete leaves out missing cases, for a try." if only_missing else ""
    return RefusedError(f"{start}; {len(problems)} problem{'s' * (len(problems) > 1)}:", problems, hint)


def _report(
    plan: Plan, written: Sequence[Written], tree: Path, archive: Path, again: Checked, target: Output
) -> dict[str, Any]:
    files = {
        done.item.path: {
            "case": done.item.case.id,
            "prediction": None if done.item.prediction is None else done.item.prediction.name,
            "bytes": (tree / done.item.path).stat().st_size,
            "sha256": sha256_of(tree / done.item.path),
            "values": {str(value): number for value, number in done.values.items()} or _all_background(done.item),
        }
        for done in sorted(written, key=lambda done: done.item.path)
    }
    predicted = {done.item.path: done.values for done in written if done.item.prediction is not None}
    excused = [problem.as_dict() for problem in plan.problems]
    return {
        "format": 1,
        "challenge": plan.challenge.key,
        "complete": not excused,
        "missing": excused,
        "notices": [*plan.notices, *again.notices, *background_notices(predicted)],
        "files": files,
        "zip": {"name": (target.zip or archive).name, "bytes": archive.stat().st_size, "sha256": sha256_of(archive)},
        "folder": None if target.folder is None else target.folder.name,
        "labels": {folder: {str(v): name for v, name in names.items()} for folder, names in plan.names.items()},
        "versions": {
            "nnunet_ext": __version__,
            "nnunetv2": installed_nnunet(),
            "nibabel": nibabel.__version__,
            "numpy": np.__version__,
        },
    }


def _all_background(item: Item) -> dict[str, int]:
    x, y, z = item.case.written.shape
    return {"0": x * y * z}
