"""Clinical indices of ACDC (specification evaluation, section 6): volumes, ejection fractions, myocardial mass."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from nnunet_ext.evaluation_scripts.agreement import Agreement, agreement
from nnunet_ext.evaluation_scripts.overlap import ratio

RV, MYO, LV = 1, 2, 3
MYOCARDIAL_DENSITY = 1.055
"""Grams a millilitre."""


@dataclass(frozen=True)
class CardiacIndices:
    """Of one patient.

    Attributes:
        lv_edv, lv_esv, rv_edv, rv_esv: ml, volumes of the left and right ventricle at the end of diastole and systole.
        lv_ef, rv_ef: percent, ejection fractions; NaN if the volume at the end of diastole is 0.
        myo_edv, myo_esv: ml, volumes of the myocardium.
        myo_mass: g, at the end of diastole.
    """

    lv_edv: float
    lv_esv: float
    lv_ef: float
    rv_edv: float
    rv_esv: float
    rv_ef: float
    myo_edv: float
    myo_esv: float
    myo_mass: float


def volumes_ml(labels: np.ndarray, spacing: Sequence[float]) -> dict[int, float]:
    """The volume of each label in ml.

    Args:
        labels: label map (z, y, x), unsigned integers.
        spacing: millimetres along each axis.

    Returns:
        Label -> volume, for those that occur, the background left out.

    Raises:
        ValueError: a spacing for another number of axes.
    """
    if len(spacing) != labels.ndim:
        raise ValueError(f"a spacing of {len(spacing)} for {labels.ndim} axes")
    counts = np.bincount(labels.reshape(-1))
    voxel = math.prod(spacing) / 1000
    return {label: int(count) * voxel for label, count in enumerate(counts) if label and count}


def ejection_fraction(end_diastolic: float, end_systolic: float) -> float:
    """The percentage of the volume at the end of diastole that is ejected; NaN if that volume is 0."""
    return 100 * ratio(end_diastolic - end_systolic, end_diastolic)


def cardiac_indices(
    end_diastolic: Mapping[int, float],
    end_systolic: Mapping[int, float],
    labels: tuple[int, int, int] = (RV, MYO, LV),
    density: float = MYOCARDIAL_DENSITY,
) -> CardiacIndices:
    """The indices of a patient.

    Args:
        end_diastolic: label -> ml at the end of diastole; a label that is not there has no voxels.
        end_systolic: likewise at the end of systole.
        labels: of the right ventricle, the myocardium and the left ventricle.
        density: of the myocardium in g/ml.
    """
    (rv_edv, myo_edv, lv_edv), (rv_esv, myo_esv, lv_esv) = (
        [float(volumes.get(label, 0.0)) for label in labels] for volumes in (end_diastolic, end_systolic)
    )
    return CardiacIndices(
        lv_edv,
        lv_esv,
        ejection_fraction(lv_edv, lv_esv),
        rv_edv,
        rv_esv,
        ejection_fraction(rv_edv, rv_esv),
        myo_edv,
        myo_esv,
        density * myo_edv,
    )


def cardiac_agreement(
    reference: Mapping[str, CardiacIndices], predicted: Mapping[str, CardiacIndices]
) -> dict[str, Agreement]:
    """How well each index agrees over patients.

    Args:
        reference: patient -> indices.
        predicted: of the same patients.

    Returns:
        Name of the index -> agreement.

    Raises:
        ValueError: other patients in one than in the other.
    """
    if set(reference) != set(predicted):
        raise ValueError(f"patients in one alone: {', '.join(sorted(set(reference) ^ set(predicted)))}")
    patients = sorted(reference)
    ours, theirs = ([asdict(indices[patient]) for patient in patients] for indices in (reference, predicted))
    return {
        name: agreement([values[name] for values in ours], [values[name] for values in theirs])
        for name in CardiacIndices.__dataclass_fields__
    }
