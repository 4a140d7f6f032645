"""Contrastive losses of the anatomical embedding: the same place in two views is alike, other places are not.

K. Yan et al., arXiv 2012.02383; written from the specification `alice` 3.2, without the published code's errors: the
hardest negatives are those that are used, ignored ones are left out before the hardest are chosen, and limits are the
same in both directions. Distances are physical, in mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nnunet_ext.architectures.anatomical_embedding import Embedding, upsampled

_POINTS_AT_ONCE = 256


@dataclass(frozen=True)
class Distances:
    """Limits in mm; the defaults are those of the published model, for voxels of 2 mm.

    Attributes:
        positive: fine vectors nearer than this are of one place.
        ignored: fine vectors farther than this are negatives.
        coarse_positive: coarse vectors nearer than this are of one place, and
        coarse_height: their z differ by less than this.
        coarse_negative: coarse vectors farther than this are negatives.
    """

    positive: float = 2.0
    ignored: float = 20.0
    coarse_positive: float = 25.0
    coarse_height: float = 6.0
    coarse_negative: float = 5.0

    def scaled(self, factor: float) -> Distances:
        """All of them, times a factor."""
        return Distances(**{key: value * factor for key, value in asdict(self).items()})


@dataclass(frozen=True)
class Sampling:
    """How many vectors take part, and the temperature (specification 3.2's numbers).

    Attributes:
        drawn: fine voxels of a view that are looked at.
        queries: of them, and of coarse ones, that are kept.
        hardest: fine negatives that are most like the query, of which
        negatives: are drawn.
        coarse_hardest: the same for coarse ones.
        coarse_negatives: the same for coarse ones.
        foreign: coarse negatives of the other volumes of the batch.
        temperature: of the softmax.
    """

    drawn: int = 2000
    queries: int = 100
    hardest: int = 2000
    negatives: int = 500
    coarse_hardest: int = 250
    coarse_negatives: int = 200
    foreign: int = 1000
    temperature: float = 0.5


class Cells(NamedTuple):
    """The cells of a view's map.

    Attributes:
        vectors: (n, C) of length 1.
        points: (n, 3) LPS mm (x, y, z).
        valid: (n,) bool: in the volume.
    """

    vectors: Tensor
    points: Tensor
    valid: Tensor


class ViewCells(NamedTuple):
    """What the losses see of one view.

    Attributes:
        fine: cells of the fine map.
        context: (n_fine, C) the coarse map's vectors at the fine cells.
        coarse: cells of the coarse map.
    """

    fine: Cells
    context: Tensor
    coarse: Cells


def view_cells(embedding: Embedding, view: int, fine: Cells, coarse: Cells) -> ViewCells:
    """The cells of one view of a batch's embedding; `fine` and `coarse` give places, their vectors are ignored."""
    size = embedding.fine.shape[2:]
    with torch.no_grad():
        context = _rows(upsampled(embedding.coarse[view : view + 1].float(), size)[0])
    return ViewCells(
        fine._replace(vectors=_rows(embedding.fine[view].float())),
        context,
        coarse._replace(vectors=_rows(embedding.coarse[view].float())),
    )


def embedding_loss(
    pairs: Sequence[tuple[ViewCells, ViewCells]],
    distances: Distances,
    sampling: Sampling,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """The whole loss of a batch.

    Args:
        pairs: two views of each volume.
        distances: limits.
        sampling: numbers.
        generator: of the draws; on the CPU.

    Returns:
        "loss", which carries the gradient, "fine", "coarse" and "pairs": of fine cells that took part.
    """
    fine, coarse = [], []
    count = 0
    for number, (first, second) in enumerate(pairs):
        foreign = [view.coarse for other, pair in enumerate(pairs) if other != number for view in pair]
        for query, key in ((first, second), (second, first)):
            terms = fine_terms(query, key, distances, sampling, generator)
            count += len(terms)
            fine.append(terms)
            coarse.append(coarse_terms(query.coarse, key.coarse, foreign, distances, sampling, generator))
    fine_loss, coarse_loss = _mean(fine), _mean(coarse)
    return {
        "loss": fine_loss + coarse_loss,
        "fine": fine_loss.detach(),
        "coarse": coarse_loss.detach(),
        "pairs": torch.tensor(float(count)),
    }


def fine_terms(
    query: ViewCells, key: ViewCells, distances: Distances, sampling: Sampling, generator: torch.Generator
) -> Tensor:
    """The loss (n,) of up to `queries` cells of one view, each against its counterpart in the other view."""
    cells = _drawn(_in_overlap(query.fine, key.fine, distances.positive), sampling.drawn, generator)
    cells, nearest = _pairs(cells, query.fine, key.fine, distances.positive, torch.inf, sampling.queries)
    vectors = torch.cat([query.fine.vectors, key.fine.vectors])
    with torch.no_grad():
        points, valid = _both(query.fine, key.fine)
        context = torch.cat([query.context, key.context])
        likeness = query.fine.vectors[cells] @ vectors.T + query.context[cells] @ context.T
        excluded = (torch.cdist(query.fine.points[cells], points) <= distances.ignored) | ~valid
        negatives = _hard(likeness, excluded, sampling.hardest, sampling.negatives, generator)
    positive = (query.fine.vectors[cells] * key.fine.vectors[nearest]).sum(1)
    return _cross_entropy(query.fine.vectors[cells], positive, vectors, negatives, None, sampling.temperature)


def coarse_terms(
    query: Cells,
    key: Cells,
    foreign: Sequence[Cells],
    distances: Distances,
    sampling: Sampling,
    generator: torch.Generator,
) -> Tensor:
    """The same for coarse cells; `foreign` are those of other volumes, none of which can be the same place."""
    cells = _drawn(query.valid, sampling.drawn, generator)
    limits = (distances.coarse_positive, distances.coarse_height)
    cells, nearest = _pairs(cells, query, key, *limits, sampling.queries)
    vectors = torch.cat([query.vectors, key.vectors])
    with torch.no_grad():
        points, valid = _both(query, key)
        excluded = (torch.cdist(query.points[cells], points) <= distances.coarse_negative) | ~valid
        excluded[torch.arange(len(cells), device=nearest.device), len(query.points) + nearest] = (
            True  # the counterpart itself
        )
        likeness = query.vectors[cells] @ vectors.T
        negatives = _hard(likeness, excluded, sampling.coarse_hardest, sampling.coarse_negatives, generator)
    others = None
    if foreign:
        there = torch.cat([each.vectors[each.valid] for each in foreign])
        others = there[_permutation(len(there), generator, there.device)[: sampling.foreign]]
    positive = (query.vectors[cells] * key.vectors[nearest]).sum(1)
    return _cross_entropy(query.vectors[cells], positive, vectors, negatives, others, sampling.temperature)


def _in_overlap(query: Cells, key: Cells, margin: float) -> Tensor:
    """Which valid cells (n,) of one view lie in the box around the other, or at most `margin` mm beside it."""
    low, high = key.points.amin(0) - margin, key.points.amax(0) + margin
    return query.valid & ((query.points >= low) & (query.points <= high)).all(1)


def _pairs(cells: Tensor, query: Cells, key: Cells, distance: float, height: float, most: int) -> tuple[Tensor, Tensor]:
    """The first `most` of some cells that have a counterpart in the other view, and the counterparts, (n,) each.

    A counterpart is the nearest of the valid cells whose z differ by less than `height`; it is nearer than `distance`.
    """
    ours, theirs = [cells[:0]], [cells[:0]]
    for part in cells.split(_POINTS_AT_ONCE):
        points = query.points[part]
        excluded = ~key.valid | ((points[:, None, 2] - key.points[None, :, 2]).abs() >= height)
        near, nearest = torch.cdist(points, key.points).masked_fill_(excluded, torch.inf).min(dim=1)
        close = near < distance
        ours.append(part[close])
        theirs.append(nearest[close])
        if sum(map(len, ours)) >= most:
            break
    return torch.cat(ours)[:most], torch.cat(theirs)[:most]


def _hard(
    likeness: Tensor, excluded: Tensor, hardest: int, number: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """For each row: indices of `number` columns drawn from the `hardest` ones, and whether each may be used."""
    ranked = likeness.masked_fill(excluded, -torch.inf).topk(min(hardest, likeness.shape[1]), dim=1, sorted=False)
    usable = ranked.values > -torch.inf
    order = torch.rand(usable.shape, generator=generator).to(usable.device) + 2.0 * ~usable  # unusable ones come last
    drawn = order.topk(min(number, order.shape[1]), dim=1, largest=False).indices
    return ranked.indices.gather(1, drawn), usable.gather(1, drawn)


def _cross_entropy(
    queries: Tensor,
    positive: Tensor,
    vectors: Tensor,
    negatives: tuple[Tensor, Tensor],
    others: Tensor | None,
    temperature: float,
) -> Tensor:
    """-log of the positive's share among itself, the usable negatives and the others, (n,)."""
    index, usable = negatives
    cosines = torch.einsum("qc,qnc->qn", queries, vectors[index]).masked_fill(~usable, -torch.inf)
    parts = [positive[:, None], cosines] + ([] if others is None else [queries @ others.T])
    return torch.logsumexp(torch.cat(parts, dim=1) / temperature, dim=1) - positive / temperature


def _drawn(valid: Tensor, number: int, generator: torch.Generator) -> Tensor:
    there = torch.nonzero(valid)[:, 0]
    return there[_permutation(len(there), generator, there.device)[:number]]


def _permutation(length: int, generator: torch.Generator, device: torch.device) -> Tensor:
    return torch.randperm(length, generator=generator).to(device)


def _both(first: Cells, second: Cells) -> tuple[Tensor, Tensor]:
    return torch.cat([first.points, second.points]), torch.cat([first.valid, second.valid])


def _rows(maps: Tensor) -> Tensor:
    """(C, z, y, x) -> (cells, C)."""
    return maps.flatten(1).T


def _mean(terms: Sequence[Tensor]) -> Tensor:
    """The mean of the views' means; views without a term don't count. Zero, with a gradient, if there is none."""
    there = [term.mean() for term in terms if len(term)]
    return torch.stack(there).mean() if there else torch.cat(list(terms)).sum()
