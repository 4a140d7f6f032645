"""The networks that `gpu.py` runs: every registered 3D one, its variants, and nnU-Net's PlainConvUNet, at one plan."""

from __future__ import annotations

import math
import pydoc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from plain import plain_network
from torch import Tensor, nn
from torch.nn import functional

from nnunet_ext.architectures.blocks.precision import at_least_float32
from nnunet_ext.architectures.nnformer_plans import nnformer_architecture, nnformer_strides
from nnunet_ext.architectures.ossnet_local_plans import number_of_points, ossnet_local_architecture
from nnunet_ext.architectures.ossnet_plans import ossnet_architecture
from nnunet_ext.architectures.sshunet_plans import sshunet_architecture
from nnunet_ext.architectures.unetrpp_plans import embedding_stride, unetrpp_architecture, unetrpp_strides

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


def _unetrpp(plan: Plan, **options: Any) -> dict[str, Any]:
    """UNETR++ with the strides of its own planner; its first stage has half the width, as published."""
    strides = unetrpp_strides(plan.patch_size, embedding_stride(plan.patch_size))
    return unetrpp_architecture(plan.patch_size, strides, base_width=plan.base_width // 2, **options)


def _nnformer(plan: Plan, **options: Any) -> dict[str, Any]:
    """An nnFormer of Alice's widths where the plan has nnU-Net's, with the strides of its own planner."""
    strides = nnformer_strides(plan.patch_size)
    return nnformer_architecture(plan.patch_size, strides, base_width=plan.base_width * 3 // 2, **options)


def _ossnet_local(plan: Plan, **options: Any) -> dict[str, Any]:
    kernels = [[3, 3, 3]] * plan.n_stages
    return ossnet_local_architecture(plan.patch_size, plan.strides, kernels, base_width=plan.base_width, **options)


def _ossnet(plan: Plan, **options: Any) -> dict[str, Any]:
    """The published widths, or those of a tiny plan."""
    points = number_of_points(plan.patch_size)
    return ossnet_architecture(plan.patch_size, n_points=points, decoder_width=16 * plan.base_width, **options)


class OnLattice(nn.Module):
    """A network that decodes points, asked for every k-th voxel: its logits have the form that the pieces expect.

    Training and inference decode the same points, as many as a training step has at most.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 1, D, H, W) to logits of the points (B, K, d, h, w) and of the coarse heads."""
        step = 1
        while math.prod(-(-edge // step) for edge in x.shape[2:]) > self.network.n_points:
            step += 1
        axes = [torch.arange(0, edge, step, device=x.device, dtype=torch.float32) for edge in x.shape[2:]]
        coords = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2).expand(len(x), -1, -1)
        centred = coords.shape[1] - coords.shape[1] // 2
        coords = torch.cat([coords[:, :centred], coords[:, centred:] + 0.25], 1)  # as in training, half between voxels
        logits, coarse = self.network(x, coords, centred)
        coarse = [_of_classes(head, logits.shape[1]) for head in coarse]
        return [logits.unflatten(2, [len(axis) for axis in axes]), *coarse]


def _of_classes(head: Tensor, classes: int) -> Tensor:
    """A coarse head's logits for each class, of one that says foreground."""
    return head if head.shape[1] == classes else torch.cat([-head, *[head] * (classes - 1)], 1)


#: The architecture block of each registered 3D network at a plan, with options of the network's own.
ARCHITECTURES: dict[str, Callable[..., dict[str, Any]]] = {
    "SSHUNet": lambda plan, **options: sshunet_architecture(plan.strides, plan.features, **options),
    "UNETRPP": _unetrpp,
    "NNFormer": _nnformer,
    "OSSNetLocal": _ossnet_local,
    "OSSNet": _ossnet,
}

#: Options that switch a network's dropout off: two ways of computing the same can only be compared without.
NO_DROPOUT: dict[str, dict[str, Any]] = {
    "UNETRPP": {"attention_dropout": [0.0, 0.0], "block_dropout": 0.0},
    "NNFormer": {"drop_path_rate": 0.0},
}

#: Networks that decode points.
POINTS = ("OSSNetLocal", "OSSNet")

#: Row name -> (registered network, options): what is checked and measured.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "SSHUNet TSM": ("SSHUNet", {}),
    "SSHUNet GSM": ("SSHUNet", {"gate": "gsm"}),
    "SSHUNet GSF": ("SSHUNet", {"gate": "gsf"}),
    "SSHUNet TSM VFN": ("SSHUNet", {"fusion": "vfn"}),
    "UNETRPP tied": ("UNETRPP", {}),
    "UNETRPP separate": ("UNETRPP", {"projections": "separate", "n_res_blocks": 2}),
    "OSSNetLocal points": ("OSSNetLocal", {}),
    "OSSNetLocal points Padé": ("OSSNetLocal", {"activation": "pade"}),
    "OSSNet D points": ("OSSNet", {"variant": "D"}),
    "NNFormer": ("NNFormer", {}),
    "NNFormer legacy": ("NNFormer", {"relative_index": "legacy"}),
    "UNETRPP sum legacy": ("UNETRPP", {"projections": "no_bias", "fusion": "sum", "sa_layout": "legacy"}),
}


def has_views(name: str) -> bool:
    """Whether the network of the row `name` has `view_execution`."""
    return name != PLAIN and VARIANTS[name][0] == "SSHUNet"


def build(name: str, plan: Plan, *, deep_supervision: bool = True, dropout: bool = False, **options: Any) -> nn.Module:
    """The network of the row `name` at `plan`, initialised the same way every time, on the CPU.

    Args:
        name: of a row.
        plan: what a plans file would say.
        deep_supervision: logits of all stages.
        dropout: with the network's rates of dropout, as in training; else without any.
        **options: of the network.
    """
    torch.manual_seed(0)
    if name == PLAIN:
        built = plain_network(plan.features, plan.strides, plan.num_classes, deep_supervision=deep_supervision)
    else:
        built = _ours(name, plan, deep_supervision, {} if dropout else NO_DROPOUT.get(VARIANTS[name][0], {}), options)
    if hasattr(built, "initialize"):  # as nnU-Net does; UNETR++ initialises itself
        built.apply(built.initialize)  # type: ignore[arg-type]  # a static method
    return built


def _ours(name: str, plan: Plan, deep_supervision: bool, *options: Mapping[str, Any]) -> nn.Module:
    network, own = VARIANTS[name]
    merged: dict[str, Any] = dict(own)
    for more in options:
        merged.update(more)
    architecture = ARCHITECTURES[network](plan, **merged)
    arguments = dict(architecture["arch_kwargs"])
    for key in architecture["_kw_requires_import"]:
        arguments[key] = None if arguments[key] is None else pydoc.locate(arguments[key])
    network_class: Any = pydoc.locate(architecture["network_class_name"])
    if network_class is None:
        raise RuntimeError(f"{architecture['network_class_name']} can't be imported: install nnunetv2 and nnunet-ext.")
    built: nn.Module = network_class(
        input_channels=1, num_classes=plan.num_classes, deep_supervision=deep_supervision, **arguments
    )
    return OnLattice(built) if network in POINTS else built


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
        total = total + functional.cross_entropy(at_least_float32(logits), small) / 2**i
    return total
