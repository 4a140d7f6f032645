"""Features of every network that can be pre-trained."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import support
import torch
from torch import nn

from nnunet_ext.errors import UserError
from nnunet_ext.pretraining.adapters import Adapter, make_adapter
from nnunet_ext.pretraining.planned import adapted_plans, build_network, find_trainer

Plans = Callable[[str], dict[str, Any]]
TRAINERS = ("nnUNetTrainer", "SSHUNetTrainer", "SSHUNetTrainer_GSM_VFN", "UNETRPPTrainer", "NNFormerTrainer")


def adapter_of(plans: dict[str, Any], trainer: str, dataset_json: dict[str, Any]) -> tuple[Adapter, tuple[int, ...]]:
    """The adapter of a trainer's network, and the patch."""
    found = find_trainer(trainer)
    adapted = adapted_plans(found, plans, "3d_fullres", dataset_json)
    channels = support.channels(dataset_json)
    network = build_network(found, adapted, "3d_fullres", channels, channels)
    patch = tuple(adapted["configurations"]["3d_fullres"]["patch_size"])
    return make_adapter(network, channels, patch), patch


@pytest.mark.parametrize(("kind", "trainer"), [*(("plain", name) for name in TRAINERS), ("twochannels", TRAINERS[0])])
def test_features(trainer: str, kind: str, folders: support.Workspace, planned: Plans) -> None:
    plans = planned(kind)
    dataset_json = folders.dataset_json(plans["dataset_name"])
    adapter, patch = adapter_of(plans, trainer, dataset_json)
    x = torch.randn(2, support.channels(dataset_json), *patch)
    adapter.eval()
    with torch.no_grad():
        found, again = adapter(x), deepcopy(adapter)(x)
        plain = adapter.network(x)
    assert found.reconstruction.shape == x.shape
    assert torch.equal(found.reconstruction, plain)
    assert torch.equal(found.neck, again.neck)
    assert found.neck.shape[:2] == (2, adapter.neck_channels)
    assert found.context.shape[:2] == (2, adapter.context_channels)
    assert adapter.total_stride == tuple(p // g for p, g in zip(patch, found.neck.shape[2:], strict=True))
    finer = torch.tensor(found.context.shape[2:]) / torch.tensor(found.neck.shape[2:])
    assert ((finer == 1) | (finer == 2) | (finer == 4)).all()
    assert finer.max() > 1
    assert not any(module._forward_hooks for module in adapter.network.modules())


@pytest.mark.parametrize("trainer", ["nnUNetTrainer", "SSHUNetTrainer", "NNFormerTrainer"])
def test_checkpointing_changes_no_gradient(trainer: str, folders: support.Workspace, planned: Plans) -> None:
    plans = planned("plain")
    adapter, patch = adapter_of(plans, trainer, folders.dataset_json(plans["dataset_name"]))
    for module in adapter.modules():
        if isinstance(module, nn.Dropout | nn.modules.dropout._DropoutNd):
            module.p = 0.0
    adapter.eval()
    gradients, kept = [], []
    for checkpointing in (False, True):
        if checkpointing:
            adapter.checkpoint_stages()
            adapter.checkpoint_stages()  # once is enough
        torch.manual_seed(0)
        x = torch.randn(1, 1, *patch)
        sizes: list[int] = []

        def keep(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            found = adapter(x)
        adapter.zero_grad()
        (found.reconstruction.square().mean() + found.neck.square().mean() + found.context.mean()).backward()
        gradients.append([p.grad.clone() for p in adapter.parameters() if p.grad is not None])
        kept.append(sum(sizes))
    assert kept[1] < kept[0]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_networks_that_cannot_be_pre_trained() -> None:
    with pytest.raises(UserError, match=r"Conv3d cannot be pre-trained: .*kd_points"):
        make_adapter(nn.Conv3d(1, 1, 1), 1, (8, 8, 8))
    with pytest.raises(UserError, match="-tr NoSuchTrainer: nnU-Net finds no such trainer"):
        find_trainer("NoSuchTrainer")
    with pytest.raises(UserError, match="-tr SSHUNetTrainer_FOO"):
        find_trainer("SSHUNetTrainer_FOO")


def test_a_wrong_number_of_outputs(folders: support.Workspace, planned: Plans) -> None:
    plans = planned("plain")
    network = build_network(find_trainer("nnUNetTrainer"), plans, "3d_fullres", 1, 3)
    with pytest.raises(UserError, match=r"of an image \(1, 1, .* it makes \(1, 3, "):
        make_adapter(network, 1, plans["configurations"]["3d_fullres"]["patch_size"])
