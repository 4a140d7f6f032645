"""The published tables: their numbers, typed once more from the specifications, and that they hold together."""

from __future__ import annotations

import pytest

from nnunet_ext.errors import UserError
from nnunet_ext.evaluation_scripts.conventions import convention_named
from nnunet_ext.evaluation_scripts.papers import PAPERS, Paper, paper_named
from nnunet_ext.evaluation_scripts.structures import all_labels

_ORGANS = (
    *("background", "spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta"),
    *("inferior vena cava", "portal vein and splenic vein", "pancreas", "right adrenal gland", "left adrenal gland"),
)
BTCV = {name: value for value, name in enumerate(_ORGANS)}
TABLES = {
    "unetrpp-synapse": """
        U-Net 86.67 68.60 77.77 69.72 93.43 75.58 89.07 53.98 - 76.85
        TransUNet 85.08 77.02 81.87 63.16 94.08 75.62 87.23 55.86 31.69 77.49
        Swin-UNet 90.66 79.61 83.28 66.53 94.29 76.60 85.47 56.58 21.55 79.13
        UNETR 85.00 84.52 85.60 56.30 94.57 70.46 89.80 60.47 18.59 78.35
        MISSFormer 91.92 82.00 85.21 68.65 94.41 80.81 86.99 65.67 18.20 81.96
        Swin-UNETR 95.37 86.26 86.99 66.54 95.72 77.01 91.12 68.80 10.55 83.48
        nnFormer 90.51 86.25 86.57 70.17 96.84 86.83 92.04 83.35 10.63 86.57
        UNETR++ 95.77 87.18 87.54 71.25 96.42 86.01 92.52 81.10 7.53 87.22""",
    "unetrpp-acdc": """
        TransUNet 88.86 84.54 95.73 89.71
        Swin-UNet 88.55 85.62 95.83 90.00
        UNETR 85.29 86.52 94.02 86.61
        MISSFormer 86.36 85.75 91.59 87.90
        nnFormer 90.94 89.58 95.65 92.06
        UNETR++ 91.89 90.61 96.00 92.83""",
    "unetrpp-brats": """
        UNETR - - - - - 81.2 81.2
        SwinUNETR - - - - - 81.5 81.5
        nnFormer - - - - - 82.3 82.3
        UNETR++ - - - - - 82.8 82.8""",
    "unetrpp-lung": "nnUNet 74.31\n SwinUNETR 75.55\n nnFormer 77.95\n UNETR 73.29\n UNETR++ 80.68",
    "sshunet-btcv": """
        TSM .9976 .9618 .9445 .9515 .7846 .7684 .9693 .7893 .9034 .8501 .7560 .7875 .7008 .6335 .8427 .8308
        GSM .9976 .9646 .9486 .9507 .7998 .7364 .9739 .7483 .9044 .8757 .7773 .8332 .6916 .6916 .8495 .8382
        GSF .9977 .9649 .9503 .9507 .7464 .7514 .9731 .7925 .9011 .8664 .7632 .8311 .7259 .6773 .8494 .8380
        TSM+VFN .9917 .9621 .9492 .9491 .7591 .7739 .6490 .8242 .8687 .8519 .7777 .7894 .7151 .6942 .8254 .8126""",
    "ossnet-brats": """
        3D_residual_U-Net 0.8827 0.7995
        2D_residual_U-Net 0.8589 0.7658
        O-Net 0.7016 0.5615
        OSS-Net_A 0.8592 0.7644
        OSS-Net_B 0.8541 0.7572
        OSS-Net_C 0.8842 0.7991
        OSS-Net_D 0.8774 0.7876""",
    "ossnet-lits": """
        3D_residual_U-Net 0.7888 0.6558
        2D_residual_U-Net 0.6674 0.5233
        O-Net 0.6506 0.4842
        OSS-Net_A 0.7127 0.5579
        OSS-Net_B 0.7585 0.6154
        OSS-Net_C 0.7616 0.6201
        OSS-Net_D 0.7566 0.6150""",
    "selfreg-synapse": """
        U-Net 76.85 39.70 89.07 69.72 77.77 68.60 93.43 53.98 86.67 75.58
        SwinUnet 79.13 21.55 85.47 66.53 83.28 79.61 94.29 56.58 90.66 76.60
        SwinUnet_+_SelfReg 80.54 - - - - - - - - -""",
    "selfreg-acdc": "SwinUnet 88.55 85.62 95.83 90.00\n SwinUnet_+_SelfReg - - - 91.49",
    "sshunet-amos": "SSH-UNet" + " -" * 18,
}
CASES = {
    "unetrpp-synapse": 12,
    "unetrpp-acdc": 40,
    "unetrpp-brats": 24,
    "unetrpp-lung": 13,
    "sshunet-btcv": 6,
    "sshunet-amos": 100,
    "ossnet-brats": 45,
    "ossnet-lits": 0,
    "selfreg-synapse": 12,
    "selfreg-acdc": 40,
}
NOT_THE_MEAN = {("unetrpp-synapse", "UNETR"): 78.34, ("unetrpp-acdc", "UNETR"): 88.61}
DATA_SETS = {
    "unetrpp-synapse": BTCV,
    "selfreg-synapse": BTCV,
    "sshunet-btcv": BTCV,
    "unetrpp-acdc": {"background": 0, "RV": 1, "MLV": 2, "LVC": 3},
    "selfreg-acdc": {"background": 0, "1": 1, "2": 2, "3": 3},
    "unetrpp-brats": {"background": 0, "edema": 1, "non-enhancing tumor": 2, "enhancing tumour": 3},
    "unetrpp-lung": {"background": 0, "cancer": 1},
    "ossnet-brats": {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": [3]},
    "ossnet-lits": {"background": 0, "liver": [1, 2], "tumor": [2]},
    "sshunet-amos": {str(number): number for number in range(16)},
}


@pytest.mark.parametrize("key", PAPERS)
def test_rows_are_those_of_the_specification(key: str) -> None:
    typed = [line.split() for line in TABLES[key].strip().splitlines()]
    expected = [
        (words[0].replace("_", " "), tuple(None if word == "-" else float(word) for word in words[1:]))
        for words in typed
    ]
    assert [(row.method, row.values) for row in PAPERS[key].rows] == expected


def test_every_table_is_checked() -> None:
    assert set(TABLES) == set(PAPERS) == set(CASES) == set(DATA_SETS)


@pytest.mark.parametrize("key", PAPERS)
def test_a_table_holds_together(key: str) -> None:
    paper = PAPERS[key]
    assert len(paper.case_ids()) == len(set(paper.case_ids())) == CASES[key]
    assert all(len(row.values) == len(paper.columns) for row in paper.rows)
    assert paper.method in [row.method for row in paper.rows]
    metrics = {metric.name for metric in convention_named(paper.convention).metrics}
    assert {column.metric for column in paper.columns} <= metrics
    missing = any(value is None for row in paper.rows for value in row.values)
    assert missing == bool(paper.withheld)
    assert paper.caveats
    assert paper.source


@pytest.mark.parametrize("key", PAPERS)
def test_structures_of_the_data_set_are_those_of_the_columns(key: str) -> None:
    paper = PAPERS[key]
    found = paper.structures({"labels": DATA_SETS[key]})
    assert set(found) == {name for column in paper.columns for name in column.structures}


@pytest.mark.parametrize("key", PAPERS)
def test_averages_are_those_of_their_rows(key: str) -> None:
    paper = PAPERS[key]
    for row in paper.rows:
        values = dict(zip(paper.columns, row.values, strict=True))
        single = {c.structures[0]: value for c, value in values.items() if not c.is_average and c.metric == "Dice"}
        for column, published in values.items():
            parts = [single.get(name) for name in column.structures]
            if not column.is_average or column.metric != "Dice" or published is None or None in parts:
                continue
            mean = sum(part for part in parts if part is not None) / len(parts)
            exception = NOT_THE_MEAN.get((key, row.method))
            if exception is None:
                assert abs(mean - published) <= 0.5 * 10**-paper.digits + 1e-4 * (not paper.percent) + 1e-9
            else:
                assert round(mean, 2) == exception
                assert f"{exception}" in row.note


def test_a_structure_is_found_by_name_before_number() -> None:
    find = PAPERS["unetrpp-synapse"].structures
    own = {"labels": {"background": 0, "aorta": 1, "gallbladder": 2, "left kidney": 3, "right kidney": 4, "liver": 5}}
    own["labels"] |= {"pancreas": 6, "spleen": 7, "stomach": 8}
    assert find(own)["spleen"] == (7,)
    assert list(find(own))[:2] == ["spleen", "right kidney"]
    numbered = {"labels": {"background": 0, **{f"organ {number}": number for number in range(1, 14)}}}
    assert find(numbered)["pancreas"] == (11,)


@pytest.mark.parametrize(
    "labels",
    [
        {f"organ {number}": number for number in range(1, 9)},  # eight without names: no telling
        {**{f"organ {number}": number for number in range(1, 13)}, "spleen": 13},  # a name against its number
    ],
)
def test_structures_that_cannot_be_told(labels: dict[str, int]) -> None:
    with pytest.raises(UserError, match="--dataset-json"):
        PAPERS["unetrpp-synapse"].structures({"labels": {"background": 0, **labels}})


def test_one_label_only() -> None:
    with pytest.raises(UserError, match="one label"):
        PAPERS["unetrpp-lung"].structures({"labels": {"background": 0, "lung": 1, "cancer": 2}})


def test_the_background_is_a_structure_of_sshunet_alone() -> None:
    found = PAPERS["sshunet-btcv"].structures({"labels": BTCV})
    assert list(found) == list(BTCV)
    assert {key: value for key, value in found.items() if key != "background"} == all_labels({"labels": BTCV})


def test_names_of_tables() -> None:
    assert isinstance(paper_named("UNETRPP_Synapse"), Paper)
    with pytest.raises(UserError, match="unetrpp-synapse"):
        paper_named("unetrpp")
