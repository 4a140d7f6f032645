"""Every registered network, with every option of its trainers, through every check of `network_checks`."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from contract.models import Planned
from contract.network_checks import CHECKS, SHAPE_CHECKS, NetworkCase, refusal
from contract.registered import NETWORKS, TRAINERS, configurations, planner_of, trainers_of

KINDS = ("plain", "anisotropic", "noncubic")
Key = tuple[str, str, str, str]
Check = Callable[[NetworkCase], None]
CASES: list[Key] = [
    (network, trainer, kind, configuration)
    for network, entry in NETWORKS.items()
    for trainer in trainers_of(entry)
    for kind in KINDS
    for configuration in configurations(entry)
]


@pytest.fixture(scope="module")
def case_of(planned: Planned) -> Callable[[Key], NetworkCase]:
    cases: dict[Key, NetworkCase] = {}

    def find(key: Key) -> NetworkCase:
        if key not in cases:
            network, trainer, kind, configuration = key
            entry = NETWORKS[network]
            cases[key] = planned.network(entry, planner_of(entry), trainer, kind, configuration)
        return cases[key]

    return find


def applicable(key: Key) -> tuple[Check, ...]:
    """All checks; for options, on other data than the plain, those that depend on the patch."""
    _, trainer, kind, _ = key
    return CHECKS if kind == "plain" or trainer in TRAINERS else SHAPE_CHECKS


@pytest.mark.parametrize(
    ("key", "check"),
    [pytest.param(key, check, id="-".join((*key, check.__name__))) for key in CASES for check in applicable(key)],
)
def test_network(key: Key, check: Check, case_of: Callable[[Key], NetworkCase], planned: Planned) -> None:
    case = case_of(key)
    said = refusal(case)
    if said is None:
        check(case)
        return
    _, trainer, kind, configuration = key
    assert trainer not in TRAINERS, f"the planner's own patch is refused: {said}"
    assert kind != "plain", f"{trainer} trains nowhere: {said}"
    assert str(case.patch_size) in said
    with pytest.raises(ValueError, match=re.escape(said)):
        planned.trainer(trainer, kind, configuration).initialize()
