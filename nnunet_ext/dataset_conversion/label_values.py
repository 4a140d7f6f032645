"""The values of a label map: whole numbers, those that are allowed, and what they become."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nnunet_ext.dataset_conversion.cases import Rules
from nnunet_ext.dataset_conversion.volumes import UnusableError

WHOLE = 1e-3
"""How far from a whole number a label may be that is stored as a fraction."""
_MOST = 65535
_SHOWN = 12


class LabelValues:
    """What is in a label map.

    Attributes:
        integers: the labels as whole numbers, of the array's shape.
        counts: value -> number of voxels.
        stored_as_integers: whether the array's type is one of whole numbers.
    """

    def __init__(self, array: np.ndarray, where: str) -> None:
        """Count the values.

        Args:
            array: of any shape.
            where: the file, for messages.

        Raises:
            UnusableError: a value is negative, too large, no number, or no whole number.
        """
        self._where = where
        self.stored_as_integers = array.dtype.kind in "iub"
        if not self.stored_as_integers:
            array = self._rounded(array)
        lowest, highest = int(array.min()), int(array.max())
        if lowest < 0 or highest > _MOST:
            raise UnusableError(f"{where}: labels from {lowest} to {highest}; expected 0 to {_MOST}.")
        self.integers = array.astype(np.uint16 if highest > 255 else np.uint8, copy=False)
        counted = np.bincount(self.integers.ravel(order="K"))
        self.counts = {int(value): int(counted[value]) for value in np.flatnonzero(counted)}

    def _rounded(self, array: np.ndarray) -> np.ndarray:
        if not np.isfinite(array).all():
            raise UnusableError(f"{self._where}: {int((~np.isfinite(array)).sum())} labels are NaN or infinite.")
        rounded = np.rint(array)
        off = np.abs(array - rounded)
        if off.max() > WHOLE:
            odd = np.unique(array[off > WHOLE])[:5].tolist()
            raise UnusableError(
                f"{self._where}: labels must be whole numbers; got {odd}. A label map that was resampled with "
                "interpolation? Use the original."
            )
        whole: np.ndarray = rounded.astype(np.int64)
        return whole

    def targets(self, rules: Rules, allowed: frozenset[int]) -> dict[int, int]:
        """What each value that occurs becomes in the data set.

        Args:
            rules: with the data set's map.
            allowed: values in the data set.

        Raises:
            UnusableError: a value is not expected.
        """
        table = {value: value for value in allowed} if rules.label_map is None else rules.label_map
        unexpected = [value for value in self.counts if value not in table]
        if not unexpected:
            return {value: table[value] for value in self.counts}
        shown = ", ".join(map(str, unexpected[:_SHOWN])) + (", ..." if len(unexpected) > _SHOWN else "")
        hints = " ".join(rules.value_hints[value] for value in unexpected if value in rules.value_hints)
        raise UnusableError(
            f"{self._where}: unexpected labels {{{shown}}}; this data set has {{{', '.join(map(str, sorted(table)))}}}."
            + (f" {hints}" if hints else "")
        )


def mapped(integers: np.ndarray, targets: Mapping[int, int]) -> np.ndarray:
    """Labels with other values; uint8, or uint16 where 255 is not enough."""
    dtype = np.uint16 if max(targets.values()) > 255 else np.uint8
    table = np.zeros(max(targets) + 1, dtype)
    for old, new in targets.items():
        table[old] = new
    found: np.ndarray = table[integers]
    return found
