"""The base of our trainers: everything that we know of nnU-Net's trainer (nnunetv2 2.8) is here."""

from __future__ import annotations

import math
import os
import pydoc
import random
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import Any, ClassVar

import numpy as np
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_ext import __version__
from nnunet_ext.architectures.blocks.memory import BYTES_PER_UNIT, REFERENCE_BATCH_SIZE, training_inputs
from nnunet_ext.architectures.graph import unused_parameters
from nnunet_ext.cores import limit_torch_threads
from nnunet_ext.registry import TRAINERS, TrainerEntry
from nnunet_ext.trainers import checks, networks, pretrained_weights
from nnunet_ext.trainers.checkpoints import write_atomically
from nnunet_ext.trainers.guards import LossGuard, NonFiniteLossError, check_outputs, explain_non_finite
from nnunet_ext.trainers.schedules import CosineLRScheduler

CUDA = torch.device("cuda")  # nnU-Net's default
SKIPPED_STEPS = 10  # with a gradient scaler: so many steps in a row may have a loss that is not finite


class BaseTrainer(nnUNetTrainer):
    """nnU-Net's trainer with plans that can be adapted, checks of the contract, atomic checkpoints, and variants.

    A method's trainer sets the class attributes below, may override ``adapt_plans``, and is registered in
    ``nnunet_ext.registry``; the suffixes of its name then work. Everything else is nnU-Net's, and may be overridden as
    in any nnU-Net trainer (build another loss in ``_build_loss``).

    Attributes:
        OPTIONS: the method's own suffixes: suffix to class attributes (mappings are merged).
        hyperparameters: nnU-Net's instance attributes (``initial_lr``, ``num_epochs``, ...), set after its constructor.
        optimizer_name: "sgd" (nnU-Net's: momentum 0.99, Nesterov) or "adamw" (betas 0.9 and 0.999).
        schedule: "poly" (nnU-Net's, exponent 0.9) or "cosine" (to zero, no warm-up), both set once an epoch.
        warmup_iterations: over so many iterations the learning rate first rises linearly to the schedule's.
        mirroring: mirror in training and at inference.
        seed: seeds python, numpy and torch in ``initialize`` and, from (seed, epoch, rank), at the start of every
            epoch, so that a resumed run continues as the uninterrupted one (checkpoints hold no random state, and
            without seed a resumed run draws other patches). Equal bits need a CPU and ``nnUNet_n_proc_DA=0``: nnU-Net's
            augmentation workers are not seeded, and cuDNN chooses its algorithms by time.
        supports_deep_supervision: False for methods whose network has one output only.
        network_class: dotted name of the method's network in plans; None: whatever the plans name.
        network_options: keyword arguments of that network that overrule the plans'.
        method: the method's name for people.
        planned_architecture: where the plans' network was changed, the block that they were made with.
    """

    OPTIONS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    hyperparameters: ClassVar[Mapping[str, Any]] = {}
    optimizer_name: ClassVar[str] = "sgd"
    schedule: ClassVar[str] = "poly"
    warmup_iterations: int = 0
    mirroring: ClassVar[bool] = True
    seed: ClassVar[int | None] = None
    supports_deep_supervision: ClassVar[bool] = True
    network_class: ClassVar[str | None] = None
    network_options: ClassVar[Mapping[str, Any]] = {}
    method: ClassVar[str] = ""
    loss: Any
    planned_architecture: dict[str, Any] | None = None

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = CUDA,
    ) -> None:
        """As nnU-Net's. ``plans`` is not changed, and ``plans["continue_training"]`` may be missing (False).

        Args:
            plans: content of a plans file.
            configuration: its name in the plans, such as ``3d_fullres``.
            fold: number of the split, or "all".
            dataset_json: content of dataset.json.
            device: cuda, cpu or mps.

        Raises:
            RuntimeError: nnUNet_results or nnUNet_preprocessed is not set.
            NotImplementedError: the configuration is not among what the registry says of this trainer.
        """
        checks.require_variables()
        plans = deepcopy(plans)
        plans.setdefault("continue_training", False)
        self.dataset_json = dataset_json  # for `adapt_plans`; nnU-Net's constructor sets it, too
        plans = self.adapt_plans(plans, configuration)
        self._require_claimed(plans, configuration)
        super().__init__(plans, configuration, fold, dataset_json, device)
        for name, value in self.hyperparameters.items():
            setattr(self, name, value)
        self.skipped_steps = 0
        self.data_was_checked = False
        self._choose_deep_supervision()

    def _require_claimed(self, plans: dict[str, Any], configuration: str) -> None:
        entry = self._entry()
        if entry is not None and configuration in plans["configurations"]:
            planned = PlansManager(plans).get_configuration(configuration)
            cascaded = planned.previous_stage_name is not None
            checks.require_claimed(entry, configuration, len(planned.patch_size), cascaded=cascaded)

    # ------------------------------------------------------------------------------------------------ plans, network

    def adapt_plans(self, plans: dict[str, Any], configuration: str) -> dict[str, Any]:
        """Hook: change the plans before nnU-Net sees them; plans.json and checkpoints then hold the effective network.

        With a ``network_class``, plans of another network are translated to it and ``network_options`` are written
        into its arguments. Called before nnU-Net's constructor, so only `dataset_json` exists yet. Must leave adapted
        plans as they are.

        Args:
            plans: a copy that may be changed.
            configuration: the configuration to be trained; may be unknown (leave that to nnU-Net).

        Returns:
            The plans to use.

        Raises:
            ValueError: the plans' network has no strides to translate.
        """
        if self.network_class is None or configuration not in plans["configurations"]:
            return plans
        resolved = networks.resolve(plans, configuration)
        planned = resolved["architecture"]

        def translate(architecture: dict[str, Any], patch_size: Sequence[int]) -> dict[str, Any]:
            networks.require_strides(architecture, plans["plans_name"], self.method, self._planner())
            return self.translated(architecture, patch_size)

        options = self.network_options
        made = networks.effective(planned, resolved["patch_size"], self.network_class, options, translate)
        if made is not planned:
            self.planned_architecture = planned
            self.set_architecture(plans, configuration, made)
        return plans

    def translated(self, architecture: dict[str, Any], patch_size: Sequence[int]) -> dict[str, Any]:
        """Hook: the method's architecture block for plans that were made for another network with ``strides``.

        Args:
            architecture: the other network's block.
            patch_size: of the plans, in voxels.
        """
        raise NotImplementedError(f"{type(self).__name__} does not translate plans of other networks.")

    def _planner(self) -> str:
        """Name of the planner that is registered for this trainer."""
        entry = self._entry()
        return "its planner" if entry is None else entry.planner

    def _entry(self) -> TrainerEntry | None:
        return next((TRAINERS[c.__name__] for c in type(self).__mro__ if c.__name__ in TRAINERS), None)

    def set_architecture(self, plans: dict[str, Any], configuration: str, architecture: dict[str, Any]) -> None:
        """For ``adapt_plans``: put a network into a configuration, and the version that it needs into the plans."""
        plans["configurations"][configuration]["architecture"] = architecture
        plans["nnunet_ext"] = {**plans.get("nnunet_ext", {}), "version": __version__, "trainer": type(self).__name__}

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """Build the network that the plans name, and let it check the plans' patch size.

        Raises:
            ValueError: the network cannot work with the patch size (its own text).
            RuntimeError: the plans were made by a newer version of this package.
        """
        checks.require_package(plans_manager.plans)
        settings = configuration_manager.configuration
        checks.require_divisible(settings["patch_size"], settings["architecture"])
        network = nnUNetTrainer.build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
        )
        check_patch_size = getattr(network, "check_patch_size", None)
        if check_patch_size is not None:
            check_patch_size(configuration_manager.patch_size)
        return network

    def bare_network(self) -> nn.Module:
        """The network without the wrappers of DDP and torch.compile."""
        return pretrained_weights.bare(self.network)

    # --------------------------------------------------------------------------------------------- deep supervision

    def _choose_deep_supervision(self) -> None:
        """Off where the network has none, or where the plans give one scale only (nnU-Net's weights would be NaN)."""
        network_class = pydoc.locate(self.configuration_manager.network_arch_class_name)
        if not (self.supports_deep_supervision and getattr(network_class, "supports_deep_supervision", True)):
            self.enable_deep_supervision = False
        if self.enable_deep_supervision:
            scales = len(self._get_deep_supervision_scales())
            if scales < 2:
                self.enable_deep_supervision = False
                self.print_to_log_file(
                    f"Deep supervision is off: the configuration {self.configuration_name} gives {scales} scale(s), "
                    "and nnU-Net's weights of the scales need at least 2."
                )

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Switch the network's outputs, through DDP and torch.compile; never on when the trainer has it off.

        Raises:
            RuntimeError: asked to switch it on for a network without ``decoder.deep_supervision``.
        """
        enabled = enabled and self.enable_deep_supervision
        network = self.bare_network()
        decoder: Any = getattr(network, "decoder", None)
        if hasattr(decoder, "deep_supervision"):
            decoder.deep_supervision = enabled
        elif enabled:
            raise RuntimeError(
                f"{type(network).__name__} has no decoder.deep_supervision, so deep supervision cannot be on: set "
                f"`supports_deep_supervision = False` in the trainer {type(self).__name__}."
            )

    # ------------------------------------------------------------------------------------------ optimisation, seeds

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """Optimizer and schedule by ``optimizer_name`` and ``schedule``.

        Raises:
            ValueError: an unknown name.
        """
        if self.is_ddp and not self.enable_deep_supervision:
            self._freeze_unused_parameters()
        parameters = self.network.parameters()
        optimizer: torch.optim.Optimizer
        if self.optimizer_name == "sgd":
            optimizer = torch.optim.SGD(
                parameters, self.initial_lr, momentum=0.99, nesterov=True, weight_decay=self.weight_decay
            )
        elif self.optimizer_name == "adamw":
            optimizer = torch.optim.AdamW(
                parameters, self.initial_lr, betas=(0.9, 0.999), weight_decay=self.weight_decay
            )
        else:
            raise ValueError(f"optimizer_name is {self.optimizer_name!r}; allowed are 'sgd' and 'adamw'.")
        if self.schedule == "poly":
            return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)
        if self.schedule == "cosine":
            return optimizer, CosineLRScheduler(optimizer, self.initial_lr, self.num_epochs)
        raise ValueError(f"schedule is {self.schedule!r}; allowed are 'poly' and 'cosine'.")

    def _freeze_unused_parameters(self) -> None:
        """Freeze what gets no gradient (heads of lower scales), which DDP would wait for; called before it wraps."""
        patch = self.configuration_manager.patch_size
        with torch.device("meta"):
            network = self.build_network_architecture(
                self.plans_manager,
                self.configuration_manager,
                self.num_input_channels,
                self.label_manager.num_segmentation_heads,
                False,
            )
        for name in unused_parameters(network, *training_inputs(network, patch, self.num_input_channels)):
            self.bare_network().get_parameter(name).requires_grad_(False)

    def _seed_everything(self, seed: int) -> None:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed % 2**63)

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:
        """nnU-Net's; without mirroring the axes are None in training and for inference (an empty tuple crashes)."""
        rotation, dummy_2d, initial_patch_size, mirror_axes = (
            super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        if not self.mirroring:
            mirror_axes = None
            self.inference_allowed_mirroring_axes = None
        return rotation, dummy_2d, initial_patch_size, mirror_axes

    # --------------------------------------------------------------------------------------------------- life cycle

    def initialize(self) -> None:
        """nnU-Net's; before it a look for preprocessed data, threads and seed, after it the guard around the loss."""
        manager = self.plans_manager
        checks.require_preprocessed(
            self.preprocessed_dataset_folder, manager.dataset_name, manager.plans_name, self.configuration_name
        )
        if self.device.type == "cpu":
            limit_torch_threads()
        if self.seed is not None:
            self._seed_everything(self.seed)
        pretrained_weights.watch()
        super().initialize()
        self._begin_epoch()
        self.loss = LossGuard(self.loss, self.check_first_batch, every_step=self.grad_scaler is None)

    def check_first_batch(self, output: Any, target: Any) -> None:
        """Hook: compare the first training batch's output with its target. Overridden by methods with other outputs.

        Raises:
            ContractError: they do not fit.
        """
        check_outputs(output, target, self.label_manager.num_segmentation_heads, type(self.bare_network()).__name__)

    def on_train_start(self) -> None:
        """nnU-Net's; before it every case is opened once, after it the memory estimate is logged."""
        if not self.was_initialized:
            self.initialize()
        self._check_data()
        super().on_train_start()
        self.log_memory()

    def on_train_epoch_start(self) -> None:
        """nnU-Net's, seeded."""
        if self.seed is not None:
            state = np.random.SeedSequence((self.seed, self.current_epoch, self.local_rank)).generate_state(1)
            self._seed_everything(int(state[0]))
        super().on_train_epoch_start()
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self.epoch_iteration = 0
        self.scheduled_rates = [group["lr"] for group in self.optimizer.param_groups]

    def _warm_up(self) -> None:
        """Set this iteration's learning rate; it depends on epoch and iteration alone, so resumed runs continue."""
        iteration = self.current_epoch * self.num_iterations_per_epoch + self.epoch_iteration
        self.epoch_iteration += 1
        if iteration <= self.warmup_iterations:
            factor = min(1.0, (iteration + 1) / (self.warmup_iterations + 1))
            for group, rate in zip(self.optimizer.param_groups, self.scheduled_rates, strict=True):
                group["lr"] = rate * factor

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """nnU-Net's; with ``--val`` the cases have not been opened yet, so look at them first."""
        self._check_data()
        super().perform_actual_validation(save_probabilities)

    def _check_data(self) -> None:
        """Once, on rank 0: can every case of the fold be read, and are the cascade's first-stage predictions there?"""
        if self.data_was_checked or self.local_rank != 0:
            return
        training, validation = self.do_split()
        cases = [*training, *validation]
        manager, folder = self.plans_manager, self.preprocessed_dataset_folder
        command = (
            f"`nnUNetv2_preprocess -d {manager.dataset_name} -plans_name {manager.plans_name} "
            f"-c {self.configuration_name}`"
        )
        checks.require_readable(checks.unreadable_cases(self.dataset_class, folder, cases), folder, command)
        if self.is_cascaded:
            stage = self.configuration_manager.previous_stage_name
            trainer = type(self).__name__
            first = f"`nnUNetv2_train {manager.dataset_name} {stage} FOLD -tr {trainer} -p {manager.plans_name}`"
            folder = self.folder_with_segs_from_previous_stage
            checks.require_previous_stage(folder, sorted(set(cases)), first, trainer)
        pretrained_weights.warn_of_leakage(self, validation)
        self.data_was_checked = True

    def log_memory(self) -> None:
        """Log an estimate of what a training step keeps for its backward pass; not for networks without a count."""
        network = self.bare_network()
        if not hasattr(network, "compute_conv_feature_map_size"):
            return
        try:
            gigabytes = self.activation_gigabytes(network)
        except Exception as error:  # a line of the log must not end a training
            self.print_to_log_file(f"The memory of {type(network).__name__} could not be estimated: {error!r}")
            return
        self.print_to_log_file(
            f"{type(network).__name__}: {sum(p.numel() for p in network.parameters()):,} parameters; about "
            f"{gigabytes:.2f} GB kept for the backward pass in float32 (patch "
            f"{tuple(self.configuration_manager.patch_size)}, batch {self.batch_size}; mixed precision needs less; "
            "weights, gradients and optimizer come on top)."
        )
        if self.planned_architecture is not None:
            text = networks.memory_beside_planned(self, self.planned_architecture, self.method, self._planner())
            if text is not None:
                self.print_to_log_file(text)

    def activation_gigabytes(self, network: nn.Module) -> float:
        """Estimate (GB = 1e9 bytes) by ``compute_conv_feature_map_size`` at the plans' patch and our batch size."""
        units = network.compute_conv_feature_map_size(self.configuration_manager.patch_size)  # type: ignore[operator]
        return float(units) * BYTES_PER_UNIT / REFERENCE_BATCH_SIZE * self.batch_size / 1e9

    # ---------------------------------------------------------------------------------------------- training step

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """nnU-Net's, with a look at the loss, which is on the host already.

        On devices without gradient scaler a loss that is not finite raises before it reaches the weights. With one,
        such a step is skipped by the scaler: it is logged, and raises when it is the training's first, or the last of
        ``SKIPPED_STEPS`` in a row.

        Raises:
            NonFiniteLossError: says where the first value that is not finite arose.
        """
        self._warm_up()
        try:
            result = self.optimise(batch)
        except NonFiniteLossError as error:
            raise NonFiniteLossError(f"{error} {self._explain(batch)}") from None
        if math.isfinite(float(np.asarray(result["loss"]).item())):
            self.skipped_steps = 0
            return result
        self.skipped_steps += 1
        text = f"The loss is {result['loss']} in epoch {self.current_epoch}."
        if self.skipped_steps in (1, SKIPPED_STEPS):
            text = f"{text} {self._explain(batch)}"
        if self.skipped_steps >= SKIPPED_STEPS or self.grad_scaler is None:
            raise NonFiniteLossError(text)
        self.print_to_log_file(f"WARNING: {text} The gradient scaler skips this step.")
        return result

    def optimise(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Hook: forward, loss, backward and the optimizer's step; nnU-Net's.

        Args:
            batch: of the data loader, on the CPU.

        Returns:
            ``loss``: a numpy scalar.
        """
        result: dict[str, Any] = super().train_step(batch)
        return result

    def _explain(self, batch: dict[str, Any]) -> str:
        """Where values that are not finite come from in this batch."""
        on_gpu = self.device.type == "cuda"
        autocast: AbstractContextManager[Any] = torch.autocast("cuda") if on_gpu else nullcontext()
        cases = [str(case) for case in batch.get("keys", [])]
        return explain_non_finite(self.bare_network(), batch["data"].to(self.device), cases, autocast)

    # ------------------------------------------------------------------------------------------------- checkpoints

    def save_checkpoint(self, filename: str) -> None:
        """nnU-Net's, atomic: after a failure the earlier file is as it was, and no half-written file is left.

        Raises:
            RuntimeError: the file could not be written; names it, the free space and what to do.
        """
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        advice = (
            f"Make room in {os.path.dirname(filename)} (old results, preprocessed data of other configurations) and "
            "continue with the same nnUNetv2_train command and --c."
        )
        write_atomically(filename, super().save_checkpoint, advice)
