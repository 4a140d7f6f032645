"""Self-regularisation (KD) for every U-shaped network (``specs/selfreg.md``; Zhu et al., MICCAI 2024).

``KDMixin`` adds the two terms to any of our trainers; the suffix ``_KD`` puts it in front of one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nnunet_ext.losses.class_distillation import class_distillation
from nnunet_ext.losses.points import KDPoints
from nnunet_ext.losses.self_regularisation import Features, Options, SelfRegularisation
from nnunet_ext.losses.store import FeatureStore
from nnunet_ext.trainers.base import BaseTrainer
from nnunet_ext.trainers.variants import variant_attribute

WARMUP_SHARE = 0.1  # of the epochs

#: Class attributes of the published form; also of a recipe `_Published` together with `_KD`.
PUBLISHED: Mapping[str, Any] = {"kd_matching": "random", "kd_warmup_epochs": 0}


class KDLoss(nn.Module):
    """A trainer's loss plus self-regularisation, after a training forward; without features the loss alone.

    Args:
        base: nnU-Net's loss, with its deep supervision.
        options: of the regulariser.
        take: gives the last forward's features, None if it did not train.
        factor: gives the factor of this epoch.
        generator: gives the random generator of this step.
        classes: experimental: a further weighted term of the outputs of deep supervision.
    """

    def __init__(
        self,
        base: nn.Module,
        options: Options,
        take: Callable[[], Features | None],
        factor: Callable[[], float],
        generator: Callable[[], torch.Generator | None],
        classes: Callable[[Sequence[Tensor]], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.classes = classes
        self.base = base
        self.regulariser = SelfRegularisation(options)
        self._take, self._factor, self._generator = take, factor, generator
        self.forget()

    def forget(self) -> None:
        """Begin to collect an epoch's values."""
        self.steps, self.skipped = 0, torch.zeros(())
        self.sums = torch.zeros(2)

    def forward(self, output: Any, target: Any) -> Tensor:
        """Logits and targets as the base takes them; returns a 0-dimensional tensor."""
        loss: Tensor = self.base(output, target)
        features, factor = self._take(), self._factor()
        if features is None or factor == 0:
            return loss
        terms = self.regulariser(features, self._generator())
        value = factor * self.regulariser.total(terms)
        if self.classes is not None and not isinstance(output, Tensor):
            value = value + factor * self.classes(output)
        finite = torch.isfinite(value.detach())
        self._collect(terms.scr, terms.ifd, finite)
        return loss + torch.where(finite, value, torch.zeros_like(value)).to(loss.dtype)

    def _collect(self, scr: Tensor, ifd: Tensor, finite: Tensor) -> None:
        """Add to the epoch's sums, without waiting for the device."""
        values = torch.stack([scr.detach(), ifd.detach()]).float()
        self.sums = self.sums.to(values.device) + torch.where(finite, values, torch.zeros_like(values))
        self.skipped = self.skipped.to(values.device) + (~finite).float()
        self.steps += 1


class KDMixin(BaseTrainer):
    """Adds semantic consistency (SCR) and internal feature distillation (IFD) to the loss of a training.

    The network, its weights' names and prediction stay as they are: a checkpoint predicts with the plain trainer. The
    validation loss is the plain one; training losses are not comparable with plain runs'.

    Attributes:
        kd_scr_weight, kd_ifd_weight: factors of the terms; the paper's 0.015.
        kd_warmup_epochs: the factors grow linearly over so many epochs; None: a tenth of the training.
        kd_matching: "mean", "random" (published), or "attention" (experimental).
        kd_class_weight: experimental: factor of `class_distillation` of the deep-supervision outputs; 0 leaves it out.
        kd_normalise, kd_detach_top: experimental, see `nnunet_ext.losses.self_regularisation.Options`.
    """

    kd_scr_weight: ClassVar[float] = 0.015
    kd_ifd_weight: ClassVar[float] = 0.015
    kd_warmup_epochs: ClassVar[int | None] = None
    kd_matching: ClassVar[str] = "mean"
    kd_class_weight: ClassVar[float] = 0.0
    kd_normalise: ClassVar[bool] = False
    kd_detach_top: ClassVar[bool] = False
    kd_store: FeatureStore | None = None

    def kd_options(self) -> Options:
        """The regulariser's options."""
        return Options(self.kd_scr_weight, self.kd_ifd_weight, self.kd_matching, self.kd_normalise, self.kd_detach_top)

    def kd_factor(self) -> float:
        """What the weights are multiplied with in this epoch; depends on the epoch alone, so resumed runs continue."""
        warmup = self.kd_warmup_epochs
        if warmup is None:
            warmup = round(WARMUP_SHARE * self.num_epochs)
        return 1.0 if warmup <= 0 else min(1.0, self.current_epoch / warmup)

    def kd_generator(self) -> torch.Generator | None:
        """For random matching: from seed, epoch and iteration, equal on every rank; nothing else draws from it."""
        if self.kd_matching != "random":
            return None
        step = self.current_epoch * self.num_iterations_per_epoch + self.epoch_iteration
        return torch.Generator().manual_seed((self.seed or 0) * 2**32 + step)

    def _build_loss(self) -> nn.Module:
        classes = self._kd_classes if self.kd_class_weight > 0 else None
        base = super()._build_loss()
        return KDLoss(base, self.kd_options(), self._kd_take, self.kd_factor, self.kd_generator, classes)

    def _kd_classes(self, outputs: Sequence[Tensor]) -> Tensor:
        return self.kd_class_weight * class_distillation(outputs, self.label_manager.has_regions)

    def _kd_take(self) -> Features | None:
        return None if self.kd_store is None else self.kd_store.take()

    def kd_points(self, network: nn.Module) -> KDPoints | None:
        """Hook: where a network's features are, for one that does not say so itself; None: as it says.

        Args:
            network: without the wrappers of DDP and torch.compile.
        """
        return None

    def initialize(self) -> None:
        """As the base's; then the hooks are attached, before a compiled network is called."""
        super().initialize()
        network = self.bare_network()
        self.kd_store = FeatureStore(network, self.kd_points(network))

    def on_train_epoch_start(self) -> None:
        """As the base's; a new epoch's sums."""
        super().on_train_epoch_start()
        self._kd_loss().forget()

    def on_train_epoch_end(self, train_outputs: Any) -> None:
        """As the base's; logs the epoch's mean terms, unweighted, and their factors."""
        super().on_train_epoch_end(train_outputs)
        loss, factor = self._kd_loss(), self.kd_factor()
        if loss.steps == 0:
            return
        skipped = int(loss.skipped.item())
        scr, ifd = (loss.sums / max(1, loss.steps - skipped)).tolist()
        weights = f"{factor * self.kd_scr_weight:.4g} and {factor * self.kd_ifd_weight:.4g}"
        self.print_to_log_file(f"KD: SCR {scr:.4f}, IFD {ifd:.4f} (weights {weights})")
        if skipped:
            self.print_to_log_file(
                f"WARNING: KD was not finite in {skipped} of {loss.steps} steps, where it was left out. If that goes "
                "on, train with kd_normalise or without KD."
            )

    def _kd_loss(self) -> KDLoss:
        loss: Any = self.loss
        while not isinstance(loss, KDLoss):
            loss = loss.wrapped  # the base's guard
        return loss


class KDUNetTrainer(KDMixin):
    """KD for nnU-Net's own networks (PlainConvUNet, ResidualEncoderUNet), whatever the plans say.

    ``_Published``: the paper's form: random matching of channels and full weights from the start.
    """

    OPTIONS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"Published": PUBLISHED}


__getattr__ = variant_attribute(__name__)
