"""timm's Swin block for maps of any size: windows are filled up, and what fills them is not attended to.

Z. Liu et al., Swin Transformer: Hierarchical Vision Transformer using Shifted Windows, ICCV 2021, arXiv 2103.14030
(timm: Apache-2.0). Parameters keep the names of the official code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.models.swin_transformer import SwinTransformerBlock, window_partition, window_reverse
from torch import Tensor, nn
from torch.nn import functional as F

SEPARATED = -100.0  # added to the logits of pairs that do not attend to each other, as in the official code


def shifts_of(size: Sequence[int], window: int, shifted: bool) -> tuple[int, int]:
    """By how many positions windows are shifted, an axis; not at all where one window spans it (official code)."""
    rows, columns = (window // 2 if shifted and edge > window else 0 for edge in size)
    return rows, columns


def window_mask(
    size: Sequence[int], window: int, shifts: Sequence[int], device: torch.device | None = None
) -> Tensor | None:
    """What is added to attention logits inside windows, or None where nothing has to be kept apart.

    Positions that became neighbours by the cyclic shift do not attend to each other, and none to positions that only
    fill the last windows. The official code has no such filling; detection code built on it attends to the zeros.

    Args:
        size: (H, W) of the map.
        window: positions along each axis of a window.
        shifts: of the map, an axis.
        device: of the result.

    Returns:
        (windows, window ** 2, window ** 2), float32.
    """
    regions = []
    for edge, shift in zip(size, shifts, strict=True):
        position = torch.arange(-(-edge // window) * window, device=device)
        regions.append((position >= edge - shift).float() + (position >= edge).float())
    if not any(shifts) and not any(edge % window for edge in size):
        return None
    region = 3 * regions[0][:, None] + regions[1][None, :]
    region = window_partition(region[None, :, :, None], (window, window)).reshape(-1, window * window)
    different = region[:, None, :] != region[:, :, None]
    return torch.zeros_like(different, dtype=torch.float32).masked_fill(different, SEPARATED)


class SwinBlock(SwinTransformerBlock):
    """Window attention and an MLP, each with its residual connection, on maps (B, H, W, C) of any size.

    Args:
        width: C.
        size: (H, W) for which the mask is prepared; for others it is made in the forward pass.
        heads: of the attention.
        window: positions along each axis of a window.
        shifted: whether windows are shifted by half their edge, along axes longer than a window.
        mlp_ratio: width of the MLP by C.
        drop_path: rate at which each of the two branches is dropped for a sample, in training.
    """

    prepared_mask: Tensor | None

    def __init__(
        self,
        width: int,
        size: Sequence[int],
        heads: int,
        window: int,
        shifted: bool,
        mlp_ratio: float,
        drop_path: float,
    ) -> None:
        super().__init__(width, (window, window), heads, window_size=window, mlp_ratio=mlp_ratio, drop_path=drop_path)
        self.attn.fused_attn = False  # whatever timm's environment variables say: memory is measured for this form
        self.window, self.shifted = window, shifted
        self.prepared_size = (int(size[0]), int(size[1]))
        shifts = shifts_of(self.prepared_size, window, shifted)
        self.register_buffer("prepared_mask", window_mask(self.prepared_size, window, shifts), persistent=False)

    def _attn(self, x: Tensor) -> Tensor:
        """Attention within windows; x: (B, H, W, C), normalised. Overrides timm's, which calls it in `forward`."""
        height, width = x.shape[1], x.shape[2]
        window = (self.window, self.window)
        shifts = shifts_of((height, width), self.window, self.shifted)
        if (height, width) == self.prepared_size:
            mask = self.prepared_mask
        else:
            mask = window_mask((height, width), self.window, shifts, x.device)
        if any(shifts):
            x = torch.roll(x, (-shifts[0], -shifts[1]), (1, 2))
        fill = (-height % self.window, -width % self.window)
        if any(fill):
            x = F.pad(x, (0, 0, 0, fill[1], 0, fill[0]))
        filled = (x.shape[1], x.shape[2])
        windows = window_partition(x, window).view(-1, self.window**2, x.shape[3])
        windows = self.attn(windows, mask=mask).view(-1, *window, x.shape[3])
        x = window_reverse(windows, window, *filled)
        if any(fill):
            x = x[:, :height, :width]
        return torch.roll(x, shifts, (1, 2)) if any(shifts) else x


class PatchExpand(nn.Module):
    """Tokens to `factor` times the resolution along both axes; `divisor` tells how much narrower they get.

    Reference: Swin-Unet, H. Cao et al., arXiv 2105.05537; specification selfreg 2.2.
    """

    def __init__(self, width: int, factor: int, divisor: int) -> None:
        super().__init__()
        self.factor, self.outputs = factor, width // divisor
        self.expand = nn.Linear(width, factor**2 * self.outputs, bias=False)
        self.norm = nn.LayerNorm(self.outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, factor * H, factor * W, C / divisor)."""
        batch, height, width, _ = x.shape
        f = self.factor
        x = self.expand(x).view(batch, height, width, f, f, self.outputs)
        x = x.transpose(2, 3).reshape(batch, f * height, f * width, self.outputs)
        expanded: Tensor = self.norm(x)
        return expanded
