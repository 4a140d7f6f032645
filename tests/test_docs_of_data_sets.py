"""The pages name every data set, challenge, split and option that there is, and show commands that can be typed."""

from __future__ import annotations

import argparse
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from nnunet_ext.dataset_conversion import CONVERTERS, command, converter_class
from nnunet_ext.dataset_conversion.cases import SPLIT_FILES
from nnunet_ext.dataset_conversion.partition import names_of
from nnunet_ext.submission import command as submission
from nnunet_ext.submission.servers import CHALLENGES, names

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8")
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}


@cache
def parsers() -> dict[str, argparse.ArgumentParser]:
    """The two commands as they are on the command line."""
    made = {"convert": argparse.ArgumentParser(), "submit": argparse.ArgumentParser()}
    command.add_arguments(made["convert"])
    submission.add_arguments(made["submit"])
    return made


def headings(page: str) -> list[str]:
    without_code = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"^#+ (.+)$", without_code, re.MULTILINE)


def options(parser: argparse.ArgumentParser) -> set[str]:
    """Of a parser and its sub-commands."""
    found: set[str] = set()
    for action in parser._actions:
        found |= {option for option in action.option_strings if option not in ("-h", "--help")}
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                found |= options(one)
    return found


def commands(page: str) -> list[str]:
    """`nnunet-ext convert ...` and `nnunet-ext submit ...` in blocks of bash and within sentences."""
    blocks = "\n".join(re.findall(r"^```bash\n(.*?)^```", page, re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
    lines = [line for line in blocks.splitlines() if re.match(r"nnunet-ext (convert|submit) ", line)]
    within = re.findall(r"`(nnunet-ext (?:convert|submit) [^\s`]+ [^`]+)`", page)
    return lines + [text for text in within if "..." not in text]


@pytest.mark.parametrize("key", CONVERTERS)
def test_every_data_set_has_its_section(key: str) -> None:
    assert any(f"`{key}`" in heading for heading in headings(PAGE)), f"docs/datasets.md has no section on {key}"
    assert f"`{key}`" in PAGES["README.md"]
    assert f"nnunet-ext convert {key} " in PAGE


def test_every_data_set_says_where_it_is_and_how_it_goes_back() -> None:
    sections = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
    described = [section for section in sections if any(f"`{key}`" in section.partition("\n")[0] for key in CONVERTERS)]
    for section in described:
        title, section = section.partition("\n")[0], " ".join(section.split())
        assert re.search(r"\*\*Splits?\*\*|\| split \|", section), f"{title}: which split?"
        assert "**Back**" in section, f"{title}: the way back?"
        assert re.search(r"licence|CC BY|terms of use|conditions of use|Research only", section), f"{title}: licence?"


@pytest.mark.parametrize("challenge", CHALLENGES)
def test_every_challenge_has_its_row(challenge: str) -> None:
    table = PAGE.partition("| challenge |")[2].partition("\n\n")[0]
    rows = [line for line in table.splitlines() if line.startswith(f"| `{challenge}`")]
    assert len(rows) == 1, f"the table of challenges has {len(rows)} rows for {challenge}"
    assert rows[0].count(" | ") == 4
    ending = ".nii.gz" if CHALLENGES[challenge].ending == ".nii.gz" else ".nii`"
    assert ending in rows[0]
    assert challenge in PAGES["README.md"]
    aliases = {alias for alias, key in names().items() if key == challenge}
    assert all(f"`{alias}`" in rows[0] for alias in aliases)


def test_every_split_is_named() -> None:
    published = {path.stem for path in SPLIT_FILES.glob("*.json")}
    offered = {name for key in CONVERTERS for name in names_of(converter_class(key).from_arguments({}), ())}
    assert not {name for name in published | offered if f"`{name}`" not in PAGE and f"--split {name}`" not in PAGE}


@pytest.mark.parametrize("verb", ["convert", "submit"])
def test_every_option_is_named(verb: str) -> None:
    missing = {option for option in options(parsers()[verb]) if not re.search(rf"(?<![\w-]){option}(?![\w-])", PAGE)}
    spelt_out = {"--processes", "--output"}  # long forms of -np and -o
    assert not missing - spelt_out, f"docs/datasets.md does not name {sorted(missing - spelt_out)}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_can_be_typed(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    for line in commands(PAGES[page]):
        words = shlex.split(line, comments=True)
        if "--help" in words:
            continue
        try:
            parsers()[words[1]].parse_args(words[2:])
        except SystemExit:
            pytest.fail(f"{line}\n{capsys.readouterr().err}")


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith(("README", "docs"))])
def test_links_lead_somewhere(page: str) -> None:
    """Within the pages, to pages and to their headings."""
    for link in re.findall(r"\]\(([^)\s]*)\)", PAGES[page]):
        path, _, anchor = link.partition("#")
        if path.startswith("http"):
            continue
        target = (ROOT / page).parent.joinpath(path).resolve() if path else ROOT / page
        assert target.exists(), f"{page}: {link}"
        name = target.relative_to(ROOT).as_posix()
        if anchor and name in PAGES:
            known = {_anchor(heading) for heading in headings(PAGES[name])}
            known |= set(re.findall(r'<a id="([^"]+)">', PAGES[name]))
            assert anchor in known, f"{page}: {link}"


def _anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_pages_have_commands() -> None:
    """So that the test of what can be typed tests something."""
    assert sum(len(list(commands(text))) for text in PAGES.values()) > 20
