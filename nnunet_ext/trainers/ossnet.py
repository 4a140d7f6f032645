"""OSS-Net through nnU-Net (``specs/ossnet.md`` 6; C. Reich et al., BMVC 2021, arXiv 2110.10640)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.utilities.helpers import softmax_helper_dim1
from torch import Tensor, nn

from nnunet_ext.architectures.occupancy import MOVED_SHARE
from nnunet_ext.architectures.ossnet_local_plans import NETWORK_CLASS, number_of_points, ossnet_local_architecture
from nnunet_ext.architectures.ossnet_plans import ossnet_architecture
from nnunet_ext.labels import has_regions
from nnunet_ext.losses.occupancy import OccupancyLoss, OccupancyTarget
from nnunet_ext.losses.point_sampling import Sampling, border_radius, draw_points
from nnunet_ext.trainers import networks
from nnunet_ext.trainers.base import BaseTrainer
from nnunet_ext.trainers.guards import ContractError
from nnunet_ext.trainers.ossnet_augmentation import PublishedAugmentation
from nnunet_ext.trainers.ossnet_published import PUBLISHED, published_optimizer, require_whole_volumes
from nnunet_ext.trainers.variants import variant_attribute

LEARNING_RATE = 3e-4
WEIGHT_DECAY = 1e-4
CLIP = 12.0  # nnU-Net's largest norm of the gradients
VALIDATION_POINTS = 4  # times the points of a training step
VALIDATION_SEED = 1234
LABEL_SETTINGS = ("is_cascaded", "foreground_labels", "regions", "ignore_label")


class OSSNetTrainer(BaseTrainer):
    """Trains OSS-Net: points drawn from each augmented patch on the device, decoded in one forward pass.

    The network is the plans' (``OSSNetPlanner``: `OSSNetLocal`). Plans of another network keep their patch and stages
    and get an OSSNetLocal for them, in a copy of the plans. Half of the points are drawn everywhere, a quarter near
    borders, a quarter near borders with rare classes preferred; each is weighted by its inverse density, so that no
    decision threshold shifts, and half of them lie between voxel centres, so that the field is defined there. Loss:
    nnU-Net's Dice and cross-entropy over the points, and 0.3 times the coarse heads' binary cross-entropy. AdamW,
    learning rate 3e-4, weight decay 1e-4 on matrices and kernels of the network, poly schedule. The pseudo Dice of an
    epoch is that of four times as many points, drawn everywhere.

    ``_Published_ONet``, ``_A``, ``_B``, ``_C``, ``_D`` train the published networks as the paper did, on whole volumes
    (``nnunet_ext.trainers.ossnet_published``).

    Attributes:
        border_share, balanced_share, jitter: of the points, see `Sampling`.
        importance: weight points by their inverse density.
        with_dice: Dice beside cross-entropy.
        coarse_weight: of the coarse heads' loss.
        published: the paper's augmentation, and whole volumes only.
    """

    OPTIONS: ClassVar[Mapping[str, Mapping[str, Any]]] = PUBLISHED
    network_class = NETWORK_CLASS
    method = "OSS-Net"
    supports_deep_supervision: ClassVar[bool] = False
    optimizer_name: ClassVar[str] = "adamw"
    hyperparameters: ClassVar[Mapping[str, Any]] = {"initial_lr": LEARNING_RATE, "weight_decay": WEIGHT_DECAY}
    border_share: ClassVar[float] = 0.25
    balanced_share: ClassVar[float] = 0.25
    jitter: ClassVar[float] = MOVED_SHARE
    importance: ClassVar[bool] = True
    with_dice: ClassVar[bool] = True
    coarse_weight: ClassVar[float] = 0.3
    published: ClassVar[bool] = False

    # ------------------------------------------------------------------------------------------------ plans, network

    def adapt_plans(self, plans: dict[str, Any], configuration: str) -> dict[str, Any]:
        """The base's, with the network told whether the labels are regions."""
        plans = super().adapt_plans(plans, configuration)
        if configuration in plans["configurations"]:
            resolved = networks.resolve(plans, configuration)
            architecture = resolved["architecture"]
            if self.published:
                median = resolved["median_image_size_in_voxels"]
                require_whole_volumes(resolved["patch_size"], median, type(self).__name__)
            regions = has_regions(self.dataset_json)
            if architecture["arch_kwargs"].get("regions", False) != regions:
                architecture["arch_kwargs"]["regions"] = regions
                self.set_architecture(plans, configuration, architecture)
        return plans

    def translated(self, architecture: dict[str, Any], patch_size: Sequence[int]) -> dict[str, Any]:
        """OSSNetLocal with the stages of the plans' network; the published networks for the plans' patch."""
        if self.published:
            published: dict[str, Any] = ossnet_architecture(patch_size, n_points=number_of_points(patch_size))
            return published
        arguments = architecture["arch_kwargs"]
        strides = arguments["strides"]
        kernels = arguments.get("kernel_sizes") or [[3] * len(patch_size)] * len(strides)
        made: dict[str, Any] = ossnet_local_architecture(patch_size, strides, kernels)
        return made

    def check_first_batch(self, output: Any, target: Any) -> None:
        """Logits of the points: number of samples, heads and points."""
        expected = (len(target.dense), self.label_manager.num_segmentation_heads, target.points.target.shape[2])
        got = tuple(output[0].shape)
        if got != expected:
            raise ContractError(
                f"{type(self.bare_network()).__name__} returns point logits of shape {got}, expected {expected} "
                "(samples, segmentation heads, points)."
            )

    # ------------------------------------------------------------------------------------------------- augmentation

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:
        """The base's; published: no rotation, so that the patch is not cut from a larger one."""
        settings = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if not self.published:
            return settings
        _, dummy_2d, _, mirror_axes = settings
        return (0.0, 0.0), dummy_2d, tuple(self.configuration_manager.patch_size), mirror_axes

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> Any:
        """nnU-Net's; published: the paper's augmentation, then what nnU-Net does to labels."""
        if not self.published:
            return super().get_training_transforms(*args, **kwargs)
        named = {name: kwargs[name] for name in LABEL_SETTINGS}
        return ComposeTransforms([PublishedAugmentation(), self.get_validation_transforms(None, **named)])

    # -------------------------------------------------------------------------------------------------- optimisation

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """AdamW with weight decay on matrices and kernels only; "lookahead" for the published one; else the base's."""
        if self.optimizer_name == "lookahead":
            return published_optimizer(self.network.parameters(), self.initial_lr, self.num_epochs)
        if self.optimizer_name != "adamw":
            return super().configure_optimizers()
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in parameters if p.dim() > 1]},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, self.initial_lr, betas=(0.9, 0.99), weight_decay=self.weight_decay)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def _build_loss(self) -> nn.Module:
        """Dice and cross-entropy over points; nnU-Net's settings of the Dice."""
        regions = self.label_manager.has_regions
        dice = None
        if self.with_dice:
            dice = MemoryEfficientSoftDiceLoss(
                torch.sigmoid if regions else softmax_helper_dim1,
                batch_dice=self.configuration_manager.batch_dice,
                do_bg=regions,
                smooth=1e-5,
                ddp=self.is_ddp,
            )
        return OccupancyLoss(dice, regions, self.coarse_weight, "foreground" if self.published else "classes")

    # --------------------------------------------------------------------------------------------------------- steps

    def sampling(self, validation: bool = False) -> Sampling:
        """How points are drawn; in validation uniformly, without weights."""
        network: Any = self.bare_network()
        if validation:
            return Sampling(VALIDATION_POINTS * network.n_points, 0.0, 0.0, 0.0, self._radius(), importance=False)
        return Sampling(
            network.n_points, self.border_share, self.balanced_share, self.jitter, self._radius(), self.importance
        )

    def _radius(self) -> tuple[int, ...]:
        return border_radius(self.configuration_manager.spacing)

    def point_target(self, target: Tensor, validation: bool = False) -> OccupancyTarget:
        """Points drawn from a batch's dense target (B, R, *spatial), nnU-Net's, with their labels.

        Args:
            target: labels, or regions with the ignored voxels' channel last.
            validation: uniform points, the same places at every call.
        """
        ignored, manager = None, self.label_manager
        if manager.has_regions:
            if manager.has_ignore_label:
                target, ignored = target[:, :-1], target[:, -1:] > 0
        elif manager.has_ignore_label:
            ignored = target == manager.ignore_label
            target = torch.where(ignored, 0, target)
        generator = torch.Generator(target.device).manual_seed(VALIDATION_SEED) if validation else None
        return OccupancyTarget(draw_points(target, self.sampling(validation), ignored, generator), target, ignored)

    def _prepare(self, batch: dict[str, Any], validation: bool = False) -> tuple[Tensor, OccupancyTarget]:
        """A batch's images on the device, and points with their labels."""
        data = batch["data"].to(self.device, non_blocking=True)
        target = batch["target"].to(self.device, non_blocking=True)
        return data, self.point_target(target, validation)

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast("cuda") if self.device.type == "cuda" else nullcontext()

    def optimise(self, batch: dict[str, Any]) -> dict[str, Any]:
        """nnU-Net's training step, with points."""
        data, target = self._prepare(batch)
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            output = self.network(data, target.points.coords, target.points.on_grid)
            loss = self.loss(output, target)
        if self.grad_scaler is None:
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), CLIP)
            self.optimizer.step()
        else:
            self.grad_scaler.scale(loss).backward()
            self.grad_scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), CLIP)
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        return {"loss": loss.detach().cpu().numpy()}

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Loss and counts of true and false points of a batch; the same random places in every epoch."""
        data, target = self._prepare(batch, validation=True)
        points = target.points
        with self._autocast():
            output = self.network(data, points.coords, points.on_grid)
            loss = self.loss(output, target)
        counts = self._counts(output[0].float(), points.target, points.weights > 0)
        return {"loss": loss.detach().cpu().numpy(), **counts}

    def _counts(self, logits: Tensor, labels: Tensor, known: Tensor) -> dict[str, Any]:
        """True and false positives and negatives of each foreground class or region, over the batch."""
        if self.label_manager.has_regions:
            predicted, true = logits > 0, labels > 0
        else:
            classes = torch.arange(1, logits.shape[1], device=logits.device)[:, None]
            predicted, true = logits.argmax(1, keepdim=True) == classes, labels == classes
        sums = {
            "tp_hard": predicted & true & known,
            "fp_hard": predicted & ~true & known,
            "fn_hard": ~predicted & true & known,
        }
        return {name: mask.sum((0, 2)).cpu().numpy() for name, mask in sums.items()}


__getattr__ = variant_attribute(__name__)
