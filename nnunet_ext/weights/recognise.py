"""Whose network a checkpoint holds, from the names of its weights: for error messages."""

from __future__ import annotations

from collections.abc import Iterable

_NETWORKS = {
    "encoder.stages.": "nnU-Net's own networks",
    "conv_blocks_context.": "nnU-Net v1's own networks",
    "unetr_pp_encoder.": "UNETR++",
    "skip_layers.": "SSH-UNet or MONAI's DynUNet",
    "input_block.": "SSH-UNet or MONAI's DynUNet",
    "model_down.": "nnFormer (import-weights nnformer)",
    "swinViT.": "Swin UNETR",
    "vit.": "UNETR",
    "inc.double_conv.": "the plain 2D U-Net of SelfReg-UNet (import-weights unet2d)",
    "swin_unet.": "Swin-Unet (import-weights swinunet)",
    "decoder.blocks.0.cnb_1.": "OSS-Net (import-weights ossnet)",
    "concat_back_dim.": "Swin-Unet (import-weights swinunet)",
}
"""Start of a name -> the network that has such."""


def looks_like(names: Iterable[str]) -> str:
    """End of a sentence: "; its names look like ...'s", or nothing."""
    names = list(names)
    known = next((network for start, network in _NETWORKS.items() if any(n.startswith(start) for n in names)), None)
    return "" if known is None else f"; its names look like {known}"
