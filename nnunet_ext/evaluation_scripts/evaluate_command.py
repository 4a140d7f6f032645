"""``nnunet-ext evaluate``: label maps against references, under a named convention."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nnunet_ext.errors import UserError
from nnunet_ext.evaluation_scripts.conventions import CONVENTIONS

CACHE = ".cases.jsonl"
INTERRUPTED = 130
_EPILOG = (
    "PREDICTIONS are label maps, as nnUNetv2_predict, nnUNetv2_ensemble and nnUNetv2_apply_postprocessing write them; "
    "or a fold or a trained model, of which the validation folders of all folds are taken together. REFERENCE is "
    "labelsTr, labelsTs, or gt_segmentations in nnUNet_preprocessed. Cases are paired by name."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = _EPILOG
    parser.add_argument("reference", type=Path, metavar="REFERENCE", help="folder of reference label maps")
    parser.add_argument(
        "predictions", type=Path, nargs="+", metavar="PREDICTIONS", help="folders, folds or trained models"
    )
    parser.add_argument(
        "--dataset-json",
        type=Path,
        metavar="FILE",
        help="labels and regions (default: in PREDICTIONS, of the trained model, or above REFERENCE)",
    )
    parser.add_argument(
        "--convention", default="sound", choices=CONVENTIONS, help="what is computed (default: %(default)s)"
    )
    parser.add_argument("--list", action=_List, help="say what every convention computes, and all metrics")
    parser.add_argument(
        "--metrics",
        nargs="+",
        metavar="M",
        help="instead of the convention's: NAME, distances with a unit (hd95:voxels), surface Dice with a tolerance in "
        "mm (nsd@2); --list names them",
    )
    parser.add_argument("--tolerance", type=_millimetres, metavar="MM", help="of surface Dice (NSD)")
    parser.add_argument(
        "--missing",
        default="worst",
        choices=("error", "skip", "worst"),
        help="what a case without prediction counts: worst (default): as an empty one, or the convention's penalty",
    )
    parser.add_argument(
        "--groups",
        metavar="REGEX",
        help="patients, which intervals resample as a whole: what its first group matches in a case's id",
    )
    parser.add_argument("--raw", metavar="DATASET", help="made by `nnunet-ext convert`: patients and phases of cases")
    parser.add_argument(
        "--challenge", default="BraTS-GLI", metavar="NAME", help="brats2023: BraTS-GLI (default), SSA, PED, MEN or MET"
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="default: evaluation_CONVENTION in PREDICTIONS"
    )
    parser.add_argument("-np", dest="processes", type=_positive, metavar="N", help="cases at a time")
    parser.add_argument("--html", action="store_true", help="also report.html, with plots and the worst cases")
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="of nnU-Net (CASE_0000.*), for the report (default: beside labelsTr)"
    )
    parser.add_argument("--nnunet-summary", action="store_true", help="also summary.json as nnU-Net writes it")
    parser.add_argument("--force", action="store_true", help="compute every case anew, also those of earlier runs")


class _List(argparse.Action):
    """Say what there is, and end."""

    def __init__(self, option_strings: Sequence[str], dest: str, **more: Any) -> None:
        """Without a value."""
        super().__init__(option_strings, dest, nargs=0, **more)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Print and end."""
        from nnunet_ext.evaluation_scripts.metric_grammar import ALIASES
        from nnunet_ext.evaluation_scripts.quantities import DESCRIPTIONS, NAMES

        for convention in CONVENTIONS.values():
            print(f"{convention.name}\n  {convention.definition}")
        print("\nMetrics")
        for name in NAMES:
            short = "".join(f", {alias}" for alias, quantity in ALIASES.items() if quantity == name)
            print(f"  {name}{short}: {DESCRIPTIONS[name]}")
        parser.exit()


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"at least 1; got {text}")
    return number


def _millimetres(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"mm, 0 or more; got {text}")
    return number


def run(args: argparse.Namespace) -> int:
    """Evaluate, write the files and show the tables; returns 0, or 130 if interrupted.

    Raises:
        UserError: what was given cannot be evaluated.
    """
    try:
        return _run(args)
    except KeyboardInterrupt:
        print("\nInterrupted: finished cases are kept, and the same command goes on from here.", file=sys.stderr)
        return INTERRUPTED


def _run(args: argparse.Namespace) -> int:
    from nnunet_ext.evaluation_scripts import metric_grammar, summarising, tables, written
    from nnunet_ext.evaluation_scripts.conventions import convention_named
    from nnunet_ext.evaluation_scripts.dataset_files import find_dataset_json, read_dataset_json
    from nnunet_ext.evaluation_scripts.evaluating import evaluate
    from nnunet_ext.evaluation_scripts.pairing import find_pairs
    from nnunet_ext.evaluation_scripts.patients import patients_of, read_details

    convention = convention_named(args.convention)
    metrics = metric_grammar.parse(args.metrics or (), convention.metrics, args.tolerance)
    pairs = find_pairs(args.reference, args.predictions)
    described = find_dataset_json(args.dataset_json, args.reference, args.predictions)
    print(f"Labels: {described}", file=sys.stderr)
    dataset_json = read_dataset_json(described)
    details = read_details(args.raw, args.reference)
    patients, resampled = patients_of(pairs.references, args.groups, details)
    output = output_folder(args.output, args.reference, args.predictions, args.convention)
    cache = output / CACHE
    if args.force:
        cache.unlink(missing_ok=True)
    evaluation = evaluate(
        pairs,
        dataset_json,
        convention,
        metrics=metrics,
        tolerance=args.tolerance,
        missing=args.missing,
        processes=args.processes or _default_processes(),
        cache=cache,
        progress=_progress,
        details=details,
        names=_names(described, args.reference, args.predictions),
        challenge=args.challenge,
    )
    summary = summarising.summarise(evaluation, patients, resampled)
    command = ["nnunet-ext", *sys.argv[1:]]
    labels = dataset_json["labels"]
    files = written.write_files(
        evaluation, summary, output, command=command, for_nnunet=args.nnunet_summary, labels=labels
    )
    if args.html:
        from nnunet_ext.evaluation_scripts.report_html import ReportOptions, write_report

        images = args.images or _images_beside(args.reference)
        options = ReportOptions(images=images, patients=patients, resampled=resampled, ignore=labels.get("ignore"))
        files.append(write_report(evaluation, output, options=options))
    print(tables.as_text(evaluation, summary))
    print(f"\nFiles in {output}: {', '.join(path.name for path in files)}")
    return 0


def output_folder(given: Path | None, references: Path, predictions: Sequence[Path], convention: str) -> Path:
    """Where the files go: as given, else in the predictions' folder, or in the one that holds all of them.

    Raises:
        UserError: it is the references' folder or in it, or there is no common folder.
    """
    if given is None:
        places = [place.absolute() for place in predictions]
        common = Path(os.path.commonpath(places))
        if len(places) > 1 and common == Path(common.anchor):
            raise UserError("the predictions have no folder in common: state where the files go, by -o DIR")
        output = common / f"evaluation_{convention}"
    else:
        output = given.absolute()
    resolved, kept = output.resolve(), references.resolve()
    if resolved == kept or kept in resolved.parents:
        raise UserError(f"nothing is written to the references' folder: state another than {output}, by -o DIR")
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file: state a folder, by -o DIR")
    if not os.access(next(folder for folder in (output, *output.parents) if folder.exists()), os.W_OK):
        raise UserError(f"{output} cannot be written: state another folder, by -o DIR")
    return output


def _images_beside(references: Path) -> Path | None:
    """The raw data set's images of these labels, imagesTr of labelsTr."""
    folder = references.absolute()
    images = folder.with_name(folder.name.replace("labels", "images"))
    return images if folder.name.startswith("labels") and images.is_dir() else None


def _names(described: Path, references: Path, predictions: Sequence[Path]) -> list[str]:
    """Folders' names that may be a data set's, Dataset004_Hippocampus or Task04_Hippocampus."""
    folders = [place.absolute() for place in (described, references, *predictions)]
    names = [part for folder in folders for part in reversed(folder.parts)]
    return list(dict.fromkeys(name for name in names if name.startswith(("Dataset", "Task"))))


def _default_processes() -> int:
    from nnunet_ext.cores import usable_cores

    stated = os.environ.get("nnUNet_def_n_proc", "")
    return int(stated) if stated.isdecimal() and int(stated) > 0 else min(8, usable_cores())


def _progress(cases: Iterable[Any], total: int) -> Iterable[Any]:
    from tqdm import tqdm

    bar: Iterable[Any] = tqdm(cases, total=total, unit="case", file=sys.stderr, disable=None)
    return bar
