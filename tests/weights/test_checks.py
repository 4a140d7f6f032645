"""Numbers from the command line: nan and inf are numbers to argparse."""

from __future__ import annotations

import math

import pytest

from nnunet_ext.errors import UserError
from nnunet_ext.weights.checks import check_spacing, check_window
from nnunet_ext.weights.dataset_json import DatasetOptions
from nnunet_ext.weights.slices import SliceOptions


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, 0.0, -1.0])
def test_spacings(wrong: float) -> None:
    check_spacing((0.5, 1e-3, 5))
    for spacing, axes in (((1.0, wrong, 1.0), "z, y, x"), ((wrong, 1.0), "y, x")):
        with pytest.raises(UserError, match=rf"positive millimetres \({axes}\), each a finite number; got \("):
            check_spacing(spacing)


@pytest.mark.parametrize(
    "wrong", [(math.nan, 1), (0, math.nan), (0, math.inf), (-math.inf, 0), (1, 1), (-1e308, 1e308)]
)
def test_windows(wrong: tuple[float, float]) -> None:
    check_window((-175, 250))
    with pytest.raises(UserError, match=r"must rise from A_MIN to A_MAX, both finite numbers; got \("):
        check_window(wrong)


def test_slices() -> None:
    dataset = DatasetOptions("Dataset900_X")
    with pytest.raises(UserError, match=r"millimetres \(y, x\)"):
        SliceOptions(dataset, (math.nan, 1.0))
    with pytest.raises(UserError, match="must rise"):
        SliceOptions(dataset, (1.0, 1.0), window=(math.nan, 1.0))
