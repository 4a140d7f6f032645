"""What is wrong with a submission: collected, sorted and told together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from nnunet_ext.errors import UserError

MOST_LINES = 40


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        kind: "missing" (the only one that may be excused), "extra", "unreadable", "shape", "geometry", "values",
            "name", "layout", "compression", "header" or "labels".
        where: a file or a case.
        text: what was found, what is allowed, what to do.
    """

    kind: str
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"

    def as_dict(self) -> dict[str, str]:
        """For a report."""
        return asdict(self)


class RefusedError(UserError):
    """Predictions of which no submission can be made.

    Attributes:
        problems: all that is wrong.
    """

    def __init__(self, what: str, problems: Sequence[Problem], hint: str = "") -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(filter(None, (what, listing(self.problems), hint))))


def listing(problems: Iterable[Problem]) -> str:
    """One line a problem; long lists are cut, and say so."""
    lines = [f"  {problem.kind:<11} {problem}" for problem in problems]
    more = [f"  ... and {len(lines) - MOST_LINES} more (--json FILE has all)"] if len(lines) > MOST_LINES else []
    return "\n".join(lines[:MOST_LINES] + more)


def without_excused(problems: Iterable[Problem], allow_incomplete: bool) -> list[Problem]:
    """The problems, without missing cases if these are allowed."""
    return [problem for problem in problems if not (allow_incomplete and problem.kind == "missing")]
