"""nnFormer's trainer: plans of other networks, and a training that starts from imported weights."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import support
import torch
from made_nnformer import block, published
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

from nnunet_ext.architectures.nnformer_plans import NETWORK_CLASS, nnformer_strides
from nnunet_ext.trainers.variants import trainer_class
from nnunet_ext.weights.nnformer import initialise
from nnunet_ext.weights.starts import headless
from nnunet_ext.weights.transfer import build_network

Plans = Callable[[str], dict[str, Any]]


@pytest.mark.parametrize("kind", ["plain", "anisotropic"])
def test_plans_of_another_network_are_translated(kind: str, workspace: support.Workspace, planned: Plans) -> None:
    plans = planned(kind)
    trainer = support.build_trainer(trainer_class("NNFormerTrainer"), workspace, plans, "3d_fullres")
    manager = trainer.configuration_manager
    assert manager.network_arch_class_name == NETWORK_CLASS
    assert list(manager.patch_size) == list(plans["configurations"]["3d_fullres"]["patch_size"])
    again = support.build_trainer(
        trainer_class("NNFormerTrainer"), workspace, trainer.plans_manager.plans, "3d_fullres"
    )
    assert again.plans_manager.plans == trainer.plans_manager.plans


def test_2d_is_refused(workspace: support.Workspace, planned: Plans) -> None:
    with pytest.raises(NotImplementedError, match="3D configurations"):
        support.build_trainer(trainer_class("NNFormerTrainer"), workspace, planned("plain"), "2d")


def test_imported_weights_are_fine_tuned(workspace: support.Workspace, planned: Plans, tmp_path: Path) -> None:
    """A step of training from a published backbone, loaded by nnU-Net's own function."""
    plans = deepcopy(planned("plain"))
    configuration = plans["configurations"]["3d_fullres"]
    patch = tuple(configuration["patch_size"])
    configuration["architecture"] = block(patch, nnformer_strides(patch, exact=True))
    start = build_network(configuration["architecture"], 1, 2)
    initialise(start, published()[1])
    torch.save({"network_weights": headless(start)}, tmp_path / "start.pth")
    trainer = support.build_trainer(
        trainer_class("NNFormerTrainer_FineTune_1its_1epochs"), workspace, plans, "3d_fullres"
    )
    trainer.initialize()
    load_pretrained_weights(trainer.network, str(tmp_path / "start.pth"))
    expected = start.state_dict()["encoder.norms.3.weight"]
    assert torch.equal(trainer.network.state_dict()["encoder.norms.3.weight"], expected)
    trainer.run_training()
    assert not torch.equal(trainer.network.state_dict()["encoder.norms.3.weight"], expected)
