"""What our networks cost beside nnU-Net's PlainConvUNet: parameters, arithmetic, memory.

python docs/cost.py                       # SSH-UNet: published widths, 96^3, 14 classes, batch 2
python docs/cost.py --size 128 --classes 3
python docs/cost.py --method unetrpp      # the published UNETR++ networks and new plans, each at its patch, batch 2

Everything runs on torch's meta device: shapes only, no memory and no arithmetic.
"""

from __future__ import annotations

import argparse
import pydoc
import sys
from collections.abc import Sequence
from typing import Any

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from nnunet_ext.architectures.blocks.memory import saved_bytes
from nnunet_ext.architectures.sshunet import SSHUNet
from nnunet_ext.architectures.unetrpp import UNETRPP
from nnunet_ext.architectures.unetrpp_plans import (
    PRESETS,
    fitting_topology,
    preset_architecture,
    unetrpp_architecture,
)

FEATURES = [32, 64, 128, 256, 320]
STRIDES = [[1, 1, 1]] + [[2, 2, 2]] * 4
VARIANTS: dict[str, dict[str, Any]] = {
    "SSH-UNet, TSM": {},
    "SSH-UNet, GSM": {"gate": "gsm"},
    "SSH-UNet, GSF": {"gate": "gsf"},
    "SSH-UNet, TSM and VFN": {"fusion": "vfn"},
}


class Convolutions(TorchDispatchMode):
    """Counts the multiply-accumulates of convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default:
            x, weight, transposed = args[0], args[1], args[6]
            positions = (x if transposed else out)[:, :1].numel()
            self.macs += positions * weight.numel()
        return out


def networks(classes: int) -> dict[str, nn.Module]:
    """Rows of the table; on the meta device."""
    with torch.device("meta"):
        plain = PlainConvUNet(
            1, 5, FEATURES, nn.Conv3d, 3, STRIDES, 2, classes, 2, conv_bias=True, norm_op=nn.InstanceNorm3d,
            norm_op_kwargs={"affine": True}, nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True},
        )  # fmt: skip
        kernels = [[1, 3, 3]] * 5
        ours = {
            name: SSHUNet(1, 5, FEATURES, nn.Conv3d, kernels, STRIDES, classes, **options)
            for name, options in VARIANTS.items()
        }
    return {"PlainConvUNet": plain, **ours}


def plain_at(patch: Sequence[int], channels: int, classes: int) -> nn.Module:
    """The network that nnU-Net's default planner would put into plans with this patch; on the meta device."""
    spacing = [1.0] * len(patch)
    _, strides, kernels, _, _ = get_pool_and_conv_props(spacing, list(patch), 4, 999999)
    features = [min(320, 32 * 2**stage) for stage in range(len(strides))]
    with torch.device("meta"):
        return PlainConvUNet(
            channels, len(strides), features, nn.Conv3d, kernels, strides, 2, classes, 2, conv_bias=True,
            norm_op=nn.InstanceNorm3d, norm_op_kwargs={"affine": True}, nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
        )  # fmt: skip


def arithmetic(network: nn.Module, image: torch.Tensor) -> float:
    """Multiply-accumulates of a forward pass (convolutions and matrix products), in 1e9."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(image)
    return counter.get_total_flops() / 2e9


def unetrpp_table() -> list[str]:
    """Rows for the published networks, and for new plans at the same patches, beside nnU-Net's network there."""
    rows = ["| | patch | parameters | MACs (G) | kept for backward, batch 2 (GiB) | MACs, kept to PlainConvUNet |"]
    rows.append("| --- | --- | --- | --- | --- | --- |")
    for name, preset in PRESETS.items():
        blocks = {f"{name}, published": preset_architecture(name)}
        patch, strides = fitting_topology(preset.patch_size)
        blocks[f"{name}, new plans"] = unetrpp_architecture(patch, strides)
        image = torch.empty(1, preset.input_channels, *patch, device="meta")
        plain = plain_at(patch, preset.input_channels, preset.classes)
        reference = arithmetic(plain, image), saved_bytes(plain, patch, preset.input_channels, 2)
        for title, block in blocks.items():
            network = _built(block, preset.input_channels, preset.classes)
            count = sum(p.numel() for key, p in network.named_parameters() if "seg_layers.0" not in key)
            cost = arithmetic(network, image), saved_bytes(network, patch, preset.input_channels, 2)
            ratios = ", ".join(f"{a / b:.2f}" for a, b in zip(cost, reference, strict=True))
            size = " x ".join(map(str, patch))
            rows.append(f"| {title} | {size} | {count:,} | {cost[0]:.0f} | {cost[1] / 2**30:.2f} | {ratios} |")
    return rows


def _built(block: dict[str, Any], channels: int, classes: int) -> nn.Module:
    arguments: dict[str, Any] = dict(block["arch_kwargs"])
    for name in block["_kw_requires_import"]:
        arguments[name] = pydoc.locate(arguments[name])
    with torch.device("meta"):
        return UNETRPP(input_channels=channels, num_classes=classes, **arguments)


def main() -> None:
    """Measure and write a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=96, help="edge of the cubic patch in voxels (default: 96)")
    parser.add_argument("--classes", type=int, default=14, help="with the background (default: 14)")
    parser.add_argument("--method", choices=("sshunet", "unetrpp"), default="sshunet", help="default: sshunet")
    options = parser.parse_args()
    if options.method == "unetrpp":
        sys.stdout.write("\n".join(unetrpp_table()) + "\n")
        return
    size = (options.size,) * 3
    rows = ["| | parameters | MACs of the convolutions (G) | kept for backward, batch 2 (GiB) | to plain |"]
    rows.append("| --- | --- | --- | --- | --- |")
    plain = 0
    for name, network in networks(options.classes).items():
        with torch.no_grad(), Convolutions() as counted:
            network.eval()(torch.empty(1, 1, *size, device="meta"))
        used = [p.numel() for key, p in network.named_parameters() if not _auxiliary(key)]
        kept = saved_bytes(network, size, input_channels=1, batch_size=2)
        plain = plain or kept
        cells = (name, f"{sum(used):,}", f"{counted.macs / 1e9:.0f}", f"{kept / 2**30:.2f}", f"{kept / plain:.2f}")
        rows.append(f"| {' | '.join(cells)} |")
    sys.stdout.write("\n".join(rows) + "\n")


def _auxiliary(key: str) -> bool:
    """Whether a parameter belongs to a head of deep supervision below full resolution."""
    full = len(FEATURES) - 2
    parts = key.split(".")
    heads = parts[:2] in (["decoder", "seg_layers"], ["decoder", "fusion"])
    return heads and int(parts[2]) != full


if __name__ == "__main__":
    main()
