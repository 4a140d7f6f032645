"""Gates that move features between neighbouring slices: TSM, GSM and GSF (specification sshunet 1.6 to 1.8).

A gate is called with the spatial axis along which the current view is sliced, so one set of weights serves the three
views of a volume in (D, H, W) order.

Sources: J. Lin et al., TSM, ICCV 2019; S. Sudhakaran, S. Escalera, O. Lanz, Gate-Shift Networks for Video Action
Recognition, CVPR 2020 (GSM), and Gate-Shift-Fuse for Video Action Recognition, TPAMI 2023 (GSF).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_ext.architectures.blocks.norm_act import norm_act
from nnunet_ext.architectures.blocks.slice_shift import shift, shift_groups
from nnunet_ext.architectures.blocks.views import view_weight

GATES = ("tsm", "gsm", "gsf", "none")


class SliceShift(nn.Module):
    """TSM: the first C // fold_div channels move to the next slice, as many last ones to the previous one.

    Args:
        channels: C, at least `fold_div`.
        fold_div: the inverse share of channels that move in each direction.

    Raises:
        ValueError: fewer channels than `fold_div`, which would move nothing.
    """

    def __init__(self, channels: int, fold_div: int = 4) -> None:
        super().__init__()
        self.fold = channels // fold_div
        if self.fold == 0:
            raise ValueError(f"tsm needs at least {fold_div} channels (tsm_fold_div); got {channels}.")

    def fold_along(self, size: int) -> int:
        """Channels that move in each direction when the slice axis has `size` slices: none if there is only one."""
        return self.fold if size > 1 else 0

    def forward(self, x: Tensor, axis: int) -> Tensor:
        """x: (B, C, D, H, W), sliced along spatial `axis`; returns a new tensor of the same shape."""
        return shift_groups(x, axis, self.fold_along(x.shape[2 + axis]))


class GateShift(nn.Module):
    """GSM: a tanh gate decides how much of every feature moves; one half of the channels up, the other down.

    Args:
        channels: C, even.
        decoder: reverses both directions, as in the published decoder.

    Raises:
        ValueError: an odd number of channels.
    """

    def __init__(self, channels: int, decoder: bool = False) -> None:
        super().__init__()
        if channels % 2 or channels == 0:
            raise ValueError(f"gsm needs even feature counts; got {channels}.")
        self.step = 1 if decoder else -1
        self.conv = nn.Conv3d(channels, 2, 3, padding=1, groups=2)

    def gate_map(self, x: Tensor, axis: int) -> Tensor:
        """The gate of both halves, (B, 2, D, H, W), in (-1, 1); x: (B, C, D, H, W) sliced along spatial `axis`."""
        normalised = norm_act(x, slope=0.1, overwrite=False)
        weight = view_weight(self.conv.weight, axis, x)
        return torch.tanh(functional.conv3d(normalised, weight, self.conv.bias, padding=1, groups=2))

    def moved_and_rest(self, x: Tensor, axis: int) -> tuple[list[Tensor], list[Tensor]]:
        """For both halves the gated features after their shift, and the features that stay; (B, C / 2, D, H, W)."""
        return self.split_by_gate(x, self.gate_map(x, axis), axis)

    def split_by_gate(self, x: Tensor, gates: Tensor, axis: int) -> tuple[list[Tensor], list[Tensor]]:
        """`moved_and_rest` of x (B, C, D, H, W) under gates (B, 2, D, H, W)."""
        moved, rest = [], []
        for half, gate, step in zip(x.chunk(2, dim=1), gates.split(1, dim=1), (self.step, -self.step), strict=True):
            gated = gate * half
            moved.append(shift(gated, axis, step))
            rest.append(half - gated)
        return moved, rest

    def forward(self, x: Tensor, axis: int) -> Tensor:
        """x: (B, C, D, H, W), sliced along spatial `axis`; returns a new tensor of the same shape."""
        if x.shape[2 + axis] == 1:
            return x
        moved, rest = self.moved_and_rest(x, axis)
        return torch.cat([m + r for m, r in zip(moved, rest, strict=True)], dim=1)


class GateShiftFuse(GateShift):
    """GSF: as GSM on the first `ratio` of the channels, fused with what stayed by a learned weight per slice.

    Args:
        channels: C; the gated part is floor(ratio * C), one more if that is odd.
        decoder: reverses both directions, as in the published decoder.
        ratio: share of the channels that are gated, in (0, 1].

    Raises:
        ValueError: no channel would be gated, or more than there are.
    """

    def __init__(self, channels: int, decoder: bool = False, ratio: float = 0.25) -> None:
        gated = int(channels * ratio)
        gated += gated % 2
        if not 0 < gated <= channels:
            raise ValueError(
                f"gsf gates floor(gsf_ratio * features) channels, rounded up to an even number; {channels} features "
                f"with ratio {ratio} give {gated}. Use more features or another ratio in (0, 1]."
            )
        super().__init__(gated, decoder)
        self.gated = gated
        self.fuse1 = nn.Conv2d(2, 1, 3, padding=1)
        self.fuse2 = nn.Conv2d(2, 1, 3, padding=1)

    def gate_map(self, x: Tensor, axis: int) -> Tensor:
        """The gate of both gated halves, (B, 2, D, H, W), in (-1, 1); x: (B, C, D, H, W)."""
        return super().gate_map(x[:, : self.gated], axis)

    def forward(self, x: Tensor, axis: int) -> Tensor:
        """x: (B, C, D, H, W), sliced along spatial `axis`; returns a new tensor of the same shape."""
        if x.shape[2 + axis] == 1:
            return x
        plane = [2 + a for a in range(3) if a != axis]
        fused = []
        pairs = zip(*self.moved_and_rest(x, axis), (self.fuse1, self.fuse2), strict=True)
        for moved, rest, fuse in pairs:
            # Sums over a whole plane overflow float16, so the means are float32; (B, 2, C / 2, slices).
            means = torch.stack([moved.mean(plane, dtype=_wide(x)), rest.mean(plane, dtype=_wide(x))], dim=1)
            weight = torch.sigmoid(fuse(means.to(x.dtype)))[:, 0].to(x.dtype)
            for dim in plane:
                weight = weight.unsqueeze(dim)
            fused.append(rest + weight * (moved - rest))
        return torch.cat([*fused, x[:, self.gated :]], dim=1)

    def moved_and_rest(self, x: Tensor, axis: int) -> tuple[list[Tensor], list[Tensor]]:
        """As for GSM, of the gated channels only."""
        gates = self.gate_map(x, axis)
        return self.split_by_gate(x[:, : self.gated], gates, axis)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def make_gate(
    kind: str, channels: int, *, decoder: bool = False, fold_div: int = 4, ratio: float = 0.25
) -> SliceShift | GateShift | None:
    """The gate called `kind` for `channels` feature maps; None for "none".

    Raises:
        ValueError: an unknown kind, or channels that the gate cannot split.
    """
    if kind == "tsm":
        return SliceShift(channels, fold_div)
    if kind == "gsm":
        return GateShift(channels, decoder)
    if kind == "gsf":
        return GateShiftFuse(channels, decoder, ratio)
    if kind == "none":
        return None
    raise ValueError(f"gate {kind!r} unknown; choose {', '.join(GATES[:-1])} or {GATES[-1]}.")
