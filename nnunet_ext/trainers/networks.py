"""A method's network in plans that were made for another one: put in, and its memory beside the planned one's.

Functions of `BaseTrainer`; here to keep it small.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

if TYPE_CHECKING:
    from nnunet_ext.trainers.base import BaseTrainer

MUCH_MORE = 1.1  # times the planned memory, from where the log warns

Translate = Callable[[dict[str, Any], Sequence[int]], dict[str, Any]]


def resolve(plans: dict[str, Any], configuration: str) -> dict[str, Any]:
    """A copy of a configuration with all that it inherits."""
    resolved: dict[str, Any] = deepcopy(PlansManager(plans).get_configuration(configuration).configuration)
    return resolved


def effective(
    planned: dict[str, Any],
    patch_size: Sequence[int],
    network_class: str,
    options: Mapping[str, Any],
    translate: Translate,
) -> dict[str, Any]:
    """The architecture block to train: the plans', with a trainer's options, or translated to the method's network.

    Args:
        planned: the plans' block.
        patch_size: voxels.
        network_class: dotted name of the method's network.
        options: the trainer's, keyword arguments of that network.
        translate: makes the method's block of another network's and the patch size.

    Returns:
        `planned` itself where nothing is to be changed.
    """
    if planned["network_class_name"] != network_class:
        architecture = translate(planned, patch_size)
    elif options.items() <= planned["arch_kwargs"].items():
        return planned
    else:
        architecture = deepcopy(planned)
    architecture["arch_kwargs"].update(options)
    return architecture


def require_strides(planned: Mapping[str, Any], plans_name: str, method: str, planner: str) -> None:
    """Raise a ValueError if a planned network has no strides that could be translated."""
    if "strides" not in planned["arch_kwargs"]:
        raise ValueError(
            f"The network of the plans {plans_name} ({planned['network_class_name']}) has no strides that "
            f"could be translated to {method}: plan with `nnUNetv2_plan_and_preprocess ... -pl {planner}`."
        )


def memory_beside_planned(trainer: BaseTrainer, planned: dict[str, Any], method: str, planner: str) -> str | None:
    """What the trainer's network needs beside the one that the plans were made for; None where there is no news."""
    name = planned["network_class_name"].rsplit(".", 1)[-1]
    try:
        ours = trainer.activation_gigabytes(trainer.bare_network())
        theirs = trainer.activation_gigabytes(_on_meta(trainer, planned))
    except Exception as error:  # somebody else's network may have no estimate, or not build without memory
        return f"The memory of the planned network, {name}, could not be estimated: {error!r}"
    plans = trainer.plans_manager.plans_name
    need = f"{method} needs about {ours:.2f} GB here, {ours / theirs:.1f} times"
    if planned["network_class_name"] != trainer.configuration_manager.network_arch_class_name:
        return (
            f"These plans ({plans}) were made for {name}, and its stages were translated to {method}. {need} "
            f"{name}'s {theirs:.2f} GB. {planner} (or {planner}M, L, XL) plans patch and batch size for "
            f"{method}'s own needs."
        )
    if ours > MUCH_MORE * theirs:
        return (
            f"WARNING: these plans ({plans}) were made for {theirs:.2f} GB; with {type(trainer).__name__}'s options "
            f"{need} that. If the GPU has too little memory, plan for a smaller -gpu_memory_target (by that "
            f"factor) or a narrower network ({planner}_W<n>)."
        )
    return None


def _on_meta(trainer: BaseTrainer, architecture: dict[str, Any]) -> nn.Module:
    """A network for the trainer's data on the meta device: shapes only."""
    plans = deepcopy(trainer.plans_manager.plans)
    plans["configurations"][trainer.configuration_name]["architecture"] = architecture
    manager = PlansManager(plans)
    with torch.device("meta"):
        network: nn.Module = nnUNetTrainer.build_network_architecture(
            manager,
            manager.get_configuration(trainer.configuration_name),
            trainer.num_input_channels,
            trainer.label_manager.num_segmentation_heads,
            trainer.enable_deep_supervision,
        )
    return network
