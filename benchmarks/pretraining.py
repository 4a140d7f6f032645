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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from plain import plain_network
from torch import Tensor, nn

from nnunet_ext.architectures.sshunet import SSHUNet
from nnunet_ext.pretraining.adapters import make_adapter
from nnunet_ext.pretraining.alice import Alice
from nnunet_ext.pretraining.alice_options import AliceOptions
from nnunet_ext.pretraining.mae import MaskedAutoencoder
from nnunet_ext.pretraining.masks import draw_hidden, mask_block, mask_grid
from nnunet_ext.pretraining.objectives import Objective
from nnunet_ext.pretraining.optimisation import Optimisation, default_optimiser
from nnunet_ext.pretraining.settings import Settings
from nnunet_ext.pretraining.unused import freeze_unused
from nnunet_ext.pretraining.views import Views

RESULTS = Path(__file__).resolve().parent / "results"
CLASSES, CROPS = 14, 2
TARGETS = {"mae": 1.2, "alice": 3.0}
FEATURES = (32, 64, 128, 256, 320)


def strides(stages: int) -> list[list[int]]:
    """Halving at every stage but the first."""
    return [[1, 1, 1], *[[2, 2, 2]] * (stages - 1)]


def plain(outputs: int, supervised: bool) -> nn.Module:
    """nnU-Net's PlainConvUNet."""
    return plain_network(FEATURES, strides(len(FEATURES)), outputs, deep_supervision=supervised)


def sshunet(outputs: int, supervised: bool) -> nn.Module:
    """SSH-UNet of as many stages."""
    return SSHUNet(
        1, len(FEATURES), FEATURES, nn.Conv3d, 3, strides(len(FEATURES)), outputs, deep_supervision=supervised
    )


NETWORKS: dict[str, Callable[[int, bool], nn.Module]] = {"PlainConvUNet": plain, "SSHUNet": sshunet}


def settings(method: str, network: nn.Module, patch: Sequence[int], block: Sequence[int]) -> Settings:
    """Those of `nnunet-ext pretrain` without options."""
    optimiser, rate, clip = default_optimiser(method, network, CROPS)
    return Settings(
        method=method,
        trainer="nnUNetTrainer",
        steps=1000,
        batch_size=CROPS if method == "mae" else CROPS // 2,
        patch_size=tuple(patch),
        mask_block=tuple(block),
        mask_ratio=0.75,
        mask_style="blocks",
        augment=True,
        visible_weight=0.0,
        landmarks="overlap",
        anatomical_share=0.0,
        shuffled=False,
        optimiser=optimiser,
        learning_rate=rate,
        clip=clip,
        precision="off",
        checkpointing=False,
        seed=0,
        alice={},
    )


def supervised_step(network: nn.Module, images: Tensor) -> tuple[Callable[[], None], Callable[[], Tensor], int]:
    """nnU-Net's step; its forward pass and loss alone; bytes of weights, gradients and momentum."""
    loss = DeepSupervisionWrapper(
        DC_and_CE_loss(
            {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False},
            {},
            dice_class=MemoryEfficientSoftDiceLoss,
        ),
        [0.5**i for i in range(len(FEATURES) - 1)],
    )
    labels = torch.randint(0, CLASSES, (images.shape[0], 1, *images.shape[2:])).float()
    targets = [labels[..., :: 2**i, :: 2**i, :: 2**i] for i in range(len(FEATURES) - 1)]
    step = measure.training_step(network, images, lambda outputs: loss(outputs, targets))
    return step, lambda: loss(network(images), targets), 12 * sum(p.numel() for p in network.parameters())


def pretraining_step(
    method: str, network: nn.Module, images: Tensor
) -> tuple[Callable[[], None], Callable[[], Tensor], int]:
    """A step of a method; its forward pass and loss alone; bytes of weights, gradients, optimiser and teacher."""
    patch = images.shape[2:]
    adapter = make_adapter(network, 1, patch)
    block = mask_block(patch, (1, 1, 1), adapter.total_stride)
    objective: Objective
    objective = MaskedAutoencoder(adapter) if method == "mae" else Alice(adapter, 1000, AliceOptions())
    freeze_unused(objective.student, 1, patch)
    grid = mask_grid(patch, block)
    hidden = np.stack([draw_hidden(np.random.default_rng(i), grid, 0.75)[None] for i in range(len(images))])
    shift = torch.full((len(images) // objective.views, 3), float("nan") if method == "mae" else 4.0)
    views = Views(images, images, torch.from_numpy(hidden), shift)
    optimisation = Optimisation(objective.student, settings(method, network, patch, block), images.device)
    objective.student.train()
    number = [100]

    def forward() -> Tensor:
        return objective.losses(objective.student, views, number[0])["loss"]

    def step() -> None:
        optimisation.step(forward(), number[0])
        objective.after_step(number[0])
        number[0] += 1

    trained = sum(p.numel() for p in optimisation.parameters)
    everything = sum(value.numel() for value in _tensors(objective.state_dict()))
    states = 2 if optimisation.settings.optimiser == "adamw" else 1
    return step, forward, 4 * (everything + (1 + states) * trained)


def _tensors(state: Any) -> list[Tensor]:
    """All tensors of a state, those with several names once."""
    found: dict[int, Tensor] = {}

    def collect(value: Any) -> None:
        if isinstance(value, Tensor):
            found[value.data_ptr()] = value
        elif isinstance(value, dict):
            for part in value.values():
                collect(part)

    collect(state)
    return list(found.values())


def kept(forward: Callable[[], Tensor], images: Tensor, modules: Sequence[nn.Module]) -> int:
    """Bytes that a forward pass keeps for the backward pass."""
    with measure.KeptForBackward([images, *(p for module in modules for p in module.parameters())]) as counted:
        forward()
    return counted.bytes


def compare(name: str, patch: Sequence[int], rounds: int) -> dict[str, Any]:
    """Time and bytes of the three steps."""
    torch.manual_seed(0)
    images = torch.randn(CROPS, 1, *patch)
    networks = {kind: NETWORKS[name](outputs, kind == "supervised") for kind, outputs in _OUTPUTS.items()}
    made = {
        kind: supervised_step(network, images) if kind == "supervised" else pretraining_step(kind, network, images)
        for kind, network in networks.items()
    }
    bytes_kept = {kind: kept(forward, images, [networks[kind]]) for kind, (_, forward, _) in made.items()}
    for step, _, _ in made.values():
        step()
    seconds = measure.in_turns({kind: step for kind, (step, _, _) in made.items()}, rounds, time.process_time)
    return {
        "network": name,
        "patch": list(patch),
        "seconds": seconds,
        "time": {kind: measure.ratio(seconds, kind, "supervised") for kind in TARGETS},
        "kept": bytes_kept,
        "held": {kind: states for kind, (_, _, states) in made.items()},
        "memory": {
            kind: (bytes_kept[kind] + made[kind][2]) / (bytes_kept["supervised"] + made["supervised"][2])
            for kind in TARGETS
        },
    }


_OUTPUTS = {"supervised": CLASSES, "mae": 1, "alice": 1}


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
    parser.add_argument("--patch", type=int, nargs=3, default=[64, 64, 64], help="voxels (default: 64 64 64)")
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
