"""Everything that has a name, as pure data: which trainers, planners and networks there are, and what they can do.

The look-ups, the command line, the shim folder, the documentation and the contract tests all read these tables. Nothing
is imported here but the standard library. A package of one's own adds its entries with ``register``.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["trainer", "planner", "network"]

#: nnU-Net's own planner and network, for trainers that take what nnU-Net plans; they are in none of the tables.
STOCK_PLANNER, STOCK_NETWORK = "ExperimentPlanner", "PlainConvUNet"


@dataclass(frozen=True)
class TrainerEntry:
    """A trainer and what its name may be followed by (the grammar is in ``nnunet_ext.names``).

    Attributes:
        name: the trainer's name without suffixes, as for ``nnUNetv2_train -tr``.
        target: where its class is, as ``"module:attribute"``.
        network: name of the network it trains; `STOCK_NETWORK` for nnU-Net's own ones.
        planner: name of the planner that makes its plans; `STOCK_PLANNER` for nnU-Net's own.
        options: groups of method options, in the order in which they stand in a name; one of each group at most.
        recipes: named training recipes (optimizer, schedule); one at most.
        dimensions: spatial dimensions in which it can train (3 for 3d configurations, 2 for 2d).
        deep_supervision: whether the network gives one output a resolution.
        cascade: whether it can be the second stage of nnU-Net's cascade.
        kd: whether self-regularisation (``_KD``) can be added.
        summary: one line for people.
    """

    name: str
    target: str
    network: str
    planner: str
    options: tuple[tuple[str, ...], ...] = ()
    recipes: tuple[str, ...] = ()
    dimensions: tuple[int, ...] = (2, 3)
    deep_supervision: bool = True
    cascade: bool = True
    kd: bool = False
    summary: str = ""


@dataclass(frozen=True)
class PlannerEntry:
    """A planner and the presets, recipes and widths that its name may state.

    Attributes:
        name: the planner's name, as for ``nnUNetv2_plan_and_preprocess -pl``; it ends with ``Planner``.
        target: where its class is, as ``"module:attribute"``.
        network: name of the network it plans for.
        presets: GPU memory presets, appended to the name; the plain name is M.
        recipes: named recipes, such as the published configuration.
        width: whether ``_W<n>`` sets the number of features of the first stage.
        summary: one line for people.
    """

    name: str
    target: str
    network: str
    presets: tuple[str, ...] = ("M", "L", "XL")
    recipes: tuple[str, ...] = ()
    width: bool = True
    summary: str = ""


@dataclass(frozen=True)
class NetworkEntry:
    """A network.

    Attributes:
        name: the network's name.
        target: where its class is, as ``"module:attribute"``.
        dimensions: spatial dimensions that it is made for.
        planner: full name of the planner that plans it, where that is not the registered one of its own.
        summary: one line for people.
    """

    name: str
    target: str
    dimensions: tuple[int, ...] = (2, 3)
    planner: str = ""
    summary: str = ""


Entry = TrainerEntry | PlannerEntry | NetworkEntry

TRAINERS: dict[str, TrainerEntry] = {
    entry.name: entry
    for entry in (
        TrainerEntry(
            "SSHUNetTrainer",
            "nnunet_ext.trainers.sshunet:SSHUNetTrainer",
            network="SSHUNet",
            planner="SSHUNetPlanner",
            options=(("TSM", "GSM", "GSF"), ("VFN",)),
            recipes=("Published",),
            dimensions=(3,),
            deep_supervision=True,
            cascade=True,
            kd=True,
            summary="SSH-UNet: three orthogonal 2D views with shared weights, features shifted between slices",
        ),
        TrainerEntry(
            "UNETRPPTrainer",
            "nnunet_ext.trainers.unetrpp:UNETRPPTrainer",
            network="UNETRPP",
            planner="UNETRPPPlanner",
            recipes=("Synapse", "ACDC", "Lung", "BraTS"),
            kd=True,
            summary="UNETR++: convolutions and efficient paired attention over channels and positions",
        ),
        TrainerEntry(
            "SwinUNetTrainer",
            "nnunet_ext.trainers.swinunet:SwinUNetTrainer",
            network="SwinUNet",
            planner="SwinUNetPlanner",
            recipes=("Published",),
            dimensions=(2,),
            deep_supervision=False,
            cascade=False,
            kd=True,
            summary="Swin-Unet: a U-Net of shifted-window transformer blocks, for images",
        ),
        TrainerEntry(
            "NNFormerTrainer",
            "nnunet_ext.trainers.nnformer:NNFormerTrainer",
            network="NNFormer",
            planner="NNFormerPlanner",
            dimensions=(3,),
            kd=True,
            summary="nnFormer: shifted-window transformer in 3D, the network of Alice's pre-training",
        ),
        TrainerEntry(
            "OSSNetTrainer",
            "nnunet_ext.trainers.ossnet:OSSNetTrainer",
            network="OSSNetLocal",
            planner="OSSNetPlanner",
            recipes=("Published_ONet", "Published_A", "Published_B", "Published_C", "Published_D"),
            deep_supervision=False,
            summary="OSS-Net: occupancy networks, trained on points; memory hardly grows with the resolution",
        ),
        TrainerEntry(
            "UNetTrainer",
            "nnunet_ext.trainers.unet:UNetTrainer",
            network=STOCK_NETWORK,
            planner=STOCK_PLANNER,
            summary="nnU-Net's own U-Nets and recipe with the suffixes of this package, for fine-tuning and controls",
        ),
        TrainerEntry(
            "KDUNetTrainer",
            "nnunet_ext.trainers.kd:KDUNetTrainer",
            network=STOCK_NETWORK,
            planner=STOCK_PLANNER,
            recipes=("Published",),
            summary="self-regularisation (KD) for nnU-Net's own U-Nets: the last decoder layer teaches the others",
        ),
    )
}
PLANNERS: dict[str, PlannerEntry] = {
    entry.name: entry
    for entry in (
        PlannerEntry(
            "SSHUNetPlanner",
            "nnunet_ext.planners.sshunet:SSHUNetPlanner",
            network="SSHUNet",
            recipes=("Published",),
            summary="SSH-UNet planned with its own measured memory; 2d stays on nnU-Net's network",
        ),
        PlannerEntry(
            "UNETRPPPlanner",
            "nnunet_ext.planners.unetrpp:UNETRPPPlanner",
            network="UNETRPP",
            recipes=("Synapse", "ACDC", "Lung", "BraTS"),
            summary="UNETR++ in 2d and 3d with its own measured memory; recipes are the published settings",
        ),
        PlannerEntry(
            "SwinUNetPlanner",
            "nnunet_ext.planners.swinunet:SwinUNetPlanner",
            network="SwinUNet",
            summary="Swin-Unet in 2d with its own measured memory; 3d stays on nnU-Net's network",
        ),
        PlannerEntry(
            "NNFormerPlanner",
            "nnunet_ext.planners.nnformer:NNFormerPlanner",
            network="NNFormer",
            summary="nnFormer in 3d with its own measured memory; 2d stays on nnU-Net's network",
        ),
        PlannerEntry(
            "OSSNetPlanner",
            "nnunet_ext.planners.ossnet:OSSNetPlanner",
            network="OSSNetLocal",
            recipes=("Published",),
            summary="OSS-Net in 2d and 3d: larger patches for the same memory; the recipe plans whole volumes",
        ),
    )
}
NETWORKS: dict[str, NetworkEntry] = {
    entry.name: entry
    for entry in (
        NetworkEntry(
            "SSHUNet",
            "nnunet_ext.architectures.sshunet:SSHUNet",
            dimensions=(3,),
            summary="SSH-UNet in volume coordinates (Ugwu, Casarin, Lanz 2024)",
        ),
        NetworkEntry(
            "UNETRPP",
            "nnunet_ext.architectures.unetrpp:UNETRPP",
            summary="UNETR++ for patches of any size, 2D and 3D (Shaker et al. 2024)",
        ),
        NetworkEntry(
            "SwinUNet",
            "nnunet_ext.architectures.swinunet:SwinUNet",
            dimensions=(2,),
            summary="Swin-Unet for patches of any size, 2D (Cao et al. 2022), with timm's Swin blocks",
        ),
        NetworkEntry(
            "NNFormer",
            "nnunet_ext.architectures.nnformer:NNFormer",
            dimensions=(3,),
            summary="nnFormer for patches of any size, 3D (Zhou et al. 2023), the network of Alice (Jiang et al. 2023)",
        ),
        NetworkEntry(
            "OSSNetLocal",
            "nnunet_ext.architectures.ossnet_local:OSSNetLocal",
            summary="occupancy network that samples feature maps at points, for patches of any size, 2D and 3D",
        ),
        NetworkEntry(
            "OSSNet",
            "nnunet_ext.architectures.ossnet:OSSNet",
            planner="OSSNetPlanner_Published",
            summary="OSS-Net as published, for whole volumes of one size, 2D and 3D (Reich et al. 2021)",
        ),
    )
}


def register(entry: Entry) -> None:
    """Add a trainer, planner or network to the tables.

    Raises:
        ValueError: if the name is taken, is no Python name, or would break nnU-Net's folder names
            (``__`` inside, ``_`` at an end), or if the target is not ``"module:attribute"``.
    """
    name = entry.name
    if not name.isidentifier() or "__" in name or name.startswith("_") or name.endswith("_"):
        raise ValueError(
            f"{name!r} can't be registered: a name must be a Python name without '__' inside and without '_' at its "
            "ends (nnU-Net joins trainer, plans and configuration with '__' in its folder names)"
        )
    if isinstance(entry, PlannerEntry) and not name.endswith("Planner"):
        raise ValueError(f"{name!r} can't be registered: a planner's name must end with 'Planner'")
    if not re.fullmatch(r"[\w.]+:\w+", entry.target):
        raise ValueError(f"{name!r} can't be registered: its target must be 'module:attribute', got {entry.target!r}")
    if any(name in table for table in (TRAINERS, PLANNERS, NETWORKS)):
        raise ValueError(f"{name!r} can't be registered: the name is taken")
    if isinstance(entry, TrainerEntry):
        TRAINERS[name] = entry
    elif isinstance(entry, PlannerEntry):
        PLANNERS[name] = entry
    else:
        NETWORKS[name] = entry


def load(target: str) -> Any:
    """Import what ``"module:attribute"`` names."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)
