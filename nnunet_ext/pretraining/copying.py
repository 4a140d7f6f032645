"""Weights of a pre-trained network into one that is to be fine-tuned, tensor by tensor (specification alice 4.1, 4.5).

nnU-Net's U-Nets have up to four names for one tensor, and of a state dict the last name counts. So tensors are copied
into a real network, each once, whatever its names.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from nnunet_ext.errors import UserError
from nnunet_ext.weights.nnformer import adapt_channels

HEADS = ".seg_layers."  # nnU-Net's loader leaves these out
Fate = Literal["transferred", "adapted", "left random"]
Part = Literal["encoder", "rest", "heads"]


@dataclass(frozen=True)
class Weight:
    """A tensor of the network that is to be fine-tuned, and what became of it.

    Attributes:
        name: the first of its names.
        part: "rest" is the decoder, or everything where no part is called encoder.
        fate: what became of it.
        size: numbers in it.
        trained: whether it is a parameter, not a buffer.
        reason: why it was left random.
    """

    name: str
    part: Part
    fate: Fate
    size: int
    trained: bool
    reason: str = ""


@dataclass(frozen=True)
class Copied:
    """What became of all weights."""

    weights: tuple[Weight, ...]

    def share(self, part: Part) -> float:
        """Share of a part's parameters that are not random, 0 to 1; 1 for a part without parameters."""
        sizes = [(w.size, w.fate != "left random") for w in self.weights if w.part == part and w.trained]
        total = sum(size for size, _ in sizes)
        return sum(size for size, kept in sizes if kept) / total if total else 1.0

    def table(self) -> list[tuple[Part, Fate, int, int, float]]:
        """Rows of part, fate, tensors, numbers in them, and their share of the part in per cent; without empty rows."""
        rows: list[tuple[Part, Fate, int, int, float]] = []
        parts: tuple[Part, ...] = ("encoder", "rest", "heads")
        fates: tuple[Fate, ...] = ("transferred", "adapted", "left random")
        for part in parts:
            total = sum(w.size for w in self.weights if w.part == part)
            for fate in fates:
                sizes = [w.size for w in self.weights if (w.part, w.fate) == (part, fate)]
                if sizes:
                    rows.append((part, fate, len(sizes), sum(sizes), 100 * sum(sizes) / max(1, total)))
        return rows

    def names(self, fate: Fate) -> list[str]:
        """First names of the weights with a fate."""
        return [weight.name for weight in self.weights if weight.fate == fate]


@torch.no_grad()
def copy_weights(
    network: nn.Module,
    state: Mapping[str, Tensor],
    *,
    channels: tuple[int, int],
    encoder_only: bool = False,
    resampled: Collection[str] = (),
) -> Copied:
    """Copy everything that fits; what does not keeps the network's own values.

    Args:
        network: to be fine-tuned, initialised; changed in place.
        state: of the pre-trained network, under the names of the same architecture.
        channels: of the images, in pre-training and in fine-tuning.
        encoder_only: leave all but ``encoder`` random.
        resampled: names in `state` that were adapted to the patch already.

    Raises:
        UserError: the state has different values under two names of one tensor.
    """
    tensors: dict[int, tuple[Tensor, list[str]]] = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        tensors.setdefault(id(tensor), (tensor, []))[1].append(name)
    has_encoder = isinstance(getattr(network, "encoder", None), nn.Module)
    weights = []
    for tensor, names in tensors.values():
        part = _part(names, has_encoder)
        fate, reason = _copy(tensor, names, part, state, channels, encoder_only, set(resampled))
        weights.append(Weight(names[0], part, fate, tensor.numel(), isinstance(tensor, nn.Parameter), reason))
    return Copied(tuple(weights))


def _part(names: list[str], has_encoder: bool) -> Part:
    if any(HEADS in name for name in names):
        return "heads"
    return "encoder" if has_encoder and any(name.startswith("encoder.") for name in names) else "rest"


def _copy(
    tensor: Tensor,
    names: list[str],
    part: Part,
    state: Mapping[str, Tensor],
    channels: tuple[int, int],
    encoder_only: bool,
    resampled: set[str],
) -> tuple[Fate, str]:
    if part == "heads":
        return "left random", "a head is made for the classes"
    if encoder_only and part != "encoder":
        return "left random", "not asked for"
    given = [(name, state[name]) for name in names if name in state]
    if not given:
        return "left random", "the pre-trained network has none"
    name, value = given[0]
    for other, second in given[1:]:
        if not torch.equal(value, second):
            raise UserError(
                f"{name} and {other} are names of one weight, but have different values in the checkpoint: it was "
                "changed by hand; give it as pre-training wrote it"
            )
    if value.shape == tensor.shape:
        tensor.copy_(value)
        return ("adapted" if name in resampled else "transferred"), ""
    if _is_input(value, tensor, channels):
        tensor.copy_(adapt_channels(value, channels[1]))
        return "adapted", ""
    return "left random", f"{tuple(value.shape)} in the pre-trained network, {tuple(tensor.shape)} here"


def _is_input(value: Tensor, tensor: Tensor, channels: tuple[int, int]) -> bool:
    """Whether the two differ in the number of image channels alone."""
    old, new = channels
    if old == new or value.dim() != 5 or tensor.dim() != 5:
        return False
    theirs, ours = list(value.shape), list(tensor.shape)
    return (theirs.pop(1), ours.pop(1)) == (old, new) and theirs == ours
