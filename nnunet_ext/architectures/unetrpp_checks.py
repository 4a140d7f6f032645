"""What UNETR++ accepts, with errors that say the way out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from nnunet_ext.architectures.blocks.paired_attention import FUSIONS, LAYOUTS, PROJECTIONS
from nnunet_ext.architectures.grids import total_stride

CHOICES = {"projections": PROJECTIONS, "fusion": FUSIONS, "sa_layout": LAYOUTS}
NORMS = {
    nn.Conv3d: (nn.BatchNorm3d, nn.InstanceNorm3d),
    nn.Conv2d: (nn.BatchNorm2d, nn.InstanceNorm2d),
}


def other_patch(own: Sequence[int], got: Sequence[int]) -> str:
    """The sentence for weights of one patch size and an image or a network of another."""
    return (
        f"UNETR++: the weights are for patches of {tuple(own)} voxels, and this is {tuple(got)}: there are weights for "
        "every position. Predict with the plans that the weights were trained with; or, to fine-tune them on the other "
        "patch size, adapt the checkpoint with `nnunet-ext adapt-patch` and give it to -pretrained_weights."
    )


def other_layout(own: str, got: str) -> str:
    """The sentence for weights of one spatial layout and a network with the other."""
    return (
        f"UNETR++: the weights were trained with sa_layout {own!r} and the network has {got!r}, which orders the "
        f"spatial attention's results otherwise: set sa_layout to {own!r} in the plans' arch_kwargs (published weights "
        "are 'legacy')."
    )


def check_arguments(
    *,
    n_stages: int,
    conv_op: Any,
    norm_op: Any,
    nonlin: Any,
    features_per_stage: Sequence[int],
    strides: Sequence[Sequence[int]],
    encoder: Sequence[Sequence[int]],
    decoder: Sequence[Sequence[int]],
    choices: Mapping[str, str],
    n_res_blocks: int,
    dropouts: Sequence[float],
    slope: float,
) -> None:
    """Raise a ValueError for arguments of `UNETRPP` that do not fit each other.

    `encoder` and `decoder` are blocks, heads and projected tokens of each stage of transformer blocks, `choices` the
    named options, `dropouts` the rates of encoder, decoder and blocks; the others are the network's own arguments.
    """
    if conv_op not in NORMS:
        raise ValueError(f"UNETR++: conv_op must be torch.nn.Conv3d or torch.nn.Conv2d; got {conv_op}.")
    if norm_op not in NORMS[conv_op]:
        allowed = " or ".join(norm.__name__ for norm in NORMS[conv_op])
        raise ValueError(f"UNETR++: norm_op must be torch.nn.{allowed} for {conv_op.__name__}; got {norm_op}.")
    if nonlin is not nn.LeakyReLU:
        raise ValueError(f"UNETR++: nonlin must be torch.nn.LeakyReLU; got {nonlin}.")
    for name, value in choices.items():
        if value not in CHOICES[name]:
            raise ValueError(f"UNETR++: {name} {value!r} unknown; choose {' or '.join(CHOICES[name])}.")
    if n_res_blocks < 1:
        raise ValueError(f"UNETR++: n_res_blocks must be at least 1; got {n_res_blocks}.")
    if not slope > 0:
        raise ValueError(f"UNETR++: the leaky ReLU's negative_slope must be positive; got {slope}.")
    if len(dropouts) != 3 or not all(0 <= rate < 1 for rate in dropouts):
        raise ValueError(
            f"UNETR++: attention_dropout needs two rates and block_dropout one, each at least 0 and below 1; got "
            f"{list(dropouts)}."
        )
    dimensions = 3 if conv_op is nn.Conv3d else 2
    if any(isinstance(s, int) or len(s) != dimensions or min(s) < 1 for s in strides):
        raise ValueError(f"UNETR++: every stride needs {dimensions} positive numbers; got {list(strides)}.")
    _check_stages(n_stages, features_per_stage, strides, encoder, decoder, choices["fusion"])


def _check_stages(
    n_stages: int,
    features: Sequence[int],
    strides: Sequence[Sequence[int]],
    encoder: Sequence[Sequence[int]],
    decoder: Sequence[Sequence[int]],
    fusion: str,
) -> None:
    if n_stages < 3:
        raise ValueError(f"UNETR++: at least 3 stages are needed; got n_stages {n_stages}.")
    wanted: dict[str, tuple[Sequence[Any], int]] = {
        "features_per_stage": (features, n_stages),
        "strides": (strides, n_stages),
    }
    names = ("n_blocks_per_stage", "num_heads", "proj_size")
    wanted |= {name: (values, n_stages - 1) for name, values in zip(names, encoder, strict=True)}
    names = ("n_blocks_per_stage_decoder", "num_heads_decoder", "proj_size_decoder")
    wanted |= {name: (values, n_stages - 2) for name, values in zip(names, decoder, strict=True)}
    for name, (values, count) in wanted.items():
        if len(values) != count or (name != "strides" and min(values) < 1):
            raise ValueError(
                f"UNETR++: {name} needs {count} positive entries for {n_stages} stages; got {list(values)}."
            )
    if max(strides[0]) > 1:
        raise ValueError(f"UNETR++: strides must start with a stage of ones; got {list(strides)}.")
    for widths, heads in ((features[1:], encoder[1]), (features[-2:0:-1], decoder[1])):
        for width, number in zip(widths, heads, strict=True):
            if width % number or (fusion == "concat" and width % 2):
                raise ValueError(
                    f"UNETR++: the widths {list(widths)} must be divisible by the heads {list(heads)}, and by 2 for "
                    "fusion 'concat'."
                )


def check_patch_size(patch_size: Sequence[int], strides: Sequence[Sequence[int]]) -> None:
    """Raise a ValueError if a patch cannot be divided into tokens at every stage (specification unetrpp 6.2)."""
    shape, total = tuple(int(edge) for edge in patch_size), total_stride(strides)
    if len(shape) != len(total):
        raise ValueError(f"UNETR++: expected {len(total)} spatial axes, as the strides have; got patch size {shape}.")
    if any(edge < 1 or edge % step for edge, step in zip(shape, total, strict=True)):
        fitting = tuple(max(1, -(-edge // step)) * step for edge, step in zip(shape, total, strict=True))
        raise ValueError(
            f"UNETR++: patch size {shape} is not divisible by the total stride {total}; use e.g. {fitting}."
        )
