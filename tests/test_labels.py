"""Labels of a dataset.json, as nnU-Net takes them."""

from __future__ import annotations

from typing import Any

import pytest
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_ext.labels import has_regions


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"background": 0, "organ": 1, "core": 2}, False),
        ({"background": 0, "organ": [1], "core": [2], "ignore": 3}, False),
        ({"background": 0, "whole": [1, 2], "core": 2}, True),
        ({"background": 0, "whole": (1, 2), "core": [2], "ignore": 3}, True),
    ],
)
def test_regions_are_labels_of_several_values(labels: dict[str, Any], expected: bool) -> None:
    assert has_regions({"labels": labels}) is expected
    assert LabelManager(labels, [1, 2]).has_regions is expected
