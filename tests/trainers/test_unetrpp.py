"""UNETR++'s trainer: plans of other networks, recipes, and float32."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import support
import torch

from nnunet_ext.architectures.unetrpp_plans import NETWORK_CLASS, unetrpp_architecture
from nnunet_ext.trainers.variants import trainer_class

Plans = Callable[[str], dict[str, Any]]
SHORT = {"n_blocks_per_stage": [1] * 4, "n_blocks_per_stage_decoder": [1] * 3}
STRIDES = [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]]


@pytest.fixture
def own(planned: Plans) -> Callable[..., dict[str, Any]]:
    """Plans of the plain kind with a small UNETR++ for their patch."""

    def plans_with(patch: list[int] | None = None, **options: Any) -> dict[str, Any]:
        plans = deepcopy(planned("plain"))
        plans["plans_name"] = "UNETRPPPlans"
        configuration = plans["configurations"]["3d_fullres"]
        configuration["patch_size"] = patch or [16, 32, 32]
        configuration["architecture"] = unetrpp_architecture(
            configuration["patch_size"], STRIDES, base_width=4, **SHORT, **options
        )
        return plans

    return plans_with


def build(name: str, workspace: support.Workspace, plans: dict[str, Any]) -> Any:
    return support.build_trainer(trainer_class(name), workspace, plans)


def test_plans_of_another_network_are_translated(workspace: support.Workspace, planned: Plans) -> None:
    trainer = build("UNETRPPTrainer_1its_1epochs", workspace, planned("plain"))
    arguments = trainer.configuration_manager.network_arch_init_kwargs
    assert trainer.configuration_manager.network_arch_class_name == NETWORK_CLASS
    assert arguments["patch_size"] == list(trainer.configuration_manager.patch_size)
    assert arguments["sa_layout"] == "fixed"
    trainer.run_training()
    assert "were made for PlainConvUNet, and its stages were translated to UNETR++" in support.log_of(trainer)
    again = build("UNETRPPTrainer", workspace, trainer.plans_manager.plans)
    assert again.plans_manager.plans == trainer.plans_manager.plans


def test_a_patch_of_odd_sizes_is_not_translated(workspace: support.Workspace, planned: Plans) -> None:
    """Nothing divides it: a UNETR++ would have a token for every voxel, and a thousand million parameters."""
    plans = deepcopy(planned("plain"))
    plans["configurations"]["3d_fullres"]["patch_size"] = [61, 67, 71]
    with pytest.raises(ValueError, match=r"\(61, 67, 71\) cannot be divided.*UNETRPPPlanner"):
        build("UNETRPPTrainer", workspace, plans)


@pytest.mark.parametrize(
    ("recipe", "dummy_2d", "batch_dice"),
    [("Synapse", True, True), ("ACDC", True, False), ("Lung", False, False), ("BraTS", False, False)],
)
@pytest.mark.parametrize("patch", [[16, 32, 32], [8, 32, 32]], ids=["cubic", "flat"])
def test_recipes(
    recipe: str,
    dummy_2d: bool,
    batch_dice: bool,
    patch: list[int],
    workspace: support.Workspace,
    own: Callable[..., dict[str, Any]],
) -> None:
    """Where nnU-Net would decide otherwise (it goes by the patch's aspect ratio), angles and sizes follow, too."""
    trainer = build(f"UNETRPPTrainer_{recipe}", workspace, own(patch))
    assert trainer.configuration_manager.network_arch_init_kwargs["float32"] is True
    assert trainer.configuration_manager.batch_dice is batch_dice
    rotation, dummy, initial, mirror = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    assert dummy is dummy_2d
    np.testing.assert_allclose(rotation, np.array([-1, 1]) * (np.pi if dummy_2d else np.pi / 6))
    assert (initial[0] == patch[0]) == dummy_2d
    assert all(i >= p for i, p in zip(initial, patch, strict=True))
    assert mirror == (0, 1, 2)


def test_without_a_recipe_nnunet_decides(workspace: support.Workspace, own: Callable[..., dict[str, Any]]) -> None:
    plans = own([8, 32, 32])
    trainer = build("UNETRPPTrainer", workspace, plans)
    assert trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()[1] is True
    assert trainer.plans_manager.plans["configurations"] == plans["configurations"]


def test_float32_keeps_autocast_out(workspace: support.Workspace, own: Callable[..., dict[str, Any]]) -> None:
    seen: dict[str, set[torch.dtype]] = {}
    for name in ("UNETRPPTrainer", "UNETRPPTrainer_BraTS"):
        trainer = build(name, workspace, own())
        trainer.initialize()
        dtypes = seen.setdefault(name, set())
        for module in trainer.network.modules():
            if isinstance(module, torch.nn.Conv3d):
                module.register_forward_hook(lambda _, __, y, dtypes=dtypes: dtypes.add(y.dtype))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            trainer.network(torch.zeros(2, 1, *trainer.configuration_manager.patch_size))
    assert torch.bfloat16 in seen["UNETRPPTrainer"]
    assert seen["UNETRPPTrainer_BraTS"] == {torch.float32}


def test_another_patch_than_the_networks_is_refused(
    workspace: support.Workspace, own: Callable[..., dict[str, Any]]
) -> None:
    plans = own()
    plans["configurations"]["3d_fullres"]["patch_size"] = [16, 32, 64]
    with pytest.raises(ValueError, match=r"\(16, 32, 32\).*\(16, 32, 64\).*adapt-patch"):
        build("UNETRPPTrainer", workspace, plans).initialize()
