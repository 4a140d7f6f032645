"""A step of pre-training beside the supervised step of the same network, on as many crops of the same patch.

    python benchmarks/pretraining.py                     # writes results/pretraining.*; some minutes
    python benchmarks/pretraining.py --networks PlainConvUNet --patch 32 32 32 --rounds 3 -o /tmp

Supervised: forward with deep supervision, nnU-Net's Dice and cross-entropy, backward, clipping, SGD. Masked
autoencoding and Alice: what `nnunet-ext pretrain` does in a step, with its defaults; Alice's crops are pairs, so of two
crops it makes one pair, and its teacher sees both as well. Samples are made beforehand. Times are medians of ratios
within a round; bytes are those kept for the backward pass, without parameters, plus weights, gradients, optimiser and
teacher.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measure
import torch
from plain import plain_network
from pretraining_steps import CLASSES, Build, kept, steps_of
from torch import nn

from nnunet_ext.architectures.sshunet import SSHUNet

RESULTS = Path(__file__).resolve().parent / "results"
CROPS = 2
TARGETS = {"mae": 1.2, "alice": 3.0}
FEATURES = (32, 64, 128, 256, 320)
STRIDES = [[1, 1, 1], *[[2, 2, 2]] * (len(FEATURES) - 1)]


def plain(outputs: int, supervised: bool) -> nn.Module:
    """nnU-Net's PlainConvUNet."""
    return plain_network(FEATURES, STRIDES, outputs, deep_supervision=supervised)


def sshunet(outputs: int, supervised: bool) -> nn.Module:
    """SSH-UNet of the same stages."""
    return SSHUNet(1, len(FEATURES), FEATURES, nn.Conv3d, 3, STRIDES, outputs, deep_supervision=supervised)


NETWORKS: dict[str, Build] = {"PlainConvUNet": plain, "SSHUNet": sshunet}


def compare(name: str, patch: Sequence[int], rounds: int) -> dict[str, Any]:
    """Time and bytes of the three steps."""
    torch.manual_seed(0)
    images = torch.randn(CROPS, 1, *patch)
    steps = steps_of(NETWORKS[name], images)
    bytes_kept = {kind: kept(step, images) for kind, step in steps.items()}
    for step in steps.values():
        step.make()
    seconds = measure.in_turns({kind: step.make for kind, step in steps.items()}, rounds, time.process_time)
    held = {kind: step.held for kind, step in steps.items()}
    total = {kind: bytes_kept[kind] + held[kind] for kind in steps}
    return {
        "network": name,
        "patch": list(patch),
        "seconds": seconds,
        "time": {kind: measure.ratio(seconds, kind, "supervised") for kind in TARGETS},
        "kept": bytes_kept,
        "held": held,
        "memory": {kind: total[kind] / total["supervised"] for kind in TARGETS},
    }


def report(found: Sequence[dict[str, Any]]) -> str:
    """The results in Markdown."""
    header = ("network", "patch", "method", "time", "target", "memory", "kept for backward")
    rows = [
        (
            result["network"],
            " x ".join(map(str, result["patch"])),
            method,
            f"{result['time'][method]:.2f}",
            f"{target} {'met' if result['time'][method] <= target else 'not met'}",
            f"{result['memory'][method]:.2f}",
            f"{result['kept'][method] / result['kept']['supervised']:.2f}",
        )
        for result in found
        for method, target in TARGETS.items()
    ]
    return (
        "# Pre-training beside supervised training\n\n"
        f"Ratios to the supervised step ({CLASSES} classes, deep supervision) of the same network on {CROPS} crops of "
        "the same patch; `alice` makes one pair of them. Memory: kept for the backward pass, and weights, gradients, "
        "optimiser and teacher.\n\n"
        f"{measure.markdown_table(header, rows)}\n\n{measure.environment_list()}\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=tuple(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--patch", type=int, nargs=3, default=[48, 48, 48], help="voxels (default: 48 48 48)")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each (default: 5)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    found = [compare(name, options.patch, options.rounds) for name in options.networks]
    text = report(found)
    print(text)
    measure.write_results(options.output, "pretraining", text, {result["network"]: result for result in found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
