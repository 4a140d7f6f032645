"""What one step of pre-training sees."""

from __future__ import annotations

from dataclasses import dataclass

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
