"""Lesion-wise scores of BraTS 2023 (specification evaluation, section 3.1); the challenges of 2024 use them too."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from nnunet_ext.errors import UserError
from nnunet_ext.evaluation_scripts.components import Components, pair_of, region_crop, touching
from nnunet_ext.evaluation_scripts.metrics import CasePair
from nnunet_ext.evaluation_scripts.overlap import Overlap, ratio

REGIONS: dict[str, tuple[int, ...]] = {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)}
"""The regions of BraTS 2023: whole tumour, tumour core, enhancing tumour."""


@dataclass(frozen=True)
class LesionParameters:
    """What a challenge sets.

    Attributes:
        dilations: how often the reference is dilated, to merge what lies close together and to find what touches it.
        dropped_volume: reference lesions of up to this many mm³ do not count, found or not.
        penalty: mm, the Hausdorff distance of a lesion that was missed or made up.
    """

    dilations: int
    dropped_volume: float
    penalty: float = 374.0


CHALLENGES: dict[str, LesionParameters] = {
    "BraTS-GLI": LesionParameters(3, 50),
    "BraTS-SSA": LesionParameters(3, 50),
    "BraTS-PED": LesionParameters(3, 50),
    "BraTS-MEN": LesionParameters(1, 50),
    "BraTS-MET": LesionParameters(1, 2),
}


def challenge_parameters(name: str) -> LesionParameters:
    """The parameters of a challenge by its name, with or without the prefix, in any case.

    Raises:
        UserError: an unknown challenge.
    """
    key = name.upper().removeprefix("BRATS-")
    for challenge, parameters in CHALLENGES.items():
        if challenge.upper().removeprefix("BRATS-") == key:
            return parameters
    raise UserError(f"no lesion-wise parameters for {name!r}; known are {', '.join(CHALLENGES)}")


@dataclass(frozen=True)
class Lesion:
    """One lesion of the reference, merged of components that lie close together.

    Attributes:
        volume: mm³.
        dice: of the lesion and all predicted components that touch it when it is dilated; 0 if none does.
        hd95: mm, the robust Hausdorff distance of 95 % weighted by area; infinite if nothing touches it.
        found: whether a predicted component touches it.
        counted: whether it is larger than the challenge's threshold.
    """

    volume: float
    dice: float
    hd95: float
    found: bool
    counted: bool


@dataclass(frozen=True)
class LesionwiseScores:
    """The scores of one region of one case.

    Attributes:
        lesions: of the reference, those that do not count among them.
        false_positives: mm³ of each predicted component that touches no lesion; they all count, however small.
        overlap: of the whole region.
        hd95: mm, of the whole region, infinite if one of the masks is empty, NaN if both are.
        reference_volume: mm³.
        penalty: mm, that stands for an infinite distance.
    """

    lesions: tuple[Lesion, ...]
    false_positives: tuple[float, ...]
    overlap: Overlap
    hd95: float
    reference_volume: float
    penalty: float

    @property
    def dice_score(self) -> float:
        """Mean Dice over counted lesions and false positives, which have 0; 1 if there are none."""
        dice = [lesion.dice for lesion in self.lesions if lesion.counted]
        number = len(dice) + len(self.false_positives)
        return sum(dice) / number if number else 1.0

    @property
    def hd95_score(self) -> float:
        """Mean HD95 in mm over counted lesions and false positives, which have the penalty; 0 if there are none."""
        distances = [self._finite(lesion.hd95) for lesion in self.lesions if lesion.counted]
        distances += [self.penalty] * len(self.false_positives)
        return sum(distances) / len(distances) if distances else 0.0

    def fields(self) -> dict[str, float]:
        """The columns of the challenge's own table, named as there."""
        counted = [lesion for lesion in self.lesions if lesion.counted]
        both_empty = self.overlap.state == "both_empty"
        return {
            "Num_TP": float(sum(lesion.found for lesion in counted)),
            "Num_FP": float(len(self.false_positives)),
            "Num_FN": float(sum(not lesion.found for lesion in counted)),
            "Sensitivity": 1.0 if both_empty else _ratio_or_zero(self.overlap.tp, self.overlap.reference),
            "Specificity": _ratio_or_zero(self.overlap.tn, self.overlap.tn + self.overlap.fp),
            "Legacy_Dice": 1.0 if both_empty else self.overlap.dice,
            "Legacy_HD95": 0.0 if both_empty else self._finite(self.hd95),
            "GT_Complete_Volume": self.reference_volume,
            "LesionWise_Score_Dice": self.dice_score,
            "LesionWise_Score_HD95": self.hd95_score,
        }

    def _finite(self, distance: float) -> float:
        return self.penalty if math.isinf(distance) else distance


def lesionwise_scores(
    reference: np.ndarray,
    predicted: np.ndarray,
    spacing: Sequence[float],
    regions: Mapping[str, Collection[int]],
    parameters: LesionParameters,
    pair: CasePair | None = None,
) -> dict[str, LesionwiseScores]:
    """Score every region lesion by lesion.

    Args:
        reference: label map (z, y, x) or (y, x), unsigned integers.
        predicted: of the same shape.
        spacing: millimetres along each axis.
        regions: name -> labels.
        parameters: of the challenge.
        pair: of the two maps, if there is one already, so that its surfaces are used.

    Returns:
        Name of the region -> scores.

    Raises:
        ValueError: maps that do not fit each other or the spacing.
    """
    pair = pair or CasePair(reference, predicted, spacing)
    return {
        name: _region_scores(reference, predicted, pair, tuple(labels), parameters) for name, labels in regions.items()
    }


def _region_scores(
    reference: np.ndarray,
    predicted: np.ndarray,
    pair: CasePair,
    labels: tuple[int, ...],
    parameters: LesionParameters,
) -> LesionwiseScores:
    masks = region_crop(reference, predicted, labels, margin=parameters.dilations)
    grown, lesions = _merged_by_dilation(masks[0], parameters.dilations)
    found = Components.of(masks[1], corners=True)
    partners: dict[int, list[int]] = {}
    for lesion, component in touching(grown, found.numbers):
        partners.setdefault(lesion, []).append(component)
    touched = {component for components in partners.values() for component in components}
    voxel = math.prod(pair.spacing)
    overlap = pair.overlap(labels)
    return LesionwiseScores(
        tuple(
            _lesion(lesions, number, found, partners.get(number, []), pair.spacing, parameters)
            for number in range(1, lesions.count + 1)
        ),
        tuple(int(size) * voxel for number, size in enumerate(found.sizes, 1) if number not in touched),
        overlap,
        _whole_hd95(pair, labels, overlap),
        overlap.reference * voxel,
        parameters.penalty,
    )


def _merged_by_dilation(mask: np.ndarray, dilations: int) -> tuple[np.ndarray, Components]:
    """Lesions: the parts of a mask that grow together.

    Growing a lesion again gives the component of the grown mask in which it lies, so this need not be done one by one.

    Returns:
        The numbers of the grown lesions, and the lesions with the same numbers.
    """
    edges = ndimage.generate_binary_structure(mask.ndim, min(2, mask.ndim))
    grown = ndimage.binary_dilation(mask, edges, iterations=dilations) if dilations else mask
    components = Components.of(grown, corners=True)
    return components.numbers, Components(np.where(mask, components.numbers, 0), components.count)


def _lesion(
    lesions: Components,
    number: int,
    found: Components,
    partners: Sequence[int],
    spacing: Sequence[float],
    parameters: LesionParameters,
) -> Lesion:
    volume = int(lesions.sizes[number - 1]) * math.prod(spacing)
    counted = volume > parameters.dropped_volume
    if not partners:
        return Lesion(volume, 0.0, math.inf, False, counted)
    pair = pair_of(lesions, [number], found, partners, spacing)
    hd95 = pair.element_distances([1]).weighted_percentile(95)
    return Lesion(volume, pair.overlap([1]).dice, hd95, True, counted)


def _whole_hd95(pair: CasePair, labels: tuple[int, ...], overlap: Overlap) -> float:
    if overlap.state == "both_present":
        return pair.element_distances(labels).weighted_percentile(95)
    return math.nan if overlap.state == "both_empty" else math.inf


def _ratio_or_zero(numerator: int, denominator: int) -> float:
    return ratio(numerator, denominator) if denominator else 0.0
