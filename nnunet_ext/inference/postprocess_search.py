"""Which rules raise the mean Dice of cross-validation predictions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nnunet_ext.inference.postprocess_rules import LARGEST, REPLACE, SMALLEST, Rule
from nnunet_ext.inference.postprocess_tables import CaseTable, Removal, Structures, after, dice

_RISE = 1e-9  # smaller differences are rounding


@dataclass(frozen=True)
class Grid:
    """Thresholds that are tried.

    Attributes:
        step, end: voxels; of the median volume, if the unit is mm3.
        unit: "mm3" or "voxels".
        voxel: mm³, the median of all cases.
    """

    step: int = 10
    end: int = 750
    unit: str = "mm3"
    voxel: float = 1.0

    def thresholds(self) -> list[float]:
        """In the unit, ascending, without 0."""
        size = self.voxel if self.unit == "mm3" else 1.0
        return [float(f"{voxels * size:.12g}") for voxels in range(self.step, self.end + 1, self.step)]


@dataclass(frozen=True)
class Setting:
    """What the search keeps to.

    Attributes:
        structures: labels or regions whose Dice counts, by name.
        values: all labels, background first; the indices of histograms.
        around: name -> label of what is taken out of it.
        replacements: name -> label that it becomes where all of it is small; only these are tried.
        both_empty: Dice where neither reference nor prediction has a structure; NaN: it is left out of the mean.
        grid: of thresholds.
    """

    structures: Structures
    values: tuple[int, ...]
    around: Mapping[str, int]
    replacements: Mapping[str, int]
    both_empty: float
    grid: Grid


@dataclass
class Found:
    """The result.

    Attributes:
        rules: in the order of application.
        steps: what was tried: name, kind, what was chosen, and mean Dice of the structure before and after it.
        before, after: name -> mean Dice without and with all rules.
    """

    rules: list[Rule] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)


def search(setting: Setting, scan: Callable[[Sequence[Rule]], Sequence[CaseTable]]) -> Found:
    """Find rules one structure after the other, each on what the earlier ones leave.

    A rule is taken if the structure's mean Dice rises, the mean over structures too, and no structure's mean falls. Of
    rules that are equally good, the gentlest is: the smallest threshold, and the largest component alone last.

    Args:
        setting: of the search.
        scan: gives the tables of all cases after these rules.
    """
    found = Found()
    tables = scan(found.rules)
    found.before = _means(setting, tables)
    steps = [(name, False) for name in setting.structures] + [(name, True) for name in setting.replacements]
    stale = False
    for place, (name, replacing) in enumerate(steps):
        if stale:
            tables, stale = scan(found.rules), False
        rules = _candidates(setting, name, replacing)
        rule, step = _best(setting, tables, name, rules)
        found.steps.append(step)
        if rule is not None:
            found.rules.append(rule)
            stale = not _apart(setting, rule, [other for other, _ in steps[place + 1 :]])
    found.after = _means(setting, scan(found.rules)) if found.rules else dict(found.before)
    return found


def _candidates(setting: Setting, name: str, replacing: bool) -> list[Rule]:
    labels, unit = setting.structures[name], setting.grid.unit
    if replacing:
        becomes = setting.replacements[name]
        return [Rule(REPLACE, name, labels, becomes, size, unit) for size in setting.grid.thresholds()]
    becomes = setting.around[name]
    small = [Rule(SMALLEST, name, labels, becomes, size, unit) for size in setting.grid.thresholds()]
    return [*small, Rule(LARGEST, name, labels, becomes)]


def _apart(setting: Setting, rule: Rule, later: Sequence[str]) -> bool:
    """Whether a rule leaves everything as it is that later steps look at."""
    touched = {*rule.labels, rule.becomes}
    return not any(touched & set(setting.structures[name]) for name in later)


def _best(
    setting: Setting, tables: Sequence[CaseTable], name: str, rules: Sequence[Rule]
) -> tuple[Rule | None, dict[str, Any]]:
    scores = np.stack([_scores(setting, table, name, rules) for table in tables])
    own = list(setting.structures).index(name)
    chosen = choose(scores, own)
    step = {
        "name": name,
        "kind": "replace" if rules[0].kind == REPLACE else "components",
        "chosen": None if chosen == 0 else str(rules[chosen - 1]),
        "dice_before": mean(scores[:, 0, own]),
        "dice_after": mean(scores[:, chosen, own]),
        "gain_on_left_out_cases": left_out_gain(scores, own),
        "cases_changed": int(np.sum(_differs(scores[:, chosen, own], scores[:, 0, own]))),
    }
    return (rules[chosen - 1] if chosen else None), step


def _scores(setting: Setting, table: CaseTable, name: str, rules: Sequence[Rule]) -> np.ndarray:
    """(1 + rules, structures) Dice of one case: as it is, and after each rule alone."""
    removal = table.removals[name]
    moved = np.stack([np.zeros_like(table.histogram), *(_moved(removal, rule, table.voxel) for rule in rules)])
    changed = after(table.histogram[None], moved, setting.values.index(rules[0].becomes))
    return dice(changed, _places(setting), setting.both_empty)


def _moved(removal: Removal, rule: Rule, voxel: float) -> np.ndarray:
    if rule.kind == LARGEST:
        return removal.but_largest()
    return removal.below(rule.voxels(voxel)) if rule.kind == SMALLEST else removal.whole_if_below(rule.voxels(voxel))


def choose(scores: np.ndarray, own: int) -> int:
    """The candidate that is taken; 0: none.

    Args:
        scores: Dice (cases, 1 + candidates, structures), the first without any rule.
        own: the structure that the rule is for.
    """
    means = _mean_over_cases(scores)
    overall = np.array([mean(row) for row in means])
    best = 0
    for candidate in range(1, len(means)):
        falls = means[candidate] < means[0] - _RISE
        rises = means[candidate, own] > means[0, own] + _RISE and overall[candidate] > overall[0] + _RISE
        if rises and not falls.any() and means[candidate, own] > means[best, own] + _RISE:
            best = candidate
    return best


def left_out_gain(scores: np.ndarray, own: int) -> float:
    """Mean gain of each case by the rule that all other cases choose: what to expect of new cases."""
    gains = []
    for case in range(len(scores)):
        others = np.delete(scores, case, axis=0)
        chosen = choose(others, own) if len(others) else 0
        gains.append(scores[case, chosen, own] - scores[case, 0, own])
    return mean(np.array(gains))


def mean(values: np.ndarray) -> float:
    """Mean of what is defined; NaN if nothing is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else math.nan


def _mean_over_cases(scores: np.ndarray) -> np.ndarray:
    counts = (~np.isnan(scores)).sum(0)
    return np.where(counts > 0, np.nansum(scores, 0) / np.maximum(counts, 1), np.nan)


def _means(setting: Setting, tables: Sequence[CaseTable]) -> dict[str, float]:
    scores = np.stack([dice(table.histogram, _places(setting), setting.both_empty) for table in tables])
    return {name: mean(scores[:, place]) for place, name in enumerate(setting.structures)}


def _places(setting: Setting) -> list[list[int]]:
    return [[setting.values.index(value) for value in labels] for labels in setting.structures.values()]


def _differs(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return ~np.isclose(first, second, rtol=0, atol=_RISE, equal_nan=True)
