"""Each volume registered once to a common reference, affinely, by SimpleITK; repeatable to the last bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import SimpleITK

from nnunet_ext.pretraining.coarse import Coarse
from nnunet_ext.pretraining.frames import Array

BINS = 32
SHARE = 0.2
SHRINKS = (4, 2, 1)
LEAST_CELLS = 4
ITERATIONS = 200
OUTLIER = 3.0
LEAST_CASES = 5


@dataclass(frozen=True, eq=False)
class Registration:
    """What became of a registration.

    Attributes:
        matrix: (4, 4) float64: LPS mm in the reference to LPS mm in the case.
        metric: Mattes' mutual information, negative: less is better; NaN where the registration failed.
    """

    matrix: Array
    metric: float


def register(reference: Coarse, case: Coarse, seed: int) -> Registration:
    """Find the affine transform that maps the reference onto a case.

    Mattes mutual information of 32 bins over 20 % of the reference's cells drawn with a fixed seed, moments
    initialisation, regular-step gradient descent on a pyramid of 4, 2 and 1 cells; first a similarity, then an affine
    transform from there. Pyramid levels that would leave fewer than 4 cells along an axis are left out. One thread, as
    sums in another order give other bits.

    Args:
        reference: at the coarse grid.
        case: at the same.
        seed: of the sampling; not 0, which SimpleITK takes for the time of day.

    Returns:
        The transform; the identity and NaN where SimpleITK gives up.

    Reference: specification alice 3.3.
    """
    fixed, moving = _image(reference), _image(case)
    before = SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads()
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        start = SimpleITK.CenteredTransformInitializer(
            fixed,
            moving,
            SimpleITK.Similarity3DTransform(),
            SimpleITK.CenteredTransformInitializerFilter.MOMENTS,
        )
        method = _method(reference, case, seed)
        similarity = SimpleITK.Similarity3DTransform(start)
        method.SetInitialTransform(similarity, inPlace=True)
        method.Execute(fixed, moving)
        affine = SimpleITK.AffineTransform(3)
        affine.SetMatrix(similarity.GetMatrix())
        affine.SetTranslation(similarity.GetTranslation())
        affine.SetCenter(similarity.GetCenter())
        method.SetInitialTransform(affine, inPlace=True)
        method.Execute(fixed, moving)
        return Registration(_matrix(affine), float(method.GetMetricValue()))
    except RuntimeError:
        return Registration(np.eye(4), float("nan"))
    finally:
        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def outliers(metrics: Sequence[float]) -> npt.NDArray[np.bool_]:
    """Which registrations are worse than the median by more than 3 median absolute deviations, or failed.

    Args:
        metrics: of `Registration`; of fewer than 5 that did not fail, only the failures are outliers.
    """
    values = np.asarray(metrics, np.float64)
    known = values[np.isfinite(values)]
    if len(known) < LEAST_CASES:
        return np.asarray(~np.isfinite(values))
    median = float(np.median(known))
    deviation = float(np.median(np.abs(known - median)))
    return np.asarray(~(values <= median + OUTLIER * deviation + 1e-9))


def _method(reference: Coarse, case: Coarse, seed: int) -> SimpleITK.ImageRegistrationMethod:
    method = SimpleITK.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(BINS)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(SHARE, seed)
    if not reference.inside.all():
        method.SetMetricFixedMask(_as_image(reference.inside.astype(np.uint8), reference))
    if not case.inside.all():
        method.SetMetricMovingMask(_as_image(case.inside.astype(np.uint8), case))
    method.SetInterpolator(SimpleITK.sitkLinear)
    grid = float(reference.frame.spacing.min())
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=2 * grid, minStep=grid / 400, numberOfIterations=ITERATIONS, gradientMagnitudeTolerance=1e-6
    )
    method.SetOptimizerScalesFromPhysicalShift()
    edge = min(*reference.frame.shape, *case.frame.shape)
    shrinks = [shrink for shrink in SHRINKS if shrink == 1 or edge // shrink >= LEAST_CELLS]
    method.SetShrinkFactorsPerLevel(shrinks)
    method.SetSmoothingSigmasPerLevel([grid * (shrink // 2) for shrink in shrinks])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetNumberOfThreads(1)
    return method


def _image(volume: Coarse) -> SimpleITK.Image:
    """Values from 0 on, so that dark surroundings have no weight in the moments."""
    inside = volume.values[volume.inside]
    low, high = np.percentile(inside, (0.5, 99.5)) if inside.size else (0.0, 0.0)
    return _as_image(np.clip(volume.values, low, high) * volume.inside - low * volume.inside, volume)


def _as_image(values: npt.NDArray[np.generic], volume: Coarse) -> SimpleITK.Image:
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(values))
    image.SetSpacing([float(mm) for mm in volume.frame.spacing[::-1]])
    image.SetOrigin([float(mm) for mm in volume.frame.matrix[:3, 3]])
    return image


def _matrix(transform: SimpleITK.AffineTransform) -> Array:
    linear = np.asarray(transform.GetMatrix(), np.float64).reshape(3, 3)
    centre, translation = np.asarray(transform.GetCenter()), np.asarray(transform.GetTranslation())
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = centre + translation - linear @ centre
    return matrix
