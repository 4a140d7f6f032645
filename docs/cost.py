"""What SSH-UNet costs beside nnU-Net's PlainConvUNet of the same widths: parameters, arithmetic, memory.

python docs/cost.py                       # published widths, 96^3, 14 classes, batch 2
python docs/cost.py --size 128 --classes 3

Everything runs on torch's meta device: shapes only, no memory and no arithmetic.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from nnunet_ext.architectures.blocks.memory import saved_bytes
from nnunet_ext.architectures.sshunet import SSHUNet

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


def main() -> None:
    """Measure and write a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=96, help="edge of the cubic patch in voxels (default: 96)")
    parser.add_argument("--classes", type=int, default=14, help="with the background (default: 14)")
    options = parser.parse_args()
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
