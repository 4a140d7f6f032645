"""Matching in voxels as the published pre-training does it (specification alice 1.3), for comparison with it.

`matching.match` is what this package itself uses: it works in millimetres of the patient and knows orientations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from nnunet_ext.architectures.anatomical_embedding import Embedding
from nnunet_ext.pretraining.matching import best_cells, vectors_at


@dataclass(frozen=True)
class Side:
    """One of two volumes.

    Attributes:
        embedding: its maps (1, channels, z, y, x).
        ratio: spacing / 2 mm of each axis (x, y, z).
        size: voxels (x, y, z).
    """

    embedding: Embedding
    ratio: Sequence[float]
    size: Sequence[int]


def match_voxels(
    query: Side, key: Side, points: np.ndarray, stride: int = 2, neighbourhood: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Find the counterparts of voxels.

    Args:
        query: the volume that the points are in.
        key: the volume to search.
        points: (n, 3) voxels (x, y, z) of the query volume.
        stride: of the fine map in voxels of 2 mm.
        neighbourhood: n > 0: the (2n + 1)^3 cells around a point's are matched, and the cells found and their scores
            averaged.

    Returns:
        Voxels (n, 3) (x, y, z) int64, and scores (n,) float32.
    """
    cells = np.floor(np.asarray(points) * np.asarray(query.ratio) / stride).astype(np.int64)[:, ::-1]
    steps = np.array(list(product(range(-neighbourhood, neighbourhood + 1), repeat=3)))
    grid = np.asarray(query.embedding.fine.shape[2:])
    around = (cells[:, None] + steps).clip(0, grid - 1).reshape(-1, 3)
    found, scores = best_cells(vectors_at(query.embedding, around), key.embedding)
    mean = found.reshape(len(cells), -1, 3).mean(axis=1)[:, ::-1]
    voxels = np.trunc((stride * mean + 0.5) / np.asarray(key.ratio)).astype(np.int64)
    return voxels.clip(0, np.asarray(key.size)), scores.reshape(len(cells), -1).mean(axis=1)
