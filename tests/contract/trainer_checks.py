"""What nnU-Net and our grammar ask of a trainer's class, one function a requirement; each raises AssertionError."""

from __future__ import annotations

import importlib
import inspect
import pickle
from collections.abc import Callable
from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

BUILD = ["plans_manager", "configuration_manager", "num_input_channels", "num_output_channels"]


def check_constructor(trainer: Any) -> None:
    """nnU-Net's arguments and nothing else: it records them by the names in the subclass' signature."""
    expected = inspect.signature(nnUNetTrainer.__init__).parameters
    parameters = inspect.signature(trainer.__init__).parameters
    assert list(parameters) == list(expected)
    assert [p.kind for p in parameters.values()] == [p.kind for p in expected.values()]
    assert parameters["device"].default == expected["device"].default


def check_name(trainer: Any) -> None:
    """A name that nnU-Net's folder names can hold, and that finds this class and no built-in one."""
    name = trainer.__name__
    assert name.isidentifier()
    assert "__" not in name
    assert name == name.strip("_")
    assert recursive_find_trainer_class_by_name(name) is trainer
    assert not trainer.__module__.startswith("nnunetv2.")


def check_pickle(trainer: Any) -> None:
    """It is an attribute of its module, so spawned workers get it by name."""
    assert trainer.__qualname__ == trainer.__name__
    assert getattr(importlib.import_module(trainer.__module__), trainer.__name__) is trainer
    assert pickle.loads(pickle.dumps(trainer)) is trainer


def check_build_network(trainer: Any) -> None:
    """Static, with nnU-Net's argument names: the predictor calls it on the class, deep supervision by keyword."""
    assert isinstance(inspect.getattr_static(trainer, "build_network_architecture"), (staticmethod, classmethod))
    parameters = inspect.signature(trainer.build_network_architecture).parameters
    assert list(parameters) == [*BUILD, "enable_deep_supervision"]
    assert parameters["enable_deep_supervision"].default is True


def check_subclass(trainer: Any) -> None:
    """nnU-Net accepts its own trainers' subclasses only."""
    assert issubclass(trainer, nnUNetTrainer)


CHECKS: tuple[Callable[[Any], None], ...] = (
    check_subclass,
    check_constructor,
    check_name,
    check_pickle,
    check_build_network,
)
