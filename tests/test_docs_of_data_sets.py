"""The pages name every data set, challenge, split and option that there is, and show commands that can be typed."""

from __future__ import annotations

import re
import shlex

import pytest
from pages import LONG, PAGES, ROOT, commands, headings, is_named, options, parser

from nnunet_ext.dataset_conversion import CONVERTERS, converter_class
from nnunet_ext.dataset_conversion.cases import SPLIT_FILES
from nnunet_ext.dataset_conversion.partition import names_of
from nnunet_ext.submission.servers import CHALLENGES, names

PAGE = PAGES["docs/datasets.md"]
VERBS = ("convert", "submit")


def shown(page: str) -> list[str]:
    """`nnunet-ext convert ...` and `nnunet-ext submit ...` in blocks of bash and within sentences."""
    within = re.findall(rf"`(nnunet-ext (?:{'|'.join(VERBS)}) [^\s`]+ [^`]+)`", page)
    return commands(page, VERBS) + [text for text in within if "..." not in text]


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


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_is_named(verb: str) -> None:
    missing = {option for option in options(parser(verb)) - LONG if not is_named(option, PAGE)}
    assert not missing, f"docs/datasets.md does not name {sorted(missing)}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_can_be_typed(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    for line in shown(PAGES[page]):
        words = shlex.split(line, comments=True)
        if "--help" in words:
            continue
        try:
            parser(words[1]).parse_args(words[2:])
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
    assert sum(len(shown(text)) for text in PAGES.values()) > 20
