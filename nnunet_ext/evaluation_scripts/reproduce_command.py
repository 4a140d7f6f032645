"""``nnunet-ext reproduce``: a published table beside the same numbers of your predictions."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nnunet_ext.errors import UserError

CACHE = ".cases.jsonl"
_EPILOG = (
    "Ours are computed by the paper's convention, on the paper's cases, whose predictions may be in folders, folds or "
    "trained models; others are passed over. What is known to make the comparison unfair is printed below the table."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = _EPILOG
    parser.add_argument("paper", metavar="TABLE", help="such as unetrpp-synapse; --list names all")
    parser.add_argument("--list", action=_List, help="name all tables, and end")
    parser.add_argument(
        "--predictions",
        type=Path,
        nargs="+",
        required=True,
        metavar="DIR",
        help="label maps; or folds (fold_0) or trained models, of which the validation folders are taken",
    )
    parser.add_argument("--references", type=Path, nargs="+", metavar="DIR", help="reference label maps")
    parser.add_argument(
        "--raw", metavar="DATASET", help="instead: labelsTr and labelsTs of this data set in nnUNet_raw"
    )
    parser.add_argument(
        "--dataset-json",
        type=Path,
        metavar="FILE",
        help="names and numbers of labels (default: with the predictions, the trained model or the references)",
    )
    parser.add_argument("--against", metavar="METHOD", help="row to compare with (default: the paper's own method)")
    parser.add_argument("--all-cases", action="store_true", help="all that are predicted, not the paper's cases alone")
    parser.add_argument(
        "--missing",
        default="skip",
        choices=("error", "skip", "worst"),
        help="cases of the paper without prediction: named and left out (default), an error, or as empty predictions",
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="write reproduction.json, .md and .csv, and evaluation.json"
    )
    parser.add_argument("-np", dest="processes", type=int, default=1, metavar="N", help="cases at a time (default: 1)")


class _List(argparse.Action):
    """Name the tables, and end."""

    def __init__(self, option_strings: Sequence[str], dest: str, **more: Any) -> None:
        """Without a value."""
        super().__init__(option_strings, dest, nargs=0, **more)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Print and end."""
        from nnunet_ext.evaluation_scripts.papers import PAPERS

        for paper in PAPERS.values():
            print(f"{paper.key}\n  {paper.title}: {', '.join(column.name for column in paper.columns)}")
            print(f"  cases       {paper.cases}")
            print(f"  convention  {paper.convention}")
        parser.exit()


def run(args: argparse.Namespace) -> int:
    """Evaluate as the paper did, show both tables and write the files.

    Raises:
        UserError: what was given cannot be evaluated.
    """
    from nnunet_ext.evaluation_scripts import reproduce_tables, results
    from nnunet_ext.evaluation_scripts.dataset_files import find_dataset_json, read_dataset_json
    from nnunet_ext.evaluation_scripts.papers import paper_named
    from nnunet_ext.evaluation_scripts.reproduce import reproduce
    from nnunet_ext.whole_files import write_whole

    paper = paper_named(args.paper)
    references = _references(args.references, args.raw)
    _check_output(args.output, references)
    described = find_dataset_json(args.dataset_json, references[0], args.predictions)
    found = reproduce(
        paper,
        args.predictions,
        references,
        read_dataset_json(described),
        against=args.against,
        all_cases=args.all_cases,
        missing=args.missing,
        processes=args.processes,
        cache=None if args.output is None else args.output / CACHE,
        progress=_progress,
    )
    print(reproduce_tables.as_text(found))
    if args.output is not None:
        import json

        command = ["nnunet-ext", *sys.argv[1:]]
        texts = {
            "reproduction.json": reproduce_tables.as_json(found, command),
            "reproduction.md": reproduce_tables.as_markdown(found, " ".join(command)),
            "reproduction.csv": reproduce_tables.as_csv(found),
            "evaluation.json": json.dumps(results.as_json(found.evaluation), indent=1, allow_nan=False) + "\n",
        }
        for name, text in texts.items():
            write_whole(args.output / name, text)
        print(f"\nFiles in {args.output}: {', '.join(texts)}")
    return 0


def _references(given: Sequence[Path] | None, raw: str | None) -> list[Path]:
    if (given is None) == (raw is None):
        raise UserError("state where the references are: --references DIR, or --raw DATASET (one of them)")
    if given is not None:
        return list(given)
    from nnunet_ext.submission.raw_data import find_raw

    data_set = find_raw(str(raw))
    folders = [data_set / name for name in ("labelsTr", "labelsTs")]
    found = [folder for folder in folders if folder.is_dir() and any(folder.iterdir())]
    if not found:
        raise UserError(f"{data_set} has no reference in labelsTr or labelsTs")
    return found


def _check_output(output: Path | None, references: Sequence[Path]) -> None:
    if output is None:
        return
    resolved = output.resolve()
    for folder in references:
        kept = folder.resolve()
        if resolved == kept or kept in resolved.parents:
            raise UserError(f"nothing is written to the references' folder: state another than {output}, by -o DIR")
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file: state a folder, by -o DIR")


def _progress(cases: Iterable[Any], total: int) -> Iterable[Any]:
    from tqdm import tqdm

    bar: Iterable[Any] = tqdm(cases, total=total, unit="case", file=sys.stderr, disable=None)
    return bar
