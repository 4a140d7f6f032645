"""Puts a training together: settings that fit plans and network, the method, the samples."""

from __future__ import annotations

import datetime
import platform
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ext import __version__
from nnunet_ext.errors import UserError
from nnunet_ext.pretraining.adapters import Adapter, make_adapter
from nnunet_ext.pretraining.alice import Alice
from nnunet_ext.pretraining.alice_options import alice_options
from nnunet_ext.pretraining.cases import Pool
from nnunet_ext.pretraining.distributed import Processes
from nnunet_ext.pretraining.intensities import Intensities, intensities_of
from nnunet_ext.pretraining.landmarks import LandmarkTable
from nnunet_ext.pretraining.loop import Pretraining
from nnunet_ext.pretraining.mae import MaskedAutoencoder
from nnunet_ext.pretraining.masks import mask_block
from nnunet_ext.pretraining.objectives import Objective
from nnunet_ext.pretraining.optimisation import default_optimiser
from nnunet_ext.pretraining.planned import adapted_plans, build_network, find_trainer
from nnunet_ext.pretraining.sampling import Samples, SamplingOptions
from nnunet_ext.pretraining.settings import Settings
from nnunet_ext.pretraining.unused import freeze_unused


@dataclass(frozen=True)
class Planned:
    """The network that is trained and the plans that it comes from.

    Attributes:
        trainer: name of the trainer that builds it.
        plans: as this trainer adapts them.
        adapter: around the network.
        input_channels: of the images.
        patch_size: (3,) voxels.
    """

    trainer: str
    plans: dict[str, Any]
    adapter: Adapter
    input_channels: int
    patch_size: tuple[int, ...]


def plan(pool: Pool, trainer: str, seed: int, patch_size: Sequence[int] | None = None) -> Planned:
    """Build the plans' network, its weights drawn from `seed`.

    Args:
        pool: its plans are used.
        trainer: name of a trainer.
        seed: of the weights.
        patch_size: instead of the plans', in voxels; for networks whose weights do not depend on it.

    Raises:
        UserError: the trainer or network cannot be used for pre-training, or not with this patch.
    """
    trainer_class = find_trainer(trainer)
    plans = adapted_plans(trainer_class, pool.plans, pool.configuration, pool.dataset_json)
    size = tuple(int(edge) for edge in patch_size or pool.patch_size)
    settings = PlansManager(plans).get_configuration(pool.configuration)
    if size != pool.patch_size and "patch_size" in settings.network_arch_init_kwargs:
        raise UserError(
            f"--patch {' '.join(map(str, size))}: weights of {settings.network_arch_class_name.rpartition('.')[2]} "
            f"depend on the patch; pre-train with the plans' {' '.join(map(str, pool.patch_size))}"
        )
    channels = len(pool.dataset_json.get("channel_names", pool.dataset_json.get("modality", {})))
    torch.manual_seed(seed)
    network = build_network(trainer_class, plans, pool.configuration, channels, channels)
    strides = np.prod(np.asarray(settings.network_arch_init_kwargs.get("strides", [[1, 1, 1]])), 0)
    if any(edge % int(stride) for edge, stride in zip(size, np.broadcast_to(strides, 3), strict=True)):
        raise UserError(f"--patch {' '.join(map(str, size))}: edges must be multiples of {strides.tolist()}")
    return Planned(trainer, plans, make_adapter(network, channels, size), channels, size)


def choose_settings(
    pool: Pool,
    planned: Planned,
    method: str,
    *,
    steps: int,
    batch_size: int | None = None,
    block: int = 16,
    mask_ratio: float = 0.75,
    mask_style: str | None = None,
    augment: bool = True,
    visible_weight: float = 0.0,
    landmarks: str = "overlap",
    anatomical_share: float = 0.5,
    shuffled: bool = False,
    optimiser: str | None = None,
    learning_rate: float | None = None,
    precision: str = "off",
    checkpointing: bool = False,
    seed: int = 0,
    alice: Mapping[str, Any] | None = None,
) -> Settings:
    """Settings with what fits plans, network and method where nothing is wished.

    Args:
        pool: of images; its plans count.
        planned: the network.
        method: "mae" or "alice".
        steps: of the whole training.
        batch_size: of all processes together; None: by the plans, see `default_batch`.
        block: edge of a mask's block in voxels along the finest axis.
        mask_ratio: share of the blocks that is hidden.
        mask_style: "blocks" or "tube"; None: by the method.
        augment: spatially for single views, intensities of pairs.
        visible_weight: of visible voxels in the reconstruction's loss.
        landmarks: kind of the table that pairs come from.
        anatomical_share: of pairs of two volumes.
        shuffled: wrong pairs on purpose.
        optimiser: None: by method and network.
        learning_rate: None: by optimiser and batch size.
        precision: "off", "bf16" or "fp16".
        checkpointing: compute activations again in the backward pass.
        seed: of everything that is drawn.
        alice: options of Alice by name, "fidelity" among them.

    Raises:
        UserError: an option that cannot work.
    """
    options: dict[str, Any] = {}
    if method == "alice":
        options = asdict(alice_options(**{"visible_weight": visible_weight, **(alice or {})}))
        mask_style = mask_style or options["mask_style"]
    elif alice:
        raise UserError(f"the options {', '.join(alice)} are those of --method alice, not of {method}")
    batch = batch_size or default_batch(pool, method)
    name, rate, clip = default_optimiser(method, planned.adapter.network, batch)
    if optimiser is not None and optimiser != name:
        name, rate = optimiser, {"sgd": 1e-2, "adamw": 3e-4 * min(1.0, batch / 8)}[optimiser]
    return Settings(
        method=method,
        trainer=planned.trainer,
        steps=steps,
        batch_size=batch,
        patch_size=planned.patch_size,
        mask_block=mask_block(planned.patch_size, pool.spacing, planned.adapter.total_stride, block),
        mask_ratio=mask_ratio,
        mask_style=mask_style or "blocks",
        augment=augment and options.get("augmentation", True),
        visible_weight=visible_weight,
        landmarks=landmarks,
        anatomical_share=0.0 if landmarks == "overlap" else anatomical_share,
        shuffled=shuffled,
        optimiser=name,
        learning_rate=rate if learning_rate is None else learning_rate,
        clip=options.get("clip", clip),
        precision=precision,
        checkpointing=checkpointing,
        seed=seed,
        alice=options,
    )


def default_batch(pool: Pool, method: str) -> int:
    """The plans' batch size; for Alice, which takes two views of each sample, half of it, from 2 to 8 pairs."""
    planned = int(PlansManager(pool.plans).get_configuration(pool.configuration).batch_size)
    return planned if method == "mae" else max(2, min(8, planned // 2))


def make_objective(
    planned: Planned, settings: Settings, images: Intensities, warn: Callable[[str], object] = warnings.warn
) -> Objective:
    """The method of the settings around the network; random weights of its own are drawn from the seed."""
    torch.manual_seed(settings.seed + 1)
    if settings.method == "mae":
        return MaskedAutoencoder(planned.adapter, settings.visible_weight, images.mean, images.deviation)
    options = replace(alice_options(**settings.alice), fill=images.mean, scale=images.deviation)
    return Alice(planned.adapter, settings.steps, options, warn)


def assemble(
    pool: Pool,
    planned: Planned,
    settings: Settings,
    processes: Processes,
    table: LandmarkTable | None = None,
    warn: Callable[[str], object] = warnings.warn,
    *,
    transductive: bool = False,
) -> Pretraining:
    """A training at its first step.

    Args:
        pool: of images.
        planned: the network.
        settings: of the training.
        processes: this one and the others.
        table: of landmarks, for pairs of two volumes.
        warn: told what may go wrong.
        transductive: recorded: images that will be validated on are meant to be among them.
    """
    images = intensities_of(pool)
    if settings.checkpointing:
        planned.adapter.checkpoint_stages()
    objective = make_objective(planned, settings, images, warn)
    freeze_unused(objective.student, planned.input_channels, planned.patch_size)
    sampling = SamplingOptions(
        patch_size=settings.patch_size,
        block=settings.mask_block,
        views=objective.views,
        ratio=settings.mask_ratio,
        style=cast("Any", settings.mask_style),
        augment=settings.augment,
        anatomical_share=settings.anatomical_share,
        shuffled=settings.shuffled,
        seed=settings.seed,
    )

    def describe() -> dict[str, Any]:
        return {
            "plans": planned.plans,
            "configuration": pool.configuration,
            "dataset_json": pool.dataset_json,
            "trainer": planned.trainer,
            "input_channels": planned.input_channels,
            "patch_size": list(planned.patch_size),
            "cases": [
                {"name": case.name, "source": case.source, "raw": list(case.raw), "sha256": list(case.sha256)}
                for case in pool.cases
            ],
            "provenance": {**provenance(pool, settings, table), "transductive": transductive},
        }

    samples = Samples(pool.cases, sampling, table)
    return Pretraining(settings, objective, planned.adapter, samples, processes, images.mean, describe)


def provenance(pool: Pool, settings: Settings, table: LandmarkTable | None) -> dict[str, Any]:
    """Where a checkpoint comes from."""
    from importlib.metadata import version

    return {
        "versions": {
            "nnunet_ext": __version__,
            "nnunetv2": version("nnunetv2"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "command": sys.argv,
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "dataset": pool.plans["dataset_name"],
        "plans": pool.plans["plans_name"],
        "settings": settings.as_dict(),
        "landmarks": None
        if table is None
        else {"kind": table.kind, "acceptance": table.acceptance(), "digest": table.digest()},
        "left_out": [list(entry) for entry in pool.left_out],
    }
