"""``nnunet-ext compare``: models on the same cases, two by paired tests, more by rankings."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnunet_ext.evaluation_scripts.compared_models import Models
    from nnunet_ext.evaluation_scripts.comparing import Pair, Ranked

_EPILOG = (
    "Each MODEL is what `nnunet-ext evaluate` wrote: its folder, its evaluation.json, or the folder of predictions "
    "that holds the one. Two models: paired differences with bootstrap intervals, Wilcoxon's signed ranks with Holm's "
    "correction, permutation test, effect size. More: rankings by means, by ranks and by tests, and how stable they "
    "are. Values that are undefined for one model are dropped for all and counted."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = _EPILOG
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL", help="evaluation, at least two")
    parser.add_argument("--metric", nargs="+", default=[], metavar="M", help="default: all that every evaluation has")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="of the models (default: what differs in the paths)")
    parser.add_argument(
        "--common", action="store_true", help="compare the cases that all have, if they are not the same"
    )
    parser.add_argument(
        "--groups",
        metavar="REGEX",
        help="patients, which are resampled and tested as a whole: what its first group matches in a case's id",
    )
    parser.add_argument(
        "--pratt", action="store_true", help="Wilcoxon's test ranks differences of 0, as Pratt proposed"
    )
    parser.add_argument("--bca", action="store_true", help="intervals corrected for bias and acceleration")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="write comparison.json, .csv, .md and .png there"
    )
    parser.add_argument("--html", action="store_true", help="also comparison.html, which needs no other file")


def run(args: argparse.Namespace) -> int:
    """Compare, show the tables and write what was asked for.

    Raises:
        UserError: the evaluations do not go together, or a file cannot be written.
    """
    from nnunet_ext.errors import UserError
    from nnunet_ext.evaluation_scripts import comparing, comparison_tables
    from nnunet_ext.evaluation_scripts.compared_models import matched, read_models
    from nnunet_ext.evaluation_scripts.patients import patients_of
    from nnunet_ext.evaluation_scripts.statistics import PairedSettings

    if args.html and args.output is None:
        raise UserError("--html: state the folder of the files, by -o DIR")
    models = matched(read_models(args.models, args.names), args.metric, args.common)
    for notice in models.notices:
        print(f"nnunet-ext: {notice}", file=sys.stderr)
    patients, resampled = patients_of(models.cases, args.groups, {})
    settings = PairedSettings("pratt" if args.pratt else "wilcox", "bca" if args.bca else "percentile")
    two = len(models.evaluations) == 2
    pairs = comparing.compare_two(models, patients, settings) if two else {}
    rankings = {} if two else comparing.rank_all(models, patients)
    found = comparison_tables.sections(models, pairs, rankings)
    print(comparison_tables.as_text(models, found, resampled))
    if args.output is not None:
        command = ["nnunet-ext", *sys.argv[1:]]
        files = write_comparison(models, pairs, rankings, args.output, resampled, command, args.html)
        print(f"\nFiles in {args.output}: {', '.join(path.name for path in files)}")
    return 0


def write_comparison(
    models: Models,
    pairs: Mapping[str, Mapping[str, Pair]],
    rankings: Mapping[str, Mapping[str, Mapping[str, Ranked]]],
    folder: Path,
    resampled: str,
    command: Sequence[str] = (),
    html: bool = False,
) -> list[Path]:
    """Write the files; each is whole or as it was before.

    Args:
        models: that were compared.
        pairs: of two models; else empty.
        rankings: of several; else empty.
        folder: where to; it is made.
        resampled: what is resampled and tested, in words.
        command: the command line.
        html: also comparison.html.

    Returns:
        The files.

    Raises:
        UserError: one cannot be written.
    """
    from nnunet_ext.evaluation_scripts import comparing, comparison_plots, comparison_tables, report_html
    from nnunet_ext.whole_files import write_whole

    found = comparison_tables.sections(models, pairs, rankings)
    content = comparing.as_json(models, pairs, rankings, resampled, list(command))
    plot = comparison_plots.differences(models, pairs) if pairs else comparison_plots.rank_frequencies(models, rankings)
    contents: dict[str, bytes | str] = {
        "comparison.csv": comparison_tables.as_csv(models, pairs, rankings),
        "comparison.md": comparison_tables.as_markdown(models, found, resampled, " ".join(command)),
        "comparison.png": plot,
        "comparison.json": json.dumps(content, indent=1, allow_nan=False) + "\n",
    }
    if html:
        names = ", ".join(models.evaluations)
        picture = report_html.picture(plot, f"Plot of the numbers above for {names}", ' style="max-width:100%"')
        parts = comparison_tables.as_html(models, found, resampled, picture)
        contents["comparison.html"] = report_html.page(f"Comparison: {names}", parts)
    for name, text in contents.items():
        write_whole(folder / name, text)
    return [folder / name for name in contents]
