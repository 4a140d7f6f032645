"""Small Swin-Unets, and backbones of Swin-T's kind in the layouts of its sources."""

from __future__ import annotations

from typing import Any

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import Tensor

from nnunet_ext.architectures.swinunet_plans import swinunet_architecture

WIDTH = 8
HEADS = (1, 2, 2, 4)


def block(patch: tuple[int, int] = (32, 32), **options: Any) -> dict[str, Any]:
    """The plans' block of a small network; `base_width` and `blocks` may be given, too."""
    options = {"base_width": WIDTH, **options}
    heads = {} if "blocks" in options else {"num_heads": list(HEADS)}
    return swinunet_architecture(patch, **{**heads, **options})


def network(patch: tuple[int, int] = (32, 32), channels: int = 1, classes: int = 3, **options: Any) -> Any:
    """The network, as nnU-Net builds it, with parameters that all matter."""
    torch.manual_seed(0)
    made = block(patch, **options)
    built = get_network_from_plans(
        made["network_class_name"],
        made["arch_kwargs"],
        made["_kw_requires_import"],
        channels,
        classes,
        allow_init=True,
        deep_supervision=False,
    )
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return built.eval()


def backbone(source: str, depths: tuple[int, ...] = (2, 2, 2, 2)) -> tuple[Any, dict[str, Tensor]]:
    """A backbone of that source with random weights, for 224 x 224 pixels, and its state dict."""
    torch.manual_seed(1)
    made: Any
    if source == "torchvision":
        from torchvision.models.swin_transformer import SwinTransformer

        made = SwinTransformer([4, 4], WIDTH, list(depths), list(HEADS), [7, 7], num_classes=10)
        return made.eval(), dict(made.state_dict())
    from timm.models.swin_transformer import SwinTransformer as TimmSwin

    made = TimmSwin(img_size=224, embed_dim=WIDTH, depths=depths, num_heads=HEADS, window_size=7, num_classes=10)
    state = dict(made.state_dict())
    return made.eval(), state if source == "timm" else official(state)


def official(timm_state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of the official repository, with its constants."""
    state = {}
    for key, value in timm_state.items():
        parts = key.split(".")
        if len(parts) > 2 and parts[2] == "downsample":
            parts[1] = str(int(parts[1]) - 1)
        state[".".join(parts).replace("head.fc.", "head.")] = value
    state["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    state["layers.0.blocks.1.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.int64)
    return state


def encoded(source: str, made: Any, image: Tensor) -> Tensor:
    """The backbone's last features after its norm, (B, H, W, C)."""
    with torch.no_grad():
        features: Tensor = made.norm(made.features(image)) if source == "torchvision" else made.forward_features(image)
    return features


def published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our network's weights by the published names."""
    return {key.replace("decoder.seg_layers.0", "output"): value for key, value in state.items()}
