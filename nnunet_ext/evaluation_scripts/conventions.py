"""Conventions: what a paper or a challenge computes, down to the empty mask (specification evaluation, section 3).

A number without its convention cannot be compared: HD95 differs by up to 30 % between definitions, and what an empty
mask counts can decide an average. Every result carries the convention's name and its definition.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nnunet_ext.errors import UserError
from nnunet_ext.evaluation_scripts.quantities import NAN, Metric
from nnunet_ext.evaluation_scripts.structures import (
    Structures,
    all_labels,
    background_too,
    brats_regions,
    foreground_as_one,
    liver_and_lesion,
    organs_of_synapse,
    tumour_classes_and_regions,
)

_UNDEFINED = {"both_empty": NAN, "gt_empty": NAN, "pred_empty": NAN}
_ZERO = {"both_empty": 0.0, "gt_empty": 0.0, "pred_empty": 0.0}
_ONE_IF_BOTH = {"both_empty": 1.0, "gt_empty": 0.0, "pred_empty": 0.0}
_IGNORE_EMPTY_REFERENCE = {"both_empty": NAN, "gt_empty": NAN}
BRATS2020_PENALTY = 373.12866
BRATS2023_PENALTY = 374.0


@dataclass(frozen=True)
class Convention:
    """How cases are scored and averaged.

    Attributes:
        name: on the command line and in every result.
        definition: in words: unit, empty masks, labels averaged, order of averaging.
        metrics: of every structure.
        structures: makes of a dataset.json the structures that are evaluated.
        averaging: "structures": mean over cases for each structure, then over structures; "cases": mean over the
            structures of each case, then over cases. NaN is left out of both. "all structures": as "structures", but
            NaN if one of them has no value at all.
        digits: to which a case's values are rounded before they are averaged; None: not at all.
        missing: metric -> what a case without prediction counts; metrics that are not named count as for an empty
            prediction.
        extra: further numbers of a whole challenge: "brats2023", "lits", "acdc" or "flare22"; None: none.
    """

    name: str
    definition: str
    metrics: tuple[Metric, ...]
    structures: Callable[[Mapping[str, Any]], Structures] = all_labels
    averaging: str = "structures"
    digits: int | None = None
    missing: Mapping[str, float] = field(default_factory=dict)
    extra: str | None = None


def _dice(empty: Mapping[str, float], name: str = "Dice") -> Metric:
    return Metric(name, "dice", "", empty)


_VOXELS_ZERO = Metric("HD95", "hd95_pooled", "voxels", _ZERO)
_NNFORMER = (_dice(_ONE_IF_BOTH), _VOXELS_ZERO)
_TRANSUNET_DICE = {"both_empty": 0.0, "gt_empty": 1.0, "pred_empty": 0.0}
_TRANSUNET = (_dice(_TRANSUNET_DICE), _VOXELS_ZERO)
_NNFORMER_RULE = (
    "Dice 1 if both masks are empty, 0 if one is; HD95: medpy's pooled percentile, in VOXELS (no spacing), 0 if a mask "
    "is empty; mean over cases for each structure, then over structures"
)
_TRANSUNET_RULE = (
    "Dice 1 and HD95 0 if only the prediction has voxels, both 0 if the prediction or both are empty; HD95: medpy's "
    "pooled percentile, in VOXELS; mean over cases for each structure, then over structures"
)

_PRESETS = (
    Convention(
        "sound",
        "All distances in millimetres. A metric without a defined value (Dice and NSD of two empty masks; distances if "
        "one is empty) is NaN, left out of averages and counted. HD95: pooled percentile of border voxels' distances "
        "(medpy's); NSD: surface elements within 2 mm. Mean over cases for each label or region, then over these.",
        (
            _dice({"both_empty": NAN}),
            Metric("HD95", "hd95_pooled", "mm", _UNDEFINED),
            Metric("ASSD", "assd_pooled", "mm", _UNDEFINED),
            Metric("NSD", "nsd", "", {"both_empty": NAN}, tolerance=2.0),
        ),
    ),
    Convention(
        "nnunet",
        "nnU-Net v2's summary.json: Dice and IoU of every label or region, NaN if both masks are empty; mean over the "
        "other cases for each, then over all of them (NaN if one of them occurs nowhere).",
        (_dice({"both_empty": NAN}), Metric("IoU", "jaccard", "", {"both_empty": NAN})),
        averaging="all structures",
    ),
    Convention(
        "monai",
        "MONAI's defaults: Dice NaN if the reference is empty; HD95: the larger of the two directed percentiles, in "
        "mm; NSD of border voxels within 2 mm; background left out; mean over cases for each label, then over labels.",
        (
            _dice(_IGNORE_EMPTY_REFERENCE),
            Metric("HD95", "hd95_larger", "mm", _UNDEFINED),
            Metric("NSD", "nsd_border", "", {"both_empty": NAN}, tolerance=2.0),
        ),
    ),
    Convention("nnformer", f"{_NNFORMER_RULE}.", _NNFORMER),
    Convention(
        "unetrpp-synapse",
        f"{_NNFORMER_RULE}. Eight of the thirteen organs: spleen, both kidneys, gallbladder, liver, stomach, aorta, "
        "pancreas.",
        _NNFORMER,
        organs_of_synapse,
    ),
    Convention("unetrpp-acdc", f"{_NNFORMER_RULE}. Each of ED and ES is a case.", _NNFORMER),
    Convention(
        "unetrpp-brats",
        f"{_NNFORMER_RULE}. MSD Task01's oedema, non-enhancing tumour, and the regions ET, TC, WT; the paper averages "
        "the three regions, the authors' script all five.",
        _NNFORMER,
        tumour_classes_and_regions,
    ),
    Convention(
        "unetrpp-lung",
        "nnU-Net v1's validation: Dice of the label, NaN if both masks are empty; mean over the other cases.",
        (_dice({"both_empty": NAN}),),
    ),
    Convention("transunet", f"{_TRANSUNET_RULE}.", _TRANSUNET),
    Convention(
        "selfreg",
        f"{_TRANSUNET_RULE}. Jaccard and ASSD (in voxels) by the same rule.",
        (
            *_TRANSUNET,
            Metric("Jaccard", "jaccard", "", _TRANSUNET_DICE),
            Metric("ASSD", "assd_of_ways", "voxels", _ZERO),
        ),
    ),
    Convention(
        "sshunet",
        "Dice of every label, BACKGROUND INCLUDED; NaN if the reference is empty; mean over the other cases for each "
        "label, then over labels. No distances.",
        (_dice(_IGNORE_EMPTY_REFERENCE),),
        background_too,
    ),
    Convention(
        "ossnet",
        "Binary: every label but the background is one structure. Dice and IoU 0 if both masks are empty; mean over "
        "cases. No distances.",
        (_dice({"both_empty": 0.0}), Metric("IoU", "jaccard", "", {"both_empty": 0.0})),
        foreground_as_one,
    ),
    Convention(
        "brats2020",
        "WT, TC, ET. Dice 1 if both masks are empty, 0 if one is; HD95: medpy's pooled percentile in mm, 0 if both are "
        f"empty, {BRATS2020_PENALTY} if one is; sensitivity and specificity; mean over cases for each region, then "
        "over regions.",
        (
            _dice(_ONE_IF_BOTH),
            Metric(
                "HD95",
                "hd95_pooled",
                "mm",
                {"both_empty": 0.0, "gt_empty": BRATS2020_PENALTY, "pred_empty": BRATS2020_PENALTY},
            ),
            Metric("Sensitivity", "recall", "", {"both_empty": 1.0, "gt_empty": 1.0}),
            Metric("Specificity", "specificity"),
        ),
        brats_regions,
        missing={"Dice": 0.0, "HD95": BRATS2020_PENALTY, "Sensitivity": 0.0, "Specificity": 0.0},
    ),
    Convention(
        "brats2023",
        "WT, TC, ET. Lesion-wise Dice and HD95 (DeepMind's, area-weighted, in mm; 374 for a lesion that is missed or "
        "false), lesions of at most 50 mm³ left out; beside them Dice (1) and HD95 (0) of whole regions, 374 if one "
        "mask is empty; mean over cases for each region, then over regions.",
        (
            Metric("LesionWise Dice", "lesionwise_dice"),
            Metric("LesionWise HD95", "lesionwise_hd95", "mm"),
            _dice(_ONE_IF_BOTH),
            Metric(
                "HD95",
                "hd95_area",
                "mm",
                {"both_empty": 0.0, "gt_empty": BRATS2023_PENALTY, "pred_empty": BRATS2023_PENALTY},
            ),
        ),
        brats_regions,
        missing={
            "LesionWise Dice": 0.0,
            "LesionWise HD95": BRATS2023_PENALTY,
            "Dice": 0.0,
            "HD95": BRATS2023_PENALTY,
        },
        extra="brats2023",
    ),
    Convention(
        "lits",
        "Liver (labels 1 and 2 as one) and lesions (label 2). Dice per case: 0 if both masks are empty, as the server "
        "counted; Dice global: of all cases' voxels together; distances in mm.",
        (_dice({"both_empty": 0.0}), Metric("ASSD", "assd_pooled", "mm", _UNDEFINED)),
        liver_and_lesion,
        extra="lits",
    ),
    Convention(
        "acdc",
        "Dice and Hausdorff distance (the largest, not the 95th percentile) in mm, of each structure in ED and ES; "
        "mean over cases for each structure; clinical indices over patients.",
        (_dice({"both_empty": NAN}), Metric("HD", "hd", "mm", _UNDEFINED)),
        extra="acdc",
    ),
    Convention(
        "amos",
        "Dice, and NSD of surface elements within 1 mm (the challenge does not state its tolerance); NaN if both masks "
        "are empty, 0 if one is; mean over cases for each organ, then over organs.",
        (_dice({"both_empty": NAN}), Metric("NSD", "nsd", "", {"both_empty": NAN}, tolerance=1.0)),
    ),
    Convention(
        "flare22",
        "DSC and NSD of surface elements, 1 if both masks are empty, 0 if only the prediction has voxels; of aorta, "
        "vena cava and esophagus only the reference's slices count, without the last one, as the organisers' code has "
        "it; rounded to four digits for each case; mean over cases for each organ, then over organs.",
        (
            _dice(_ONE_IF_BOTH, "DSC"),
            Metric("NSD", "nsd", "", {"both_empty": 1.0, "gt_empty": 0.0}, tolerance={}),
        ),
        digits=4,
        extra="flare22",
    ),
    Convention(
        "msd",
        "Dice, and NSD of surface elements within the task's tolerance; NaN if both masks are empty, 0 if one is; mean "
        "over cases for each label, then over labels.",
        (_dice({"both_empty": NAN}), Metric("NSD", "nsd", "", {"both_empty": NAN}, tolerance=1.0)),
    ),
)
CONVENTIONS: dict[str, Convention] = {preset.name: preset for preset in _PRESETS}


def convention_named(name: str) -> Convention:
    """A convention by its name.

    Raises:
        UserError: there is none of this name.
    """
    if name not in CONVENTIONS:
        raise UserError(f"no convention {name!r}; there are: {', '.join(CONVENTIONS)}")
    return CONVENTIONS[name]
