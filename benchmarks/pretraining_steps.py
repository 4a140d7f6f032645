"""Steps of pre-training and of supervised training of the same network, for `pretraining.py` and `gpu.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import measure
import numpy as np
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor, nn

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

CLASSES = 14
METHODS = ("mae", "alice")
Build = Callable[[int, bool], nn.Module]
"""Makes a network of so many outputs, with deep supervision or without."""


class Step(NamedTuple):
    """A training step.

    Attributes:
        make: one whole step.
        forward: its forward pass and loss alone.
        held: bytes of weights, gradients, optimiser and teacher, in float32.
        network: the network itself.
    """

    make: Callable[[], None]
    forward: Callable[[], Tensor]
    held: int
    network: nn.Module


def steps_of(build: Build, images: Tensor, precision: str = "off") -> dict[str, Step]:
    """The three steps, each with a network of its own.

    Args:
        build: makes the network.
        images: (B, 1, *patch), B even, on the device to be used.
        precision: "off", "fp16" or "bf16".
    """
    made = {}
    for kind in ("supervised", *METHODS):
        torch.manual_seed(0)
        network = build(CLASSES if kind == "supervised" else 1, kind == "supervised").to(images.device)
        made[kind] = (
            supervised(network, images, precision)
            if kind == "supervised"
            else pretraining(kind, network, images, precision)
        )
    return made


def settings(method: str, network: nn.Module, images: Tensor, block: Sequence[int], precision: str) -> Settings:
    """Those of `nnunet-ext pretrain` without options."""
    batch = len(images) if method == "mae" else len(images) // 2
    optimiser, rate, clip = default_optimiser(method, network, batch)
    return Settings(
        method=method,
        trainer="nnUNetTrainer",
        steps=1000,
        batch_size=batch,
        patch_size=tuple(images.shape[2:]),
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
        precision=precision,
        checkpointing=False,
        seed=0,
        alice={},
    )


def supervised(network: nn.Module, images: Tensor, precision: str = "off") -> Step:
    """nnU-Net's step: Dice and cross-entropy at all scales, clipping, SGD."""
    with torch.no_grad():
        scales = [output.shape[2:] for output in network(images[:1])]
    loss = DeepSupervisionWrapper(
        DC_and_CE_loss(
            {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False},
            {},
            dice_class=MemoryEfficientSoftDiceLoss,
        ),
        [0.5**i for i in range(len(scales))],
    )
    targets = [
        torch.randint(0, CLASSES, (len(images), 1, *size), device=images.device, dtype=torch.float32) for size in scales
    ]
    amp = precision != "off"
    make = measure.training_step(network, images, lambda outputs: loss(outputs, targets), amp=amp)

    def forward() -> Tensor:
        with torch.autocast(images.device.type, torch.float16, enabled=amp):
            value: Tensor = loss(network(images), targets)
        return value

    return Step(make, forward, 12 * sum(p.numel() for p in network.parameters()), network)


def pretraining(method: str, network: nn.Module, images: Tensor, precision: str = "off") -> Step:
    """A step of `nnunet-ext pretrain`."""
    patch = images.shape[2:]
    adapter = make_adapter(network, 1, patch)
    block = mask_block(patch, (1, 1, 1), adapter.total_stride)
    objective: Objective
    objective = MaskedAutoencoder(adapter) if method == "mae" else Alice(adapter, 1000, AliceOptions())
    objective.student.to(images.device)
    freeze_unused(objective.student, 1, patch)
    grid = mask_grid(patch, block)
    hidden = np.stack([draw_hidden(np.random.default_rng(i), grid, 0.75)[None] for i in range(len(images))])
    shift = torch.full((len(images) // objective.views, 3), float("nan") if method == "mae" else 4.0)
    views = Views(images, images, torch.from_numpy(hidden).to(images.device), shift.to(images.device))
    chosen = settings(method, network, images, block, precision)
    optimisation = Optimisation(objective.student, chosen, images.device)
    objective.student.train()
    number = [100]

    def forward() -> Tensor:
        with optimisation.autocast():
            return objective.losses(objective.student, views, number[0])["loss"]

    def make() -> None:
        accepted, _ = optimisation.step(forward(), number[0])
        if accepted:
            objective.after_step(number[0])
        number[0] += 1

    trained = sum(p.numel() for p in optimisation.parameters)
    everything = sum(value.numel() for value in _tensors(objective.state_dict()))
    states = 2 if optimisation.settings.optimiser == "adamw" else 1
    return Step(make, forward, 4 * (everything + (1 + states) * trained), network)


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


def kept(step: Step, images: Tensor) -> int:
    """Bytes that a forward pass keeps for the backward pass."""
    with measure.KeptForBackward([images, *step.network.parameters()]) as counted:
        step.forward()
    return counted.bytes
