"""Tasks of the MSD without a model: label maps of background only, so that the server does not refuse the others."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from pathlib import Path
from typing import Any

from nnunet_ext.dataset_conversion.msd_tasks import Task, task_of
from nnunet_ext.errors import UserError
from nnunet_ext.submission.raw_data import FILE, Geometry, RawCase, read_raw


def empty_task(folder: Path | str) -> tuple[Task, dict[str, RawCase], str]:
    """The test cases of a task.

    Args:
        folder: the download's (Task02_Heart, with imagesTs), or a raw data set's folder or name.

    Returns:
        The task, its test cases by id, and a notice that says what is done.

    Raises:
        UserError: no task of the Decathlon, or no test images in it.
    """
    path = Path(folder).expanduser()
    if (path / "imagesTs").is_dir() and not (path / FILE).is_file():
        cases = _cases(path)
    else:
        raw = read_raw(folder)
        path = raw.folder
        cases = {case.id: case for case in raw.cases.values() if case.part == "test" and not case.labelled}
    tasks = {task_of(path.name, case) for case in cases}
    task = tasks.pop() if len(tasks) == 1 else None
    if task is None:
        raise UserError(
            f"--fill-empty {folder}: no test images of a task of the Decathlon in {path / 'imagesTs'}; give a folder "
            "such as Task02_Heart of the download"
        )
    notice = f"{task.folder}: NOT PREDICTED: {len(cases)} label maps of BACKGROUND ONLY are written; they score 0."
    return task, cases, notice


def _cases(folder: Path) -> dict[str, RawCase]:
    converted = _is_converted(folder)
    cases: dict[str, RawCase] = {}
    for path in sorted((folder / "imagesTs").iterdir()):
        if path.name.startswith(".") or not path.name.endswith((".nii.gz", ".nii")):
            continue
        case = path.name.removesuffix(".gz").removesuffix(".nii")
        case = re.sub(r"_\d{4}$", "", case) if converted else case
        if case not in cases:
            geometry = _geometry(path)
            cases[case] = RawCase(case, "test", case, {}, False, geometry, geometry)
    return cases


def _is_converted(folder: Path) -> bool:
    """Whether files have nnU-Net's channel numbers."""
    try:
        content: Any = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "channel_names" in content


def _geometry(path: Path) -> Geometry:
    from nnunet_ext.dataset_conversion.volumes import geometry
    from nnunet_ext.submission.nifti import UnreadableError, parse_header
    from nnunet_ext.submission.raw_data import geometry_of

    try:
        with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as stream:
            header = parse_header(stream.read(540))
        return geometry_of(geometry(header, header.get_data_shape()))
    except (OSError, EOFError, zlib.error, ValueError, UnreadableError) as error:
        raise UserError(f"--fill-empty: {path} cannot be read ({error}): download the task again") from error
