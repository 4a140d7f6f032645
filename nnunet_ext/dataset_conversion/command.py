"""``nnunet-ext convert``: from a challenge's download to nnUNet_raw."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nnunet_ext.dataset_conversion import CONVERTERS, converter_class, files
from nnunet_ext.dataset_conversion.cases import FOLDERS
from nnunet_ext.dataset_conversion.options import CHECKS, REORIENT, Options, Report
from nnunet_ext.dataset_conversion.partition import names_of
from nnunet_ext.dataset_conversion.pool import Result
from nnunet_ext.dataset_conversion.run import convert
from nnunet_ext.errors import UserError

_SHOWN = 15
INTERRUPTED = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a sub-command for each data set."""
    datasets = parser.add_subparsers(dest="dataset", metavar="DATASET")
    datasets.required = True
    for key in CONVERTERS:
        converter = converter_class(key)
        splits = ", ".join(names_of(converter.from_arguments({}), ()))
        description = (
            f"{converter.summary}. Where to get it: {converter.get_it} What the download must look like: "
            f"{converter.looks_like} Splits: {splits}."
        )
        subparser = datasets.add_parser(key, help=converter.summary, description=description.replace("%", "%%"))
        subparser.add_argument("download", nargs="+", type=Path, help="folder, zip or tar; several are taken together")
        _add_common(subparser)
        converter.add_arguments(subparser.add_argument_group("this data set"))


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-d", dest="number", type=int, metavar="ID", help="nnU-Net's data set id (default: its own)")
    parser.add_argument("-n", dest="name", metavar="NAME", help="nnU-Net's data set name, without the id")
    parser.add_argument(
        "-np",
        dest="processes",
        type=_positive,
        metavar="N",
        help="processes (default: nnU-Net's nnUNet_def_n_proc, or as many as there are cores, at most 8)",
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--copy", dest="mode", action="store_const", const="copy", help="copy files instead of linking")
    mode.add_argument("--hardlink", dest="mode", action="store_const", const="hardlink", help="hard links")
    parser.add_argument(
        "--split",
        dest="splits",
        action="append",
        default=[],
        metavar="NAME",
        help="whose folds to write; may be repeated; cv: five folds, patients kept together; none (default: the "
        "paper's, else cv)",
    )
    parser.add_argument("--with-cv", action="store_true", help="add the five folds of cv after those of --split")
    parser.add_argument(
        "--hold-out",
        action="store_true",
        help="the validation cases of --split become test cases; cross-validation within the rest",
    )
    parser.add_argument(
        "--check",
        choices=CHECKS,
        default="full",
        help="full (default): headers, labels and voxels; fast: no voxels of images; none: names only, and nnU-Net's "
        "own verification is left out",
    )
    parser.add_argument(
        "--strict", action="store_true", help="stop at the first bad case, and unless the release is complete"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be made, and write nothing")
    parser.add_argument(
        "--force", action="store_true", help="convert finished cases again, and replace a splits_final.json of others"
    )
    parser.add_argument("--fix-nan", action="store_true", help="replace NaN and infinities in images")
    parser.add_argument("--copy-geometry", action="store_true", help="labels get the geometry of their image")
    parser.add_argument(
        "--reorient",
        choices=REORIENT,
        default="default",
        help="to RAS: by nnU-Net's reader (nothing is written), or in the files; default: what suits the data set",
    )
    parser.add_argument("--keep-ending", action="store_true", help="files that are .nii stay so")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report as JSON")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"at least 1; got {text}")
    return number


def run(args: argparse.Namespace) -> int:
    """Convert; returns 0, 1 if a case was left out or nnU-Net is not content, 130 if interrupted."""
    options = Options(
        number=args.number,
        name=args.name,
        processes=args.processes or _default_processes(),
        mode=args.mode or "symlink",
        splits=tuple(args.splits),
        **{
            name: getattr(args, name)
            for name in ("with_cv", "hold_out", "check", "strict", "dry_run", "force", "fix_nan", "copy_geometry")
        },
        reorient=args.reorient,
        keep_ending=args.keep_ending,
    )
    try:
        report = convert(args.dataset, args.download, options, vars(args), _progress)
    except (UserError, OSError) as error:
        _write_json(args.json, {"ok": False, "error": str(error)})
        if isinstance(error, UserError) or error.errno in files.FULL:
            raise
        raise UserError(f"{error.filename or 'a file'}: {error.strerror or error}.") from error
    except KeyboardInterrupt:
        print("\nInterrupted: nothing is half-written, and the same command goes on from here.", file=sys.stderr)
        return INTERRUPTED
    print(as_text(report))
    _write_json(args.json, {**asdict(report), "folder": str(report.folder), "ok": report.ok})
    return 0 if report.ok else 1


def _write_json(path: Path | None, content: dict[str, Any]) -> None:
    if path is None:
        return
    try:
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def _default_processes() -> int:
    from nnunet_ext.cores import usable_cores

    stated = os.environ.get("nnUNet_def_n_proc", "")
    return int(stated) if stated.isdecimal() and int(stated) > 0 else min(8, usable_cores())


def _progress(results: Iterator[Result], cases: int, size: int) -> Iterable[Result]:
    """A bar on a terminal, else a line for every tenth of the cases."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(total=size, unit="B", unit_scale=True, desc=f"{cases} cases") as bar:
            for number, (job, result) in enumerate(results, start=1):
                bar.update(sum(file.size for file in (*job.case.images, job.case.label) if file is not None))
                bar.set_postfix_str(f"{number}/{cases} cases", refresh=False)
                yield job, result
        return
    for number, pair in enumerate(results, start=1):
        if number * 10 // cases > (number - 1) * 10 // cases:
            print(f"{number} of {cases} cases", flush=True)
        yield pair


def as_text(report: Report) -> str:
    """The report as lines for a terminal."""
    counts = [(report.counts[part], part) for part in FOLDERS if part in report.counts]
    parts = ", ".join(f"{count} {part} {'case' if count == 1 else 'cases'}" for count, part in counts)
    verb = "would be made of" if report.dry_run else "has"
    lines = [f"{report.name} {verb} {parts}: {report.folder}"]
    if not report.dry_run:
        actions = ", ".join(f"{count} {_DONE[action]}" for action, count in report.actions.items())
        skipped = f"; {report.skipped} cases were ready" if report.skipped else ""
        lines.append(f"Files: {actions}{skipped}; {report.seconds:.1f} s")
    if report.folds:
        lines.append(f"Folds: {'; '.join(report.folds)}")
    if report.labels:
        width = max(map(len, report.labels))
        lines.append("Labels (cases that have them, voxels):")
        lines += [f"  {name:<{width}}  {cases:>5}  {voxels:>12}" for name, (cases, voxels) in report.labels.items()]
    lines += _listed("Notice", report.notices)
    if report.problem:
        lines.append(f"nnU-Net's verify_dataset_integrity is not content: {report.problem}")
    lines += _listed("Left out", [f"{fault.case}: {fault.reason}" for fault in report.faults], all_of_them=True)
    if report.faults and not report.dry_run:
        lines.append("Put these files right and give the same command again: it does only what is missing.")
    return "\n".join(lines)


_DONE = {"link": "linked", "copy": "copied", "write": "written", "keep": "left where they are"}


def _listed(what: str, texts: Sequence[str], all_of_them: bool = False) -> list[str]:
    shown = texts if all_of_them else texts[:_SHOWN]
    rest = len(texts) - len(shown)
    more = [f"{what}: {rest} more, in conversion.json"] if rest else []
    return [f"{what}: {text}" for text in shown] + more
