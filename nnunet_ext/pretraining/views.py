"""What one step of pre-training sees."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Views:
    """V views of each of B samples, cut from preprocessed volumes: view 0 of all samples first, then view 1.

    Attributes:
        images: (V*B, C, *patch) float32, augmented intensities: what the student sees, before masking.
        clean: (V*B, C, *patch) float32, the same voxels before augmentation: what is to be reconstructed.
        hidden: (V*B, 1, *grid) bool on the images' device, True = hidden; grid = patch / mask block.
        shift: (B, 3) float32: centre of view 1 minus centre of view 0 in voxels of the preprocessed array, for two
            views of one volume ("overlap" pairs); NaN for anatomical pairs (two volumes) and with one view.
    """

    images: Tensor
    clean: Tensor
    hidden: Tensor
    shift: Tensor

    def on(self, device: torch.device) -> Views:
        """The same on a device."""
        return Views(*(part.to(device, non_blocking=True) for part in self._parts()))

    def pin_memory(self) -> Views:
        """The same in pinned memory; `DataLoader` asks for it by this name."""
        return Views(*(part.pin_memory() for part in self._parts()))

    def _parts(self) -> tuple[Tensor, ...]:
        return self.images, self.clean, self.hidden, self.shift
