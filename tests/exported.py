"""Checkpoints of pre-training on the tiny data sets, made without training."""

from __future__ import annotations

import hashlib
from copy import deepcopy
from pathlib import Path
from typing import Any

import support
import torch
from torch import nn

from nnunet_ext.pretraining import checkpoint_format, planned

RESENC = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"


def as_residual(plans: dict[str, Any]) -> dict[str, Any]:
    """The plans with nnU-Net's residual encoder network instead of the plain one."""
    plans = deepcopy(plans)
    block = plans["configurations"]["3d_fullres"]["architecture"]
    block["network_class_name"] = RESENC
    block["arch_kwargs"]["n_blocks_per_stage"] = block["arch_kwargs"].pop("n_conv_per_stage")
    return plans


def cases_of(
    workspace: support.Workspace, dataset: str, names: tuple[str, ...] = support.CASES
) -> list[dict[str, Any]]:
    """Entries for training images of a data set."""
    made = []
    for name in names:
        file = workspace.raw / dataset / "imagesTr" / f"{name}_0000.nii.gz"
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        made.append({"name": name, "source": dataset, "raw": [str(file)], "sha256": [digest]})
    return made


def pretrained(
    path: Path,
    plans: dict[str, Any],
    dataset_json: dict[str, Any],
    *,
    trainer: str = "UNetTrainer",
    branches: tuple[str, ...] = ("student",),
    **changes: Any,
) -> dict[str, nn.Module]:
    """Write a checkpoint with random networks; returns them by branch."""
    found = planned.find_trainer(trainer)
    adapted = planned.adapted_plans(found, plans, "3d_fullres", dataset_json)
    channels = len(dataset_json["channel_names"])
    networks = {}
    for number, branch in enumerate(branches):
        torch.manual_seed(100 + number)
        network = planned.build_network(found, adapted, "3d_fullres", channels, channels)
        for parameter in network.parameters():  # biases and norms, too
            nn.init.normal_(parameter, std=0.1)
        networks[branch] = network
    content: dict[str, Any] = {
        "method": "mae" if branches == ("student",) else "alice",
        "step": 600,
        "total_steps": 1000,
        "networks": {branch: network.state_dict() for branch, network in networks.items()},
        "plans": adapted,
        "configuration": "3d_fullres",
        "dataset_json": dataset_json,
        "trainer": trainer,
        "input_channels": channels,
        "patch_size": adapted["configurations"]["3d_fullres"]["patch_size"],
        "cases": [],
        "provenance": {"seed": 1},
        "resume": {},
    }
    checkpoint_format.write(path, {**content, **changes})
    return networks
