"""The grammar of names: what may follow a trainer's or a planner's base name, and in which order.

Trainers: ``Base`` then, each after one underscore and in this order: one of each group of method options, a recipe,
``KD``, ``AdamW``, ``FineTune``, ``NoMirroring``, ``Seed<n>``, ``<n>its`` (iterations an epoch), ``<n>epochs``; for
example ``SSHUNetTrainer_GSM_VFN_AdamW_250epochs``. ``FineTune`` stands after what sets the learning rate from scratch
(recipe, ``AdamW``), because it takes a tenth of that. Planners: ``Base[M|L|XL][_<Recipe>][_W<n>]``; for example
``SSHUNetPlannerL_W16``. Numbers are positive, without leading zeros (``Seed0`` is allowed). Standard library only.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from nnunet_ext.registry import PLANNERS, STOCK_PLANNER, TRAINERS, Kind, PlannerEntry, TrainerEntry

POSITIVE = "[1-9][0-9]{0,8}"
"""A positive integer without leading zeros, of at most nine digits."""


class UnknownNameError(AttributeError):
    """A name that begins like one of ours but does not follow the grammar; the message says how to spell it.

    It is an ``AttributeError``, so that ``hasattr`` on a module is False and other people's classes are still found.
    """


@dataclass(frozen=True)
class TrainerName:
    """A trainer's name, taken apart: the registry entry and the suffixes in canonical order."""

    entry: TrainerEntry
    suffixes: tuple[str, ...]

    def __str__(self) -> str:
        return "_".join((self.entry.name, *self.suffixes))


@dataclass(frozen=True)
class PlannerName:
    """A planner's name, taken apart; what the name does not state is None."""

    entry: PlannerEntry
    preset: str | None
    recipe: str | None
    width: int | None

    def __str__(self) -> str:
        parts = [self.entry.name + (self.preset or "")]
        parts += [self.recipe] if self.recipe else []
        parts += [f"W{self.width}"] if self.width else []
        return "_".join(parts)


@dataclass(frozen=True)
class _Slot:
    """One place in the order of suffixes: the texts for people (``<n>`` for a number) and the pattern that fits."""

    choices: tuple[str, ...]
    zero: bool = False

    def fits(self, suffix: str) -> bool:
        number = f"(0|{POSITIVE})" if self.zero else POSITIVE
        return any(re.fullmatch(re.escape(c).replace("<n>", number), suffix) for c in self.choices)


def trainer_slots(entry: TrainerEntry) -> tuple[_Slot, ...]:
    """All places of a trainer's suffixes, in canonical order."""
    fixed = (("AdamW",), ("FineTune",), ("NoMirroring",))
    groups = [*entry.options, entry.recipes, ("KD",) if entry.kd else (), *fixed]
    slots = [_Slot(tuple(group)) for group in groups if group]
    return (*slots, _Slot(("Seed<n>",), zero=True), _Slot(("<n>its",)), _Slot(("<n>epochs",)))


def trainer_suffixes(entry: TrainerEntry) -> tuple[str, ...]:
    """The suffixes that an entry knows, for people: ``("TSM|GSM|GSF", "VFN", ..., "<n>epochs")``."""
    return tuple("|".join(slot.choices) for slot in trainer_slots(entry))


def planner_suffixes(entry: PlannerEntry) -> tuple[str, ...]:
    """The endings that an entry knows, for people: ``("M|L|XL", "_Published", "_W<n>")``."""
    endings = (
        "|".join(entry.presets),
        "|".join(f"_{recipe}" for recipe in entry.recipes),
        "_W<n>" if entry.width else "",
    )
    return tuple(ending for ending in endings if ending)


def parse_trainer(name: str) -> TrainerName | None:
    """Take a trainer's name apart.

    Returns:
        The entry and its suffixes; None if the name belongs to none of the registered trainers.

    Raises:
        UnknownNameError: if it is a registered name plus ``_`` and something that is not in the grammar.
    """
    base = _longest_base(TRAINERS, name, "_")
    if base is None:
        return None
    entry = TRAINERS[base]
    suffixes = _joined(name.split("_")[base.count("_") + 1 :], entry.recipes)
    slots = trainer_slots(entry)
    _check_suffixes(f"no trainer named {name}", base, suffixes, slots, _grammar(base, trainer_suffixes(entry), "_"))
    return TrainerName(entry, suffixes)


def parse_planner(name: str) -> PlannerName | None:
    """Take a planner's name apart.

    Returns:
        The entry, preset, recipe and width; None if the name belongs to none of the registered planners.

    Raises:
        UnknownNameError: if it begins with a registered planner's name but what follows is not in the grammar.
    """
    base = _longest_base(PLANNERS, name, "")
    if base is None:
        return None
    entry = PLANNERS[base]
    preset, *suffixes = name[len(base) :].split("_")
    grammar = _grammar(base, planner_suffixes(entry), "")
    if preset and preset not in entry.presets:
        near = _nearest(preset, entry.presets)
        advice = f" Did you mean {base}{near}{name[len(base) + len(preset) :]}?" if near else ""
        raise UnknownNameError(f"no planner named {name}: {base} has no preset {preset!r}.{advice} {grammar}")
    slots = [_Slot(tuple(group)) for group in (entry.recipes, ("W<n>",) if entry.width else ()) if group]
    _check_suffixes(f"no planner named {name}", base + preset, tuple(suffixes), tuple(slots), grammar)
    width = next((int(s[1:]) for s in suffixes if re.fullmatch(f"W{POSITIVE}", s)), None)
    recipe = next((s for s in suffixes if s in entry.recipes), None)
    return PlannerName(entry, preset or None, recipe, width)


def plans_name(planner_name: str) -> str:
    """Name of the plans that a planner writes: ``SSHUNetPlanner_W8`` gives ``SSHUNetPlans_W8``."""
    if planner_name == STOCK_PLANNER:
        return "nnUNetPlans"
    return name if (name := planner_name.replace("Planner", "Plans", 1)) != planner_name else f"{planner_name}Plans"


def suggestion(kind: Kind, name: str) -> str | None:
    """A sentence for a name that looks like a slip of one of ours (``SSHUnetTrainer_GSM``), else None."""
    bases = TRAINERS if kind == "trainer" else PLANNERS
    head, underscore, rest = name.partition("_")
    if head.startswith("nnUNet"):  # nnU-Net's own names, and what others derive from them
        return None
    for preset in ("XL", "L", "M", ""):
        near = _nearest(head.removesuffix(preset), bases, cutoff=0.85) if head.endswith(preset) else None
        if near is not None and kind != "network":
            preset = preset if kind == "planner" else ""
            return f"no {kind} named {name}: did you mean {near}{preset}{underscore}{rest}?"
    return None


def _joined(parts: list[str], recipes: Iterable[str]) -> tuple[str, ...]:
    """Suffixes of the parts between underscores: recipes such as ``Published_C`` have one inside, in any letters."""
    known = {tuple(recipe.lower().split("_")) for recipe in recipes if "_" in recipe}
    suffixes: list[str] = []
    while parts:
        length = next((len(words) for words in known if tuple(p.lower() for p in parts[: len(words)]) == words), 1)
        suffixes.append("_".join(parts[:length]))
        parts = parts[length:]
    return tuple(suffixes)


def _longest_base(bases: Iterable[str], name: str, separator: str) -> str | None:
    fitting = [base for base in bases if name == base or name.startswith(base + separator)]
    return max(fitting, key=len, default=None)


def _check_suffixes(problem: str, stem: str, suffixes: tuple[str, ...], slots: tuple[_Slot, ...], grammar: str) -> None:
    """Raise UnknownNameError unless each suffix fits one slot, and the slots stand in ascending order, each once."""
    places = [next((i for i, slot in enumerate(slots) if slot.fits(s)), None) for s in suffixes]
    unknown = [s for s, place in zip(suffixes, places, strict=True) if place is None]
    if unknown:
        strange = ", ".join(repr(s) for s in unknown if s)
        what = f"{stem} has no suffix {strange}." if strange else "there is an underscore too many."
        meant = [s if s not in unknown else _correct(s, slots) for s in suffixes]
        fixed = [s for s in meant if s]
        order = _order(fixed, slots)
        found = len(fixed) == len([s for s in suffixes if s]) and len(set(order)) == len(order)
        advice = f" Did you mean {_spell(stem, fixed, slots)}?" if found else ""
        raise UnknownNameError(f"{problem}: {what}{advice} {grammar}")
    order = [place for place in places if place is not None]
    for i in set(order):
        if order.count(i) > 1:
            given = " and ".join(s for s, place in zip(suffixes, places, strict=True) if place == i)
            raise UnknownNameError(f"{problem}: only one of {given} can be used. {grammar}")
    if order != sorted(order):
        right = _spell(stem, list(suffixes), slots)
        raise UnknownNameError(f"{problem}: its suffixes have one order; it is spelled {right}. {grammar}")


def _order(suffixes: Iterable[str], slots: tuple[_Slot, ...]) -> list[int]:
    return [next(i for i, slot in enumerate(slots) if slot.fits(s)) for s in suffixes]


def _spell(stem: str, suffixes: list[str], slots: tuple[_Slot, ...]) -> str:
    places = _order(suffixes, slots)
    return "_".join([stem, *(s for _, s in sorted(zip(places, suffixes, strict=True)))])


def _correct(suffix: str, slots: tuple[_Slot, ...]) -> str | None:
    """The known suffix that was probably meant (capital letters, a missing letter, leading zeros), or None."""
    number = re.search("[0-9]+", suffix)
    template = suffix.replace(number.group(), "<n>", 1) if number else suffix
    near = _nearest(template, [choice for slot in slots for choice in slot.choices])
    if near is None or (number is None) != ("<n>" not in near):
        return None
    right = near.replace("<n>", number.group().lstrip("0") or "0") if number else near
    return right if any(slot.fits(right) for slot in slots) else None


def _nearest(text: str, choices: Iterable[str], cutoff: float = 0.7) -> str | None:
    lower = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(text.lower(), list(lower), n=1, cutoff=cutoff)
    return lower[near[0]] if near else None


def _grammar(base: str, known: tuple[str, ...], separator: str) -> str:
    endings = "".join(f"[{separator}{choices}]" for choices in known)
    return f"Allowed, in this order: {base}{endings} (<n>: a positive whole number without leading zeros)."
