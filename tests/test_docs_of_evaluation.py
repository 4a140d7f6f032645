"""docs/evaluation.md names every convention, metric, table and option that there is, and its commands can be typed."""

from __future__ import annotations

import math
import re
import shlex
from typing import Any

import pytest
from pages import LONG, PAGES, commands, is_named, options, parser

from nnunet_ext.evaluation_scripts import structures as of
from nnunet_ext.evaluation_scripts.conventions import CONVENTIONS, Convention
from nnunet_ext.evaluation_scripts.metric_grammar import ALIASES
from nnunet_ext.evaluation_scripts.papers import PAPERS
from nnunet_ext.evaluation_scripts.quantities import EMPTY_STATES, LESIONWISE, NAMES, Metric
from nnunet_ext.evaluation_scripts.tolerances import MSD

PAGE = PAGES["docs/evaluation.md"]
VERBS = ("evaluate", "compare", "ensemble", "postprocess", "reproduce")
HEADER = "| convention | structures | number | computed as | unit | both empty | only P | only G |"
AVERAGED: dict[Any, str] = {
    of.all_labels: "all",
    of.organs_of_synapse: "8 organs",
    of.tumour_classes_and_regions: "WT, TC, ET, ED, NET",
    of.background_too: "all and background",
    of.foreground_as_one: "foreground as one",
    of.brats_regions: "WT, TC, ET",
    of.liver_and_lesion: "liver, lesion",
}


def row(convention: Convention, metric: Metric, first: bool) -> str:
    empty = (rule(metric, state) for state in ("both_empty", "gt_empty", "pred_empty"))
    name = f"`{convention.name}`" if first else ""
    structures = AVERAGED[convention.structures] if first else ""
    return f"| {' | '.join((name, structures, metric.name, f'`{metric.quantity}`', unit(metric), *empty))} |"


def unit(metric: Metric) -> str:
    if metric.tolerance is None:
        return metric.unit or "-"
    return "by organ" if isinstance(metric.tolerance, dict) else f"within {metric.tolerance:g} mm"


def rule(metric: Metric, state: str) -> str:
    value = metric.empty.get(state)
    if value is None:
        return "as is"
    return "left out" if math.isnan(value) else f"{value:.8g}"


def test_the_table_of_conventions_is_theirs() -> None:
    assert EMPTY_STATES == ("both_empty", "gt_empty", "pred_empty")
    rows = [
        row(convention, metric, not place)
        for convention in CONVENTIONS.values()
        for place, metric in enumerate(convention.metrics)
    ]
    expected = "\n".join([HEADER, "| --- | --- | --- | --- | --- | --- | --- | --- |", *rows])
    start = PAGE.find(HEADER)
    found = PAGE[start:].partition("\n\n")[0].strip()
    assert found == expected, f"docs/evaluation.md should have:\n{expected}"


@pytest.mark.parametrize("name", [*NAMES, *LESIONWISE])
def test_every_metric_is_defined_once(name: str) -> None:
    assert len(re.findall(rf"^\| `{name}`", PAGE, re.MULTILINE)) == 1


@pytest.mark.parametrize("names", [PAPERS, ALIASES, CONVENTIONS], ids=["tables", "aliases", "conventions"])
def test_every_name_is_there(names: dict[str, object]) -> None:
    assert not [name for name in names if f"`{name}`" not in PAGE]


def test_tolerances_of_the_decathlon() -> None:
    listed = PAGE.partition("MSD's tolerances in mm: ")[2].partition(".")[0]
    assert " ".join(listed.split()) == ", ".join(f"{task} {tolerance:g}" for task, tolerance in MSD.items())


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_is_named(verb: str) -> None:
    missing = {name for name in options(parser(verb)) - LONG if not is_named(name, PAGE)}
    assert not missing, f"docs/evaluation.md does not name {sorted(missing)} of {verb}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_can_be_typed(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    for line in commands(PAGES[page], VERBS):
        words = shlex.split(line, comments=True)
        if {"--list", "--help"} & set(words):
            continue
        try:
            parser(words[1]).parse_args(words[2:])
        except SystemExit:
            pytest.fail(f"{line}\n{capsys.readouterr().err}")


def test_every_verb_has_a_command() -> None:
    assert all(re.search(rf"^nnunet-ext {verb} ", PAGE, re.MULTILINE) for verb in VERBS)
