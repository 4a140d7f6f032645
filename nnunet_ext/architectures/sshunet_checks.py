"""What SSH-UNet accepts: options, lists per stage, gates and patch sizes, with errors that say the way out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from nnunet_ext.architectures.blocks.gates import GATES
from nnunet_ext.architectures.blocks.views import VIEWS, swap_axes
from nnunet_ext.architectures.blocks.volumetric_fusion import DIVISOR as VFN_DIVISOR

CHOICES = {
    "gate": GATES,
    "decoder_block": ("residual", "basic"),
    "fusion": ("sum", "vfn"),
    "vfn_alignment": ("aligned", "legacy"),
    "stride_space": ("volume", "view"),
    "axes": ("zyx", "xyz"),
    "view_execution": ("auto", "batched", "sequential"),
}


def check_choices(conv_op: Any, norm_op: Any, nonlin: Any, **options: str) -> None:
    """Raise if an operator or a named option is not one that SSH-UNet has."""
    if conv_op is nn.Conv2d:
        raise NotImplementedError(
            "SSH-UNet is a 3D network: plan and train 3d_fullres or 3d_lowres; for 2d use an nnU-Net network "
            "(nnUNetTrainer on the 2d configuration of the same plans)."
        )
    for name, got, allowed in (
        ("conv_op", conv_op, nn.Conv3d),
        ("norm_op", norm_op, nn.InstanceNorm3d),
        ("nonlin", nonlin, nn.LeakyReLU),
    ):
        if got is not allowed:
            raise ValueError(f"SSH-UNet: {name} must be {allowed.__module__}.{allowed.__name__}; got {got}.")
    for name, value in options.items():
        if value not in CHOICES[name]:
            *first, last = CHOICES[name]
            raise ValueError(f"SSH-UNet: {name} {value!r} unknown; choose {', '.join(first)} or {last}.")


def per_stage(name: str, values: Any, n_stages: int, dimensions: int = 0) -> list[Any]:
    """A list with one entry a stage: integers, or lists of `dimensions` integers; scalars are repeated.

    Raises:
        ValueError: a wrong length, fewer than 3 stages, or first strides other than ones.
    """
    if n_stages < 3:
        raise ValueError(f"SSH-UNet: at least 3 stages are needed; got n_stages {n_stages}.")
    listed: list[Any] = [values] * n_stages if isinstance(values, int) else list(values)
    if len(listed) != n_stages:
        raise ValueError(f"SSH-UNet: {name} has {len(listed)} entries for {n_stages} stages; give one a stage.")
    if dimensions:
        listed = [[entry] * dimensions if isinstance(entry, int) else [int(v) for v in entry] for entry in listed]
        if any(len(entry) != dimensions or min(entry) < 1 for entry in listed):
            raise ValueError(f"SSH-UNet: every entry of {name} needs {dimensions} positive numbers; got {listed}.")
    if name == "strides" and max(listed[0]) > 1:
        raise ValueError(f"SSH-UNet: strides must start with a stage of ones; got {listed}.")
    if name == "kernel_sizes" and any(k % 2 == 0 for kernel in listed for k in kernel):
        raise ValueError(f"SSH-UNet: kernel sizes must be odd; got {listed}.")
    return listed


def gates_per_stage(
    name: str, gate: str, switches: Sequence[bool] | None, default: Sequence[bool], features: Sequence[int]
) -> list[str]:
    """The gate of every stage, "none" where it is switched off.

    Raises:
        ValueError: a list of the wrong length, or features that the gate cannot split.
    """
    on = list(default if switches is None else switches)
    if len(on) != len(default):
        raise ValueError(f"SSH-UNet: {name} has {len(on)} entries; this network has {len(default)} such stages.")
    for stage, (gated, width) in enumerate(zip(on, features, strict=True)):
        if gated and gate == "gsm" and width % 2:
            raise ValueError(f"SSH-UNet: gsm needs even feature counts; {name} stage {stage} has {width}.")
    return [gate if gated else "none" for gated in on]


def check_patch_size(
    size: Sequence[int],
    strides: Sequence[Sequence[int]],
    stride_space: str,
    vfn_levels: int,
    *,
    supervised: bool,
    cubes_only: bool,
) -> None:
    """Raise a ValueError if (D, H, W) patches of `size` cannot pass the network (specification sshunet 6.5)."""
    shape = tuple(int(n) for n in size)
    if len(shape) != 3:
        raise ValueError(f"SSH-UNet: expected three spatial axes (D, H, W); got a patch of size {shape}.")
    mixed = stride_space == "view" and any(len(set(stride)) > 1 for stride in strides)
    if mixed and supervised:
        raise ValueError(
            f"SSH-UNet: with stride_space 'view' and strides {list(strides)} the views' levels differ in size, so "
            f"deep supervision is impossible; switch it off or use stride_space 'volume'."
        )
    for view in VIEWS if mixed else VIEWS[:1]:
        products = [math.prod(swap_axes(stride, view)[axis] for stride in strides) for axis in range(3)]
        for axis, (n, product) in enumerate(zip(shape, products, strict=True)):
            if n < 1 or n % product:
                below, above = n // product * product, (n // product + 1) * product
                proposal = f"{below} or {above}" if below else f"{above}"
                raise ValueError(
                    f"SSH-UNet: patch size {shape}: axis {axis} must be divisible by {product} (product of its "
                    f"strides {','.join(str(swap_axes(s, view)[axis]) for s in strides)}); use e.g. {proposal}."
                )
        if all(n == product for n, product in zip(shape, products, strict=True)):
            raise ValueError(
                f"SSH-UNet: patch size {shape} with {len(strides)} stages leaves a 1 x 1 x 1 bottleneck; instance "
                f"normalisation needs more than one voxel. Use a larger patch or fewer stages."
            )
    for level in range(vfn_levels):
        factors = [math.prod(stride[axis] for stride in strides[: level + 1]) for axis in range(3)]
        level_size = tuple(n // factor for n, factor in zip(shape, factors, strict=True))
        if any(n % VFN_DIVISOR for n in level_size) or max(level_size) == VFN_DIVISOR:
            place = "" if level == 0 else f" at level {level}, where the patch is {level_size}"
            steps = [math.lcm(f * VFN_DIVISOR, math.prod(s[a] for s in strides)) for a, f in enumerate(factors)]
            fitting = tuple(-(-n // step) * step for n, step in zip(shape, steps, strict=True))
            raise ValueError(
                f"SSH-UNet: VFN fusion needs every patch axis divisible by {VFN_DIVISOR}, and one larger than that"
                f"{place}; got {shape}. Use sum fusion (no _VFN), or another patch_size in the plans: {fitting} is "
                "the next larger one (and needs more memory)."
            )
    if cubes_only and len(set(shape)) > 1:
        raise ValueError(f"SSH-UNet: vfn_alignment 'legacy' works on cubes only; got {shape}.")
