"""The documentation's pages as text: their headings, the commands they show, and the parsers these are for."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from nnunet_ext import cli

ROOT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
LONG = {"--processes", "--output"}
"""Long forms of -np and -o."""


@cache
def parser(verb: str) -> argparse.ArgumentParser:
    """A verb's, as it is on the command line."""
    verbs = next(action for action in cli._parser(verb)._actions if isinstance(action, argparse._SubParsersAction))
    found: argparse.ArgumentParser = verbs.choices[verb]
    return found


def options(parser: argparse.ArgumentParser) -> set[str]:
    """Of a parser and its sub-commands."""
    found: set[str] = set()
    for action in parser._actions:
        found |= {option for option in action.option_strings if option not in ("-h", "--help")}
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                found |= options(one)
    return found


def is_named(option: str, page: str) -> bool:
    """Whether a page has an option, not only as a part of another one."""
    return re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", page) is not None


def headings(page: str) -> list[str]:
    """Of all levels, without their marks."""
    without_code = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"^#+ (.+)$", without_code, re.MULTILINE)


def lines(page: str) -> list[str]:
    """Of all blocks of bash; a continued line is one."""
    blocks = "\n".join(re.findall(r"^```bash\n(.*?)^```", page, re.MULTILINE | re.DOTALL))
    return re.sub(r"\\\n\s*", "", blocks).splitlines()


def commands(page: str, verbs: Sequence[str]) -> list[str]:
    """`nnunet-ext VERB ...` in blocks of bash."""
    return [line for line in lines(page) if re.match(rf"nnunet-ext (?:{'|'.join(verbs)}) ", line)]
