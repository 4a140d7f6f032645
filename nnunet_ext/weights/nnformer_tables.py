"""nnFormer's tables of relative positions: from the published index to the right one, and to other windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from nnunet_ext.architectures.blocks.shifted_windows import ALIGNED, LEGACY, offset_rows, relative_index, table_rows
from nnunet_ext.weights.loading import CheckpointError

TABLE, INDEX = "relative_position_bias_table", "relative_position_index"


def window_edge(key: str, table: Tensor) -> int:
    """The edge w of the cubic window that a table of (2 w - 1) ** 3 rows is for.

    Raises:
        CheckpointError: no window has so many rows.
    """
    edge = (round(table.shape[0] ** (1 / 3)) + 1) // 2
    if table_rows((edge,) * 3) != table.shape[0]:
        raise CheckpointError(
            f"{key} has {table.shape[0]} rows, which is not (2 * window - 1) ** 3 for any window; give an undamaged "
            "file of nnFormer or Alice"
        )
    return edge


def file_style(state: Mapping[str, Tensor], prefix: str) -> str:
    """By which index a file's table was trained: the stored one is recomputed and compared.

    Args:
        state: weights by their names in the file.
        prefix: of an attention module, with its dot.

    Returns:
        "legacy" (also where the file does not tell: all published networks have it) or "aligned".

    Raises:
        CheckpointError: the stored index is neither.
    """
    stored = state.get(prefix + INDEX)
    if stored is None:
        return LEGACY
    window = (window_edge(prefix + TABLE, state[prefix + TABLE]),) * 3
    for style in (LEGACY, ALIGNED):
        if torch.equal(stored.long(), relative_index(window, style)):
            return style
    raise CheckpointError(
        f"{prefix}{INDEX} is not the published index of a window of {window} tokens, nor the corrected one: the file "
        "comes from a changed network, whose position biases cannot be read"
    )


def convert_table(key: str, table: Tensor, style: str, window: Sequence[int], wanted: str) -> Tensor:
    """A table for another index and another window.

    Where the window stays, the network's function does, too. Otherwise the biases are interpolated linearly over the
    offsets, ends to ends (specification alice 2).

    Args:
        key: the table's name, for errors.
        table: (rows, heads), for a cubic window.
        style: index that it was trained by, "legacy" or "aligned".
        window: (z, y, x) tokens of the network's window.
        wanted: the network's index.

    Raises:
        CheckpointError: a network with the published index needs a table for the same window and of that index.
    """
    edge = window_edge(key, table)
    old, new = (edge,) * 3, tuple(window)
    if style == wanted and old == new:
        return table
    if wanted == LEGACY:
        raise CheckpointError(
            f"{key} is for windows of {old} tokens ({style} index), and the plans' network has {new} and "
            "relative_index 'legacy', where offsets share biases and cannot be told apart: set relative_index to "
            "'aligned' in the plans' arch_kwargs"
        )
    if style == LEGACY:
        table = table[offset_rows(old, LEGACY)]
    if old == new:
        return table
    side, sides = 2 * edge - 1, tuple(2 * n - 1 for n in new)
    volume = table.mT.reshape(1, -1, side, side, side)
    resized = functional.interpolate(volume, sides, mode="trilinear", align_corners=True)
    return resized.flatten(2)[0].mT.contiguous()
