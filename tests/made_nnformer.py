"""Small nnFormers in the layouts that Alice's code and nnFormer's write."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

from nnunet_ext.architectures.blocks.shifted_windows import relative_index
from nnunet_ext.architectures.blocks.window_attention import WindowBlock
from nnunet_ext.architectures.nnformer_plans import nnformer_architecture, nnformer_strides
from nnunet_ext.weights.nnformer import POSITIONS, key_map
from nnunet_ext.weights.transfer import build_network

PATCH = (32, 32, 32)
WIDTH = 8


def block(patch: tuple[int, ...] = PATCH, strides: Any = None, **options: Any) -> dict[str, Any]:
    """The plans' block of a small network."""
    return nnformer_architecture(patch, strides or nnformer_strides(patch), **{"base_width": WIDTH, **options})


def published(seed: int = 0, channels: int = 1, **options: Any) -> tuple[Any, dict[str, Tensor]]:
    """A network with the published index and no positions, and its weights and constants by the published names."""
    network: Any = build_network(block(relative_index="legacy", **options), channels, channels, seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
        network.get_buffer(POSITIONS).zero_()
    ours = network.state_dict()
    state = {key: ours[name].clone() for key, name in key_map(network).items()}
    state["model_down.mask_token"] = torch.zeros(1, 1, WIDTH)
    names = {name: key for key, name in key_map(network).items()}
    for name, module in network.named_modules():
        if isinstance(module, WindowBlock):
            key = names[f"{name}.attn.proj.weight"].removesuffix("proj.weight")
            state[f"{key}relative_position_index"] = relative_index(module.window, "legacy")
    return network.eval(), state


def wrapped(layout: str, student: dict[str, Tensor], teacher: dict[str, Tensor]) -> Any:
    """What Alice's code or nnFormer's writes (specification alice 1.9)."""
    head = {"head.mlp.0.weight": torch.zeros(2, 2)}
    if layout == "extracted student":
        return {**{key: value for key, value in student.items() if "final" not in key}, "state_dict": {}}
    if layout == "extracted teacher":
        return {"state_dict": teacher}
    if layout == "nnformer":
        return {
            "epoch": 3,
            "state_dict": teacher,
            "optimizer_state_dict": {"state": {}},
            "lr_scheduler_state_dict": None,
        }
    return {
        "student": {f"module.{key}": v for key, v in ({f"backbone.{k}": v for k, v in student.items()} | head).items()},
        "teacher": {f"backbone.{key}": value for key, value in teacher.items()} | head,
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]},
        "epoch": 4,
        "args": argparse.Namespace(arch="nnformer", lr=0.0005, roi=[64, 64, 64]),
        "alice_loss": {"center": torch.zeros(1, 512), "center2": torch.zeros(1, 1, 512)},
    }
