"""The networks that `gpu.py` runs: every registered one, its variants, and nnU-Net's PlainConvUNet, at one plan."""

from __future__ import annotations

import pydoc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_ext.architectures.sshunet_plans import sshunet_architecture

PLAIN = "PlainConvUNet"


@dataclass(frozen=True)
class Plan:
    """What a plans file says of a 3D configuration, as far as a network depends on it.

    Attributes:
        patch_size: (D, H, W) in voxels.
        batch_size: samples a step.
        base_width: features of the first stage; they double from stage to stage, up to ten times as many.
        n_stages: resolutions; every stage but the first halves all axes.
        num_classes: output channels.
    """

    patch_size: tuple[int, int, int] = (128, 128, 128)
    batch_size: int = 2
    base_width: int = 32
    n_stages: int = 6
    num_classes: int = 14

    @property
    def strides(self) -> list[list[int]]:
        """(D, H, W) of each stage."""
        return [[1, 1, 1]] + [[2, 2, 2]] * (self.n_stages - 1)

    @property
    def features(self) -> list[int]:
        """Feature maps of each stage."""
        return [min(self.base_width * 2**stage, 10 * self.base_width) for stage in range(self.n_stages)]

    def __str__(self) -> str:
        edges = " x ".join(map(str, self.patch_size))
        return f"batch {self.batch_size} of 1 x {edges}, {self.n_stages} stages, features {self.features}"


TINY = Plan(patch_size=(16, 16, 16), batch_size=2, base_width=8, n_stages=3, num_classes=3)

#: The architecture block of each registered network at a plan, with options of the network's own.
ARCHITECTURES: dict[str, Callable[..., dict[str, Any]]] = {
    "SSHUNet": lambda plan, **options: sshunet_architecture(plan.strides, plan.features, **options),
}

#: Row name -> (registered network, options): what is checked and measured.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "SSHUNet TSM": ("SSHUNet", {}),
    "SSHUNet GSM": ("SSHUNet", {"gate": "gsm"}),
    "SSHUNet GSF": ("SSHUNet", {"gate": "gsf"}),
    "SSHUNet TSM VFN": ("SSHUNet", {"fusion": "vfn"}),
}


def _plain(plan: Plan) -> dict[str, Any]:
    """nnU-Net's default architecture block at `plan`."""
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": plan.n_stages,
            "features_per_stage": plan.features,
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * plan.n_stages,
            "strides": plan.strides,
            "n_conv_per_stage": [2] * plan.n_stages,
            "n_conv_per_stage_decoder": [2] * (plan.n_stages - 1),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def build(name: str, plan: Plan, *, deep_supervision: bool = True, **options: Any) -> nn.Module:
    """The network of the row `name` at `plan`, initialised the same way every time, on the CPU."""
    if name == PLAIN:
        architecture = _plain(plan)
    else:
        network, own = VARIANTS[name]
        architecture = ARCHITECTURES[network](plan, **{**own, **options})
    arguments = dict(architecture["arch_kwargs"])
    for key in architecture["_kw_requires_import"]:
        arguments[key] = None if arguments[key] is None else pydoc.locate(arguments[key])
    network_class: Any = pydoc.locate(architecture["network_class_name"])
    if network_class is None:
        raise RuntimeError(f"{architecture['network_class_name']} can't be imported: install nnunetv2 and nnunet-ext.")
    torch.manual_seed(0)
    built: nn.Module = network_class(
        input_channels=1, num_classes=plan.num_classes, deep_supervision=deep_supervision, **arguments
    )
    built.apply(built.initialize)  # type: ignore[arg-type]  # a static method of every nnU-Net network
    return built


def images(plan: Plan, seed: int = 1) -> Tensor:
    """(B, 1, D, H, W), the same values every time."""
    shape = (plan.batch_size, 1, *plan.patch_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def labels(plan: Plan) -> Tensor:
    """(B, D, H, W), integers below the number of classes, about as many of each: the image's local mean in steps.

    Labels that have nothing to do with the image would give gradients that almost cancel, and so mostly rounding.
    """
    smooth = functional.avg_pool3d(images(plan), 5, stride=1, padding=2, count_include_pad=False)[:, 0]
    quantiles = torch.linspace(0, 1, plan.num_classes + 1)[1:-1]
    return torch.bucketize(smooth, torch.special.ndtri(quantiles) * smooth.std())


def supervised_loss(outputs: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
    """Cross entropy of every output against the target at its resolution, with nnU-Net's weights 1, 1/2, 1/4, ..."""
    listed = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    total = torch.zeros((), device=target.device)
    for i, logits in enumerate(listed):
        small = functional.interpolate(target[:, None].float(), logits.shape[2:]).squeeze(1).long()
        total = total + functional.cross_entropy(logits.float(), small) / 2**i
    return total
