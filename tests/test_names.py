from __future__ import annotations

import itertools
import random

import pytest

from nnunet_ext import names, registry
from nnunet_ext.names import UnknownNameError, parse_planner, parse_trainer

FULL = registry.TrainerEntry(
    "FullTrainer",
    "somewhere:FullTrainer",
    network="Full",
    planner="FullPlanner",
    options=(("A", "B"), ("V",)),
    recipes=("Published", "Short"),
    kd=True,
)
NUMBERS = ("1", "2", "10", "250", "1000", "999999999")


@pytest.fixture(autouse=True)
def full_entry(own_registry: None) -> None:
    registry.register(FULL)


def all_combinations() -> list[tuple[str, ...]]:
    numbers = itertools.cycle(NUMBERS)
    slots: list[tuple[str, ...]] = [("", "A", "B"), ("", "V"), ("", "Published", "Short"), ("", "KD"), ("", "AdamW")]
    slots += [("", "FineTune"), ("", "NoMirroring"), ("", "Seed0", "Seed12"), ("", "Nits"), ("", "Nepochs")]
    made = itertools.product(*slots)
    return [tuple(s.replace("N", next(numbers)) if s[1:] in ("its", "epochs") else s for s in c if s) for c in made]


def test_every_valid_trainer_name_round_trips() -> None:
    combinations = all_combinations()
    assert len(combinations) == 3 * 2 * 3 * 2 * 2 * 2 * 2 * 3 * 2 * 2
    for suffixes in combinations:
        name = "_".join(("FullTrainer", *suffixes))
        parsed = parse_trainer(name)
        assert parsed is not None
        assert (parsed.entry, parsed.suffixes, str(parsed)) == (FULL, suffixes, name)


def test_any_other_order_is_refused_with_the_right_spelling() -> None:
    chance = random.Random(1)
    for suffixes in chance.sample([c for c in all_combinations() if len(c) > 1], 200):
        shuffled = list(suffixes)
        while tuple(shuffled) == suffixes:
            chance.shuffle(shuffled)
        with pytest.raises(UnknownNameError, match=f"it is spelled {'_'.join(('FullTrainer', *suffixes))}\\."):
            parse_trainer("_".join(("FullTrainer", *shuffled)))


@pytest.mark.parametrize(
    ("suffixes", "expected"),
    [
        ("Mine", "has no suffix 'Mine'. Allowed, in this order: FullTrainer[_A|B][_V][_Published|Short][_KD][_AdamW]"),
        ("A_B", "only one of A and B can be used"),
        ("A_A", "only one of A and A can be used"),
        ("Published_Short", "only one of Published and Short"),
        ("2epochs_3epochs", "only one of 2epochs and 3epochs"),
        ("adamw", "Did you mean FullTrainer_AdamW?"),
        ("250epoch", "Did you mean FullTrainer_250epochs?"),
        ("250Epochs_adamW", "Did you mean FullTrainer_AdamW_250epochs?"),
        ("007its", "Did you mean FullTrainer_7its?"),
        ("Seed01", "Did you mean FullTrainer_Seed1?"),
        ("finetune_AdamW", "Did you mean FullTrainer_AdamW_FineTune?"),
        ("FineTune_AdamW", "it is spelled FullTrainer_AdamW_FineTune."),
        ("NoMirrorin_A", "Did you mean FullTrainer_A_NoMirroring?"),
        ("0epochs", "has no suffix '0epochs'"),
        ("-1epochs", "has no suffix '-1epochs'"),
        ("²its", "has no suffix '²its'"),
        ("9999999999its", "has no suffix '9999999999its'"),
        ("", "an underscore too many. Did you mean FullTrainer?"),
        ("_A", "an underscore too many. Did you mean FullTrainer_A?"),
        ("A_", "an underscore too many. Did you mean FullTrainer_A?"),
        ("A\n", "has no suffix 'A\\n'"),
    ],
)
def test_wrong_trainer_suffixes_get_a_sentence(suffixes: str, expected: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        parse_trainer(f"FullTrainer_{suffixes}")
    assert expected in str(caught.value)
    assert isinstance(caught.value, AttributeError)


@pytest.mark.parametrize(
    ("suffixes", "right"),
    [
        ("Published_C_250epochs", None),
        ("Published_ONet_AdamW_Seed0", None),
        ("250epochs_Published_C", "it is spelled OSSNetTrainer_Published_C_250epochs."),
        ("published_c_7its", "Did you mean OSSNetTrainer_Published_C_7its?"),
        ("PublishedONet", "Did you mean OSSNetTrainer_Published_ONet?"),
        ("Published", "has no suffix 'Published'. Did you mean OSSNetTrainer_Published_"),
        ("Published_A_Published_B", "only one of Published_A and Published_B"),
        ("KD", "has no suffix 'KD'. Allowed, in this order: OSSNetTrainer[_Published_ONet|Published_A|"),
    ],
)
def test_recipes_with_an_underscore_inside(suffixes: str, right: str | None) -> None:
    name = f"OSSNetTrainer_{suffixes}"
    if right is None:
        assert str(parse_trainer(name)) == name
        return
    with pytest.raises(UnknownNameError) as caught:
        parse_trainer(name)
    assert right in str(caught.value)


def test_kd_only_where_the_entry_offers_it() -> None:
    assert parse_trainer("FullTrainer_KD") is not None
    with pytest.raises(UnknownNameError, match="no suffix 'KD'"):
        parse_trainer("KDUNetTrainer_KD")


@pytest.mark.parametrize("name", ["nnUNetTrainer", "FullTrainers", "SSHUNetTrainerGSM", "", "_", "FullPlanner"])
def test_other_trainers_are_none_of_ours(name: str) -> None:
    assert parse_trainer(name) is None


def test_the_longest_base_counts(own_registry: None) -> None:
    other = registry.TrainerEntry("FullTrainer_Mine", "somewhere:Other", network="Full", planner="FullPlanner")
    registry.register(other)
    parsed = parse_trainer("FullTrainer_Mine_2epochs")
    assert parsed is not None
    assert (parsed.entry, parsed.suffixes) == (other, ("2epochs",))


def test_every_valid_planner_name_round_trips() -> None:
    for preset, recipe, width in itertools.product(
        ("", "M", "L", "XL"), ("", "_Published"), ("", "_W1", "_W8", "_W64")
    ):
        name = f"SSHUNetPlanner{preset}{recipe}{width}"
        parsed = parse_planner(name)
        assert parsed is not None
        assert parsed.preset == (preset or None)
        assert parsed.recipe == (recipe[1:] or None)
        assert parsed.width == (int(width[2:]) if width else None)
        assert str(parsed) == name
        assert names.plans_name(name) == f"SSHUNetPlans{preset}{recipe}{width}"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("SSHUNetPlannerS", "has no preset 'S'. Allowed, in this order: SSHUNetPlanner[M|L|XL][_Published][_W<n>]"),
        ("SSHUNetPlannerxl_W8", "Did you mean SSHUNetPlannerXL_W8?"),
        ("SSHUNetPlanner_W8_Published", "it is spelled SSHUNetPlanner_Published_W8."),
        ("SSHUNetPlannerL_w8", "Did you mean SSHUNetPlannerL_W8?"),
        ("SSHUNetPlanner_W0", "no suffix 'W0'"),
        ("SSHUNetPlanner_W08", "Did you mean SSHUNetPlanner_W8?"),
        ("SSHUNetPlanner__W8", "an underscore too many. Did you mean SSHUNetPlanner_W8?"),
        ("SSHUNetPlanner_W8_W16", "only one of W8 and W16"),
    ],
)
def test_wrong_planner_names_get_a_sentence(name: str, expected: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        parse_planner(name)
    assert expected in str(caught.value)


@pytest.mark.parametrize("name", ["ExperimentPlanner", "nnUNetPlannerResEncM", "SSHUNetPlans", ""])
def test_other_planners_are_none_of_ours(name: str) -> None:
    assert parse_planner(name) is None


def test_entries_without_presets_or_width(own_registry: None) -> None:
    registry.register(registry.PlannerEntry("BarePlanner", "somewhere:Bare", network="Full", presets=(), width=False))
    assert parse_planner("BarePlanner") is not None
    for name in ("BarePlannerL", "BarePlanner_W8", "BarePlanner_Published"):
        with pytest.raises(UnknownNameError, match=r"Allowed, in this order: BarePlanner \("):
            parse_planner(name)


def test_plans_name_without_planner_in_it() -> None:
    assert names.plans_name("Mine") == "MinePlans"


@pytest.mark.parametrize(
    ("kind", "name", "right"),
    [
        ("trainer", "SSHUnetTrainer_GSM", "SSHUNetTrainer_GSM"),
        ("trainer", "OSSnetTrainer_Published_C", "OSSNetTrainer_Published_C"),
        ("trainer", "SSH_UNetTrainer", None),
        ("trainer", "nnUNetTrainer_mine", None),
        ("planner", "SSHUnetPlannerXL_W8", "SSHUNetPlannerXL_W8"),
        ("planner", "SSHUNETPlanner", "SSHUNetPlanner"),
        ("planner", "ResEncUNetPlanner", None),
    ],
)
def test_slips_in_the_base_name(kind: registry.Kind, name: str, right: str | None) -> None:
    sentence = names.suggestion(kind, name)
    assert sentence == (f"no {kind} named {name}: did you mean {right}?" if right else None)
