"""The architecture block of SSH-UNet in nnU-Net plans, shared by its planner, its trainer and its importer.

No torch here: planners and command-line verbs read it without paying for the import of the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

NETWORK_CLASS = "nnunet_ext.architectures.sshunet.SSHUNet"
BASE_WIDTH = 32
MAX_WIDTH = 320


def default_features(n_stages: int, base_width: int = BASE_WIDTH) -> list[int]:
    """Feature maps per stage, highest resolution first: the width doubles and is capped at ten times the base.

    With the published base width of 32 this is 32, 64, 128, 256, 320, 320, ... (specification sshunet 1.3).
    """
    cap = base_width * (MAX_WIDTH // BASE_WIDTH)
    return [min(base_width * 2**stage, cap) for stage in range(n_stages)]


def sshunet_architecture(
    strides: Sequence[Sequence[int]],
    features_per_stage: Sequence[int] | None = None,
    *,
    base_width: int = BASE_WIDTH,
    kernel_sizes: Sequence[Sequence[int]] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Build the `architecture` block of a plans file for SSH-UNet.

    Args:
        strides: one (D, H, W) stride a stage, the first all ones, as nnU-Net plans them.
        features_per_stage: feature maps per stage; `default_features` if None.
        base_width: the first stage's width when `features_per_stage` is None.
        kernel_sizes: one (slice, row, column) kernel a stage in view coordinates; 1 x 3 x 3 everywhere if None.
        **options: further keyword arguments of `SSHUNet` (`gate`, `fusion`, ...), JSON values only.

    Returns:
        `network_class_name`, `arch_kwargs` and `_kw_requires_import`, JSON values only.
    """
    n_stages = len(strides)
    features = default_features(n_stages, base_width) if features_per_stage is None else list(features_per_stage)
    kernels = [[1, 3, 3]] * n_stages if kernel_sizes is None else kernel_sizes
    arch_kwargs: dict[str, Any] = {
        "n_stages": n_stages,
        "features_per_stage": [int(f) for f in features],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[int(k) for k in kernel] for kernel in kernels],
        "strides": [[int(s) for s in stride] for stride in strides],
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": False},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
        "gate": "tsm",
        "fusion": "sum",
    }
    arch_kwargs.update(options)
    return {
        "network_class_name": NETWORK_CLASS,
        "arch_kwargs": arch_kwargs,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
