"""What conventions make of a data set: structures, tolerances, units, metrics given by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from nnunet_ext.dataset_conversion import btcv, flare22
from nnunet_ext.errors import UserError
from nnunet_ext.evaluation_scripts import tolerances
from nnunet_ext.evaluation_scripts.adapting import adapted
from nnunet_ext.evaluation_scripts.conventions import CONVENTIONS, convention_named
from nnunet_ext.evaluation_scripts.metric_grammar import parse
from nnunet_ext.evaluation_scripts.quantities import LESIONWISE, NAMES

BTCV = {name: value for value, name in enumerate(btcv.ORGANS)}
FLARE = {name: value for value, name in enumerate(flare22.ORGANS)}
TUMOUR = {"background": 0, "edema": 1, "non-enhancing": 2, "enhancing": 3}
OF: dict[str, dict[str, Any]] = {
    "unetrpp-synapse": BTCV,
    "flare22": FLARE,
    "lits": {"background": 0, "liver": [1, 2], "tumor": 2},
    "unetrpp-brats": TUMOUR,
    "brats2020": TUMOUR,
    "brats2023": TUMOUR,
}


def structures(convention: str, labels: Mapping[str, Any]) -> Mapping[str, tuple[int, ...]]:
    return adapted(CONVENTIONS[convention], {"labels": labels}).structures


@pytest.mark.parametrize("name", CONVENTIONS)
def test_every_convention_is_complete(name: str) -> None:
    used = adapted(CONVENTIONS[name], {"labels": OF.get(name, {"background": 0, "a": 1, "b": 2})})
    assert used.structures
    assert used.convention.definition.endswith(".")
    assert used.convention.averaging in ("structures", "all structures", "cases")
    assert set(used.convention.missing) <= {metric.name for metric in used.convention.metrics}
    for metric in used.convention.metrics:
        assert metric.quantity in (*NAMES, *LESIONWISE)
        if metric.quantity.startswith("nsd"):
            assert all(metric.tolerance_of(structure) > 0 for structure in used.structures)


def test_names_that_are_none() -> None:
    with pytest.raises(UserError, match="no convention 'soundly'; there are: sound, nnunet"):
        convention_named("soundly")
    with pytest.raises(UserError, match="no label but the background"):
        structures("sound", {"background": 0, "ignore": 1})


def test_labels_and_regions() -> None:
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    assert structures("sound", labels) == {"whole": (1, 2), "core": (2,)}
    assert structures("sshunet", labels)["background"] == (0,)
    assert structures("ossnet", labels) == {"foreground": (1, 2)}


def test_synapse_by_names_and_by_numbers() -> None:
    expected = {"spleen": (1,), "right kidney": (2,), "left kidney": (3,), "gallbladder": (4,), "liver": (6,)}
    expected |= {"stomach": (7,), "aorta": (8,), "pancreas": (11,)}
    assert structures("unetrpp-synapse", BTCV) == expected
    assert structures("unetrpp-synapse", {str(value): value for value in range(14)}) == expected
    assert structures("unetrpp-synapse", FLARE)["liver"] == (1,)  # 13 organs, but other numbers
    eight = {"background": 0, **{name: value for value, name in enumerate("abcdefgh", 1)}}
    assert list(structures("unetrpp-synapse", eight)) == list("abcdefgh")
    with pytest.raises(UserError, match="eight organs of Synapse"):
        structures("unetrpp-synapse", {"background": 0, "liver": 1})


@pytest.mark.parametrize(
    ("labels", "core", "enhancing"),
    [
        ({"edema": 1, "necrosis and non-enhancing tumor": 2, "enhancing tumor": 3}, (2, 3), (3,)),
        ({"NCR": 1, "ED": 2, "ET": 3}, (1, 3), (3,)),  # BraTS 2023's own order
        ({"whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": 3}, (2, 3), (3,)),
        ({"a": [1, 2, 3], "b": [1, 3], "c": [3]}, (1, 3), (3,)),
        ({"1": 1, "2": 2, "4": 4}, (1, 4), (4,)),
    ],
)
def test_regions_of_brats(labels: dict[str, Any], core: tuple[int, ...], enhancing: tuple[int, ...]) -> None:
    found = structures("brats2020", {"background": 0, **labels})
    whole = tuple(
        sorted({value for values in labels.values() for value in (values if values.__class__ is list else [values])})
    )
    assert found == {"WT": whole, "TC": core, "ET": enhancing}
    five = structures("unetrpp-brats", {"background": 0, **labels})
    assert five["NET"] == tuple(set(core) - set(enhancing))
    assert five["ED"] == tuple(set(whole) - set(core))


def test_numbers_alone_do_not_tell_the_core() -> None:
    with pytest.raises(UserError, match="three labels named oedema"):
        structures("brats2023", {"background": 0, "one": 1, "two": 2, "three": 3})


def test_liver_holds_its_lesions() -> None:
    expected = {"liver": (1, 2), "lesion": (2,)}
    assert structures("lits", {"background": 0, "liver": 1, "cancer": 2}) == expected
    assert structures("lits", {"background": 0, "liver": [1, 2], "tumor": 2}) == expected
    with pytest.raises(UserError, match="LiTS has label 1"):
        structures("lits", {"background": 0, "liver": 1})


def test_tolerances_of_flare22() -> None:
    metric = adapted(CONVENTIONS["flare22"], {"labels": FLARE}).convention.metrics[1]
    assert metric.tolerance_of("duodenum") == 7
    numbered = adapted(CONVENTIONS["flare22"], {"labels": {f"organ {value}": value for value in range(14)}})
    assert numbered.convention.metrics[1].tolerance_of("organ 12") == 7
    shuffled = {name: (value % 13) + 1 if value else 0 for name, value in FLARE.items()}
    used = adapted(CONVENTIONS["flare22"], {"labels": shuffled})
    assert used.numbers == {name: value for name, value in FLARE.items() if value}
    with pytest.raises(UserError, match="FLARE22 has 13 organs"):
        adapted(CONVENTIONS["flare22"], {"labels": {"background": 0, "liver": 1, "hand": 2}})


@pytest.mark.parametrize(
    ("name", "names", "expected"),
    [
        ("Hippocampus", (), 1.0),
        ("", ("Dataset003_Liver",), 7.0),
        ("mine", ("Task08_HepaticVessel",), 3.0),
        ("mine", ("Dataset003_Mine",), 1.0),
    ],
)
def test_tolerances_of_msd(name: str, names: tuple[str, ...], expected: float) -> None:
    content = {"name": name, "labels": {"background": 0, "a": 1}}
    used = adapted(CONVENTIONS["msd"], content, names=names)
    assert used.convention.metrics[1].tolerance == expected
    assert f"within {expected:g} mm" in used.notices[0]
    by_hand = adapted(CONVENTIONS["msd"], content, names=names, tolerance=2.5)
    assert by_hand.convention.metrics[1].tolerance == 2.5
    assert by_hand.convention.definition.endswith("Here NSD is within 2.5 mm.")


def test_amos_is_one_millimetre() -> None:
    used = adapted(CONVENTIONS["amos"], {"labels": {"background": 0, "a": 1}})
    assert used.convention.metrics[1].tolerance == tolerances.AMOS == 1


def test_metrics_by_hand_are_defined_as_computed() -> None:
    """Nothing is left of what the convention's own metrics are."""
    content = {"labels": {"background": 0, "a": 1, "b": 2}}
    found = adapted(CONVENTIONS["sound"], content, metrics=parse(["hd95"], CONVENTIONS["sound"].metrics))
    assert found.convention.definition == (
        "Metrics chosen by hand: HD95: 95th percentile of both directions' border distances in one list (medpy), in mm "
        "(left out if both masks are empty, left out if only the prediction has voxels, left out if only the reference "
        "has voxels). Structures and averaging as of sound: a, b; mean over cases for each, then over structures, "
        "undefined values left out."
    )
    nnunet = CONVENTIONS["nnunet"]
    given = adapted(nnunet, content, metrics=parse(["dice", "recall"], nnunet.metrics)).convention.definition
    assert "(left out if both masks are empty, otherwise as the formula gives, left out if it divides by 0)" in given
    assert "sensitivity (empty masks as the formula gives, left out if it divides by 0)" in given
    assert given.endswith("then over structures, undefined if one is.")
    brats = adapted(CONVENTIONS["brats2020"], {"labels": TUMOUR}, metrics=parse(["hd95", "jaccard"])).convention
    assert brats.definition.endswith("A case without prediction, if not left out, counts HD95 373.129.")


def test_metrics_by_hand_of_pictures_are_defined_in_pixels() -> None:
    content = {"labels": {"background": 0, "a": 1}}
    metrics = parse(["hd95", "nsd@2", "reference_ml"])
    found = adapted(CONVENTIONS["sound"], content, metrics=metrics, unit="pixels").convention
    assert [(metric.name, metric.unit) for metric in found.metrics] == [
        ("HD95", "pixels"),
        ("NSD 2 pixels", ""),
        ("Reference volume", "pixels"),
    ]
    assert "(medpy), in pixels" in found.definition
    assert "NSD 2 pixels: " in found.definition
    assert "mm" not in found.definition
    assert "PIXELS" not in found.definition


@pytest.mark.parametrize("name", CONVENTIONS)
def test_metrics_by_hand_under_every_convention(name: str) -> None:
    labels = OF.get(name, {"background": 0, "a": 1, "b": 2})
    used = adapted(CONVENTIONS[name], {"labels": labels}, metrics=parse(["jaccard"])).convention
    assert used.definition.startswith("Metrics chosen by hand: Jaccard: ")
    assert ("numbers of the whole set" in used.definition) == (name in ("lits", "acdc"))
    assert CONVENTIONS[name].definition not in used.definition


def test_metric_grammar() -> None:
    found = parse(["Dice", "hd95", "hd95:voxels", "hd95_larger", "nsd@1", "nsd@2.5mm", "nsd_border", "rvd"], (), 3.0)
    assert [(metric.name, metric.quantity, metric.unit, metric.tolerance) for metric in found] == [
        ("Dice", "dice", "", None),
        ("HD95", "hd95_pooled", "mm", None),
        ("HD95 voxels", "hd95_pooled", "voxels", None),
        ("HD95 larger", "hd95_larger", "mm", None),
        ("NSD 1 mm", "nsd", "", 1.0),
        ("NSD 2.5 mm", "nsd", "", 2.5),
        ("NSD border 3 mm", "nsd_border", "", 3.0),
        ("RVD", "relative_volume_difference", "", None),
    ]
    assert len(parse(NAMES, (), 1.0)) == len(NAMES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dise", "no such metric; there are dice"),
        ("nsd", "give its tolerance in mm, as in nsd@2"),
        ("nsd@1.2.3", "a number of mm"),
        ("dice@2", "dice has no tolerance"),
        ("dice:mm", "no unit to choose"),
        ("hd95:miles", "allowed are mm, voxels"),
        ("hd95_area:voxels", "areas in mm²"),
    ],
)
def test_metrics_that_are_none(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse([text])
    with pytest.raises(UserError, match="asked for twice"):
        parse(["dice", "DICE"])
