"""`nnunet-ext submit`: from predictions to the server's folder and zip, checks of others, and containers."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nnunet_ext.cores import usable_cores
from nnunet_ext.errors import UserError
from nnunet_ext.submission.challenges import Challenge
from nnunet_ext.submission.servers import CHALLENGES
from nnunet_ext.submission.wording import ranged, size

_CHECK = "check"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one sub-command a challenge, and `check`; nothing heavy is imported."""
    parser.epilog = (
        "`nnunet-ext submit CHALLENGE --help` says what its server takes. Predictions are label maps, as "
        "nnUNetv2_predict, nnUNetv2_ensemble and nnUNetv2_apply_postprocessing write them; no probabilities are needed."
    )
    commands = parser.add_subparsers(dest="challenge", metavar="CHALLENGE")
    commands.required = True
    for challenge in CHALLENGES.values():
        added = commands.add_parser(
            challenge.key,
            aliases=list(challenge.aliases),
            help=challenge.title,
            description=f"Writes {_layout(challenge)}. Upload: {challenge.upload}".replace("%", "%%"),
        )
        _add_submission(added, challenge)
    checking = commands.add_parser(
        _CHECK,
        help="check a folder or zip that was made elsewhere",
        description="Names, missing and extra files, values, types, compression, layout and, with --raw, geometry. "
        "Lists all that is wrong; exit code 1 if anything is.",
    )
    checking.add_argument("place", type=Path, metavar="FOLDER_OR_ZIP")
    checking.add_argument("--challenge", dest="kind", metavar="NAME", help="default: told from --raw or the file names")
    checking.add_argument(
        "--raw",
        nargs="+",
        action="extend",
        default=[],
        metavar="DATASET",
        help="for cases and geometry; MSD: one a task",
    )
    _add_common(checking)


def _layout(challenge: Challenge) -> str:
    section = challenge.sections[0]
    folder = f"{section.folder}/" if section.folder else ""
    if len(challenge.sections) > 1:
        folder = "TaskNN_NAME/"
    count = sum(part.count or 0 for part in challenge.sections) or "all"
    values = ranged(section.values) if len(challenge.sections) == 1 else "the task's"
    return f"{count} files {folder}{challenge.template}, uint8, values {values}"


def _add_submission(parser: argparse.ArgumentParser, challenge: Challenge) -> None:
    several = len(challenge.sections) > 1
    repeated: dict[str, Any] = {"nargs": "+", "action": "extend"} if several else {"action": "append"}
    parser.add_argument(
        "predictions",
        nargs="*" if several or challenge.container else 1,
        metavar="PREDICTIONS",
        help="folder of label maps" + ("; one a task, in the order of --raw" if several else ""),
    )
    parser.add_argument(
        "--raw",
        **repeated,
        default=[],
        metavar="DATASET",
        help="raw data set made by `nnunet-ext convert`: name or number in nnUNet_raw, or a path"
        + ("; one a task" if several else ""),
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="and DIR.zip beside it; or X.zip: the zip alone"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier submit wrote, nothing else")
    if several:
        parser.add_argument(
            "--fill-empty",
            nargs="+",
            action="extend",
            default=[],
            metavar="TASK_FOLDER",
            help="tasks without a model (Task02_Heart of the download, or a raw data set): background only",
        )
    if challenge.container:
        _add_container(parser)
    _add_common(parser)


def _add_container(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("container")
    group.add_argument(
        "--container",
        type=Path,
        metavar="MODEL_FOLDER",
        help="instead of predictions: write a Dockerfile and entry script around this trained model "
        "(TRAINER__PLANS__CONFIGURATION)",
    )
    group.add_argument("--folds", nargs="+", metavar="FOLD", help="numbers, or all (default: all that were trained)")
    group.add_argument("--checkpoint", metavar="FILE", help="default: checkpoint_final.pth")
    group.add_argument("--light", action="store_true", help="predict without mirroring and in steps of 0.7 windows")


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--allow-incomplete", action="store_true", help="missing cases are excused, nothing else")
    parser.add_argument("--name-template", metavar="T", help="file names, such as 'img{num:04d}.nii.gz'")
    parser.add_argument(
        "--labels", type=int, nargs="+", metavar="V", help="values that the server takes, if not the challenge's"
    )
    parser.add_argument("-np", "--processes", type=int, default=min(4, usable_cores()), help="cases at a time")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a report")


def run(args: argparse.Namespace) -> int:
    """Submit or check; returns the exit code, 1 if something is wrong.

    Raises:
        UserError: the arguments cannot be used, predictions were refused, or something cannot be read or written.
    """
    try:
        _check_json(args)
        if args.challenge == _CHECK:
            return _check(args)
        return _submit(args) if getattr(args, "container", None) is None else _write_container(args)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise UserError(f"{error.filename or 'cannot be read or written'}: {error.strerror or error}") from error
    except KeyboardInterrupt:
        print("nnunet-ext: interrupted, nothing was written", file=sys.stderr)
        return 130


def _check_json(args: argparse.Namespace) -> None:
    """See at once that the report can be written, and replaces nothing that was made here.

    Raises:
        UserError: it can't, or would.
    """
    from nnunet_ext.submission.output import Output

    if args.json is None:
        return
    path = Path(os.path.abspath(args.json.expanduser()))
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"--json {args.json}: no file can be written there")
    what = args.place if args.challenge == _CHECK else args.output
    own = [Path(os.path.abspath(what))]
    with contextlib.suppress(UserError):  # about -o: told later
        own += Output(what).places
    if any(place in (path, *path.parents) for place in own):
        raise UserError(f"--json {args.json}: that is a part of the submission: choose another file")


def _write_report(args: argparse.Namespace, content: Mapping[str, Any]) -> None:
    from nnunet_ext.submission.archive import write_json

    if args.json is not None:
        write_json(args.json.expanduser(), content)


def _options(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "allow_incomplete": args.allow_incomplete,
        "name_template": args.name_template,
        "labels": args.labels,
        "processes": args.processes,
        "progress": _progress,
    }


def _progress(cases: Iterable[Any], total: int) -> Iterable[Any]:
    from tqdm import tqdm

    bar: Iterable[Any] = tqdm(cases, total=total, unit="case", file=sys.stderr, disable=None)
    return bar


def _submit(args: argparse.Namespace) -> int:
    from nnunet_ext.submission.problems import RefusedError
    from nnunet_ext.submission.submitting import submit

    for option in ("folds", "light", "checkpoint"):
        if getattr(args, option, None):
            raise UserError(f"--{option} belongs to --container MODEL_FOLDER, which is missing")
    if not args.raw:
        raise UserError("--raw is missing: the data set (name, number or path) whose test cases were predicted")
    try:
        report = submit(
            args.challenge,
            args.predictions,
            args.raw,
            args.output,
            overwrite=args.overwrite,
            fill_empty=getattr(args, "fill_empty", ()),
            **_options(args),
        )
    except RefusedError as error:
        refused = [problem.as_dict() for problem in error.problems]
        _write_report(args, {"challenge": args.challenge, "refused": refused})
        raise
    _tell(report, Path(os.path.abspath(args.output.expanduser())))
    _write_report(args, report)
    return 0


def _tell(report: Mapping[str, Any], output: Path) -> None:
    from nnunet_ext.submission.table import label_table

    files = report["files"]
    names = {folder: {int(v): name for v, name in labels.items()} for folder, labels in report["labels"].items()}
    values = {path: {int(v): number for v, number in file["values"].items()} for path, file in files.items()}
    print(label_table(values, names))
    if report["folder"] is not None:
        print(f"\nfolder  {output}  {len(files)} files, {size(sum(file['bytes'] for file in files.values()))}")
    else:
        print()
    zipped = report["zip"]
    print(f"upload  {output.parent / zipped['name']}  {size(zipped['bytes'])}, sha256 {zipped['sha256']}")
    print(f"        {CHALLENGES[report['challenge']].upload}")
    for notice in report["notices"]:
        print(f"nnunet-ext: {notice}", file=sys.stderr)
    if not report["complete"]:
        count = len(report["missing"])
        print(f"nnunet-ext: INCOMPLETE: {count} missing, such as {report['missing'][0]['where']}", file=sys.stderr)


def _check(args: argparse.Namespace) -> int:
    from nnunet_ext.submission.checking import check
    from nnunet_ext.submission.problems import listing
    from nnunet_ext.submission.table import label_table

    done = check(args.place, args.kind, args.raw, **_options(args))
    if done.values:
        print(label_table(done.values), end="\n\n")
    print(f"{args.place}: {len(done.sizes)} files, {size(sum(done.sizes.values()))}, checked for {done.challenge.key}")
    for notice in done.notices:
        print(f"nnunet-ext: {notice}", file=sys.stderr)
    files = {
        name: {"bytes": done.sizes[name], "values": {str(v): n for v, n in done.values.get(name, {}).items()}}
        for name in done.sizes
    }
    problems = [problem.as_dict() for problem in done.problems]
    content = {"challenge": done.challenge.key, "problems": problems, "notices": done.notices, "files": files}
    _write_report(args, content)
    if not done.problems:
        geometry = "" if args.raw else "; geometry was not compared (no --raw)"
        print(f"nothing wrong{geometry}")
        return 0
    print(f"{len(done.problems)} wrong:\n{listing(done.problems)}")
    return 1


def _write_container(args: argparse.Namespace) -> int:
    from nnunet_ext.submission.container import write_container

    if args.predictions or args.raw:
        raise UserError("--container takes a model folder instead of PREDICTIONS and --raw; leave these out")
    written = write_container(
        args.challenge,
        args.container,
        args.output,
        folds=args.folds,
        checkpoint=args.checkpoint or "checkpoint_final.pth",
        light=args.light,
        overwrite=args.overwrite,
    )
    print(f"container  {args.output}  (README.md says how to build, try and hand it in)")
    for line in written:
        print(f"           {line}")
    _write_report(args, {"challenge": args.challenge, "container": str(args.output), "contents": written})
    return 0
