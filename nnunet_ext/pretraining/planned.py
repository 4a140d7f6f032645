"""The networks that plans and a trainer make, without a training around them."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import nnunetv2
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_ext.errors import UserError
from nnunet_ext.lookup import TRAINERS_MODULE, install
from nnunet_ext.names import UnknownNameError


def find_trainer(name: str) -> type[Any]:
    """A trainer's class by nnU-Net's own look-up: its trainers, ours, and other people's.

    Raises:
        UserError: there is none of that name.
    """
    install()
    folder = str(Path(nnunetv2.__path__[0]) / "training" / "nnUNetTrainer")
    try:
        found: type[Any] | None = recursive_find_python_class(folder, name, TRAINERS_MODULE)
    except (UnknownNameError, RuntimeError) as error:
        raise UserError(f"-tr {name}: {error}") from error
    if found is None:
        raise UserError(f"-tr {name}: nnU-Net finds no such trainer; nnunet-ext list shows ours")
    return found


def adapted_plans(
    trainer: type[Any], plans: Mapping[str, Any], configuration: str, dataset_json: Mapping[str, Any]
) -> dict[str, Any]:
    """The plans as the trainer would train them: trainers of ours may put their own network in.

    Raises:
        UserError: the trainer cannot work with these plans; its own words.
    """
    copy = deepcopy(dict(plans))
    adapt = getattr(trainer, "adapt_plans", None)
    if adapt is None:
        return copy
    # Its hook needs nothing of a trainer but this attribute (trainers/base.py); a real one would make result folders.
    bare: Any = object.__new__(trainer)
    bare.dataset_json = dict(dataset_json)
    try:
        adapted: dict[str, Any] = bare.adapt_plans(copy, configuration)
    except (ValueError, NotImplementedError) as error:
        raise UserError(f"-tr {trainer.__name__}: {error}") from error
    return adapted


def build_network(
    trainer: type[Any], plans: Mapping[str, Any], configuration: str, input_channels: int, outputs: int
) -> nn.Module:
    """The network of adapted plans, without deep supervision, initialised as the trainer does.

    Args:
        trainer: its class.
        plans: of `adapted_plans`.
        configuration: its name.
        input_channels: of the images.
        outputs: channels of the last layer.

    Raises:
        UserError: the network cannot be built; its own words.
    """
    manager = PlansManager(dict(plans))
    try:
        network: nn.Module = trainer.build_network_architecture(
            manager, manager.get_configuration(configuration), input_channels, outputs, False
        )
    except (ValueError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"-tr {trainer.__name__}, -c {configuration}: {error}") from error
    return network
