"""Trainer classes that are made from their names."""

from __future__ import annotations

import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any, ClassVar

import pytest

from nnunet_ext import registry
from nnunet_ext.names import UnknownNameError
from nnunet_ext.trainers import sshunet
from nnunet_ext.trainers.base import BaseTrainer
from nnunet_ext.trainers.variants import trainer_class, variant_attribute

SPAWN = multiprocessing.get_context("spawn")
LONG = "SSHUNetTrainer_GSM_VFN_AdamW_NoMirroring_Seed3_20its_4epochs"


class FixedTrainer(BaseTrainer):
    """Registered by this module, as a user's would be."""

    OPTIONS: ClassVar[dict[str, Any]] = {"Wide": {"hyperparameters": {"initial_lr": 1.0}}}


__getattr__ = variant_attribute(__name__)


@pytest.fixture
def registered(own_registry: None) -> None:
    entry = registry.TrainerEntry(
        "FixedTrainer", f"{__name__}:FixedTrainer", network="n", planner="p", options=(("Wide",),)
    )
    registry.register(entry)


def test_same_class_at_every_look_up() -> None:
    made = trainer_class(LONG)
    assert made is trainer_class(LONG)
    assert made is getattr(sshunet, LONG)
    assert (made.__name__, made.__qualname__, made.__module__) == (LONG, LONG, "nnunet_ext.trainers.sshunet")
    assert issubclass(made, sshunet.SSHUNetTrainer)
    assert trainer_class("SSHUNetTrainer") is sshunet.SSHUNetTrainer


def test_threads_get_one_class() -> None:
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(trainer_class, ["SSHUNetTrainer_GSF_77epochs"] * 32))) == 1


def test_suffixes_become_attributes() -> None:
    made: Any = trainer_class(LONG)
    assert made.network_options == {"gate": "gsm", "fusion": "vfn"}
    assert (made.optimizer_name, made.mirroring, made.seed) == ("adamw", False, 3)
    assert made.hyperparameters["num_epochs"] == 4
    assert made.hyperparameters["num_val_iterations_per_epoch"] == 4
    assert sshunet.SSHUNetTrainer.network_options == {}
    assert sshunet.SSHUNetTrainer.hyperparameters == {}


def test_pickle_keeps_the_class() -> None:
    assert pickle.loads(pickle.dumps(trainer_class(LONG))) is trainer_class(LONG)


def test_spawned_worker_gets_the_class_by_name() -> None:
    with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
        assert pool.submit(pickle.loads, pickle.dumps(trainer_class(LONG))).result() is trainer_class(LONG)


@pytest.mark.parametrize("name", ["SSHUNetTrainer_250epochs_GSM", "SSHUNetTrainer_Mine", "SSHUNetTrainer_GSM_GSF"])
def test_wrong_suffixes_are_attribute_errors(name: str) -> None:
    assert not hasattr(sshunet, name)
    with pytest.raises(UnknownNameError, match="SSHUNetTrainer"):
        trainer_class(name)


def test_other_names() -> None:
    with pytest.raises(AttributeError, match=r"'nnunet_ext\.trainers\.sshunet' has no attribute 'nonsense'"):
        _ = sshunet.nonsense
    with pytest.raises(UnknownNameError, match="nnunet-ext list"):
        trainer_class("nnUNetTrainer")


@pytest.mark.usefixtures("registered")
def test_trainers_of_other_packages_get_suffixes() -> None:
    made: Any = trainer_class("FixedTrainer_Wide_AdamW_2epochs")
    assert made.hyperparameters == {"initial_lr": 3e-3, "weight_decay": 1e-2, "num_epochs": 2}
    assert pickle.loads(pickle.dumps(made)) is made
    assert not hasattr(sshunet, "FixedTrainer_2epochs"), "a variant belongs to the module of its base"
