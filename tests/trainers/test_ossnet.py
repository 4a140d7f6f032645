"""OSS-Net's trainer: plans, recipes, published augmentation and schedule, steps, validation, several processes."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import ossnet_step
import pytest
import support
import torch
from kd_step import gradients
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from resuming import KeyedBatches, assert_same_state, interrupted
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from nnunet_ext.architectures.blocks.memory import training_inputs
from nnunet_ext.architectures.blocks.point_grid import voxel_coordinates
from nnunet_ext.architectures.graph import unused_parameters
from nnunet_ext.architectures.ossnet_local_plans import NETWORK_CLASS, ossnet_local_architecture
from nnunet_ext.architectures.ossnet_plans import NETWORK_CLASS as FAITHFUL
from nnunet_ext.architectures.ossnet_plans import VARIANTS, ossnet_architecture
from nnunet_ext.losses.point_sampling import Points
from nnunet_ext.trainers.lookahead import Lookahead
from nnunet_ext.trainers.options import variant_attributes
from nnunet_ext.trainers.ossnet import OSSNetTrainer
from nnunet_ext.trainers.ossnet_published import MultiStepSchedule, require_whole_volumes
from nnunet_ext.trainers.variants import trainer_class

Plans = Callable[[str], dict[str, Any]]
Own = Callable[..., Any]
PATCH = [16, 32, 32]
WHOLE = [24, 32, 32]  # the data's images
STRIDES = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]


def built(workspace: support.Workspace, plans: dict[str, Any], name: str, **attributes: Any) -> Any:
    return support.build_trainer(trainer_class(name), workspace, plans, **attributes)


@pytest.fixture
def own(workspace: support.Workspace, planned: Plans) -> Own:
    """A trainer on plans with a small network: `OSSNetLocal`, or the published one for whole images."""

    def build(name: str = "OSSNetTrainer", kind: str = "plain", **attributes: Any) -> Any:
        plans = deepcopy(planned(kind))
        configuration = plans["configurations"]["3d_fullres"]
        if "Published" in name:
            configuration["patch_size"] = WHOLE
            small: dict[str, Any] = {"decoder_width": 8, "decoder_blocks": 1, "n_points": 64}
            configuration["architecture"] = ossnet_architecture(WHOLE, **small)
        else:
            configuration["patch_size"] = PATCH
            configuration["architecture"] = ossnet_local_architecture(
                PATCH, STRIDES, [[3] * 3] * 3, base_width=4, n_points=64, decoder_blocks=1
            )
        return built(workspace, plans, name, **attributes)

    return build


# --------------------------------------------------------------------------------------------------------------- plans


@pytest.mark.parametrize(("kind", "regions"), [("plain", False), ("ignore", False), ("regionsignore", True)])
def test_plans_of_another_network_are_translated(
    kind: str, regions: bool, workspace: support.Workspace, planned: Plans
) -> None:
    plans = planned(kind)
    before = deepcopy(plans)
    trainer = built(workspace, plans, "OSSNetTrainer")
    manager, stock = trainer.configuration_manager, plans["configurations"]["3d_fullres"]
    arguments = manager.network_arch_init_kwargs
    assert plans == before
    assert manager.network_arch_class_name == NETWORK_CLASS
    assert list(manager.patch_size) == stock["patch_size"]
    assert arguments["strides"] == stock["architecture"]["arch_kwargs"]["strides"]
    assert arguments["n_points"] == np.prod(stock["patch_size"]) // 4
    assert arguments["regions"] is regions
    again = built(workspace, trainer.plans_manager.plans, "OSSNetTrainer")
    assert again.plans_manager.plans == trainer.plans_manager.plans


def test_plans_of_the_method_are_told_about_regions(own: Own) -> None:
    """Plans that were made for labels only, or by hand."""
    trainer = own(kind="regions")
    assert trainer.configuration_manager.network_arch_init_kwargs["regions"] is True
    trainer.initialize()
    assert trainer.network.regions is True
    assert trainer.network.num_classes == 2


@pytest.mark.parametrize("variant", VARIANTS)
def test_recipes_choose_the_published_network(variant: str, own: Own) -> None:
    trainer = own(f"OSSNetTrainer_Published_{variant}")
    manager = trainer.configuration_manager
    assert manager.network_arch_class_name == FAITHFUL
    arguments = manager.network_arch_init_kwargs
    chosen = VARIANTS[variant]
    assert {key: arguments[key] for key in ("patches", "large_patches", "skip")} == vars(chosen)
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.initial_lr) == (50, 40, 3e-4)
    trainer.initialize()
    sampling = trainer.sampling()
    assert (sampling.border, sampling.balanced, sampling.jitter, sampling.importance) == (0, 0, 0, False)
    loss = trainer.loss.wrapped
    assert (loss.dice, loss.coarse_weight, loss.coarse_target) == (None, 0.1, "foreground")


@pytest.mark.parametrize("kind", ["plain", "noncubic", "regions"])
def test_stock_plans_of_whole_volumes_get_a_published_network(
    kind: str, workspace: support.Workspace, planned: Plans
) -> None:
    plans = planned(kind)
    patch = plans["configurations"]["3d_fullres"]["patch_size"]
    trainer = built(workspace, plans, "OSSNetTrainer_Published_B")
    arguments = trainer.configuration_manager.network_arch_init_kwargs
    assert trainer.configuration_manager.network_arch_class_name == FAITHFUL
    assert (arguments["patch_size"], arguments["large_patches"], arguments["skip"]) == (patch, True, False)
    assert arguments.get("regions", False) is (kind == "regions")
    trainer.initialize()
    trainer.network.check_patch_size(patch)


def test_suffixes_overrule_a_recipe() -> None:
    made: Any = trainer_class("OSSNetTrainer_Published_C_AdamW_250epochs")
    assert made.hyperparameters["num_epochs"] == 250
    assert made.hyperparameters["num_iterations_per_epoch"] == 40
    assert made.optimizer_name == "adamw"
    assert made.published


def test_published_networks_need_whole_volumes(workspace: support.Workspace, planned: Plans) -> None:
    plans = deepcopy(planned("plain"))
    plans["configurations"]["3d_fullres"]["patch_size"] = [24, 32, 16]
    with pytest.raises(
        ValueError,
        match=r"Published_A trains on whole volumes.*\(24, 32, 16\).*\(24, 32, 32\): .*OSSNetPlanner_Published",
    ):
        built(workspace, plans, "OSSNetTrainer_Published_A")
    require_whole_volumes((24, 32, 32), (24.0, 32.4, 32.0), "T")
    require_whole_volumes((32, 32), (1.0, 32.0, 32.0), "T")  # 2d plans may state three axes


# -------------------------------------------------------------------------------------------------------- augmentation


@pytest.mark.parametrize("kind", ["plain", "regions"])
def test_published_augmentation_flips_both_alike(kind: str, own: Own) -> None:
    """Two of the axes; beside that a constant or noise is added to the image. No patch is cut from a larger one."""
    trainer = own("OSSNetTrainer_Published_C", kind)
    rotation, dummy_2d, initial, mirror = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    assert tuple(initial) == tuple(WHOLE)
    assert mirror is None
    assert trainer.inference_allowed_mirroring_axes is None
    manager = trainer.label_manager
    transforms = trainer.get_training_transforms(
        WHOLE,
        rotation,
        None,
        mirror,
        dummy_2d,
        is_cascaded=False,
        foreground_labels=manager.foreground_labels,
        regions=manager.foreground_regions if manager.has_regions else None,
        ignore_label=None,
    )
    image, labels = torch.randn(2, 3, 4, 5), torch.randint(-1, 3, (1, 3, 4, 5))
    known = labels.clamp(min=0)
    truth = known if kind == "plain" else torch.cat([known > 0, known == 2])
    flips = [(), (-1,), (-2,), (-1, -2)]
    torch.manual_seed(0)
    seen: dict[tuple[tuple[int, ...], str], int] = {}
    for _ in range(400):
        made = transforms(image=image.clone(), segmentation=labels.clone())
        (axes,) = [a for a in flips if torch.equal(made["segmentation"].to(truth.dtype), truth.flip(a))]
        change = made["image"] - image.flip(axes)
        per_channel = change.flatten(1).std(1)
        noisy = bool((per_channel > 0.05).all())
        assert noisy or bool((per_channel < 1e-5).all())
        if noisy:
            assert bool((per_channel - 0.15).abs().max() < 0.06)
        shift = change.flatten(1).mean(1).abs()
        assert bool((shift <= 0.15 * image.flatten(1).amax(1) + 0.06 * noisy).all())
        what = "noise" if noisy else "shift" if float(shift.max()) > 1e-6 else "none"
        seen[axes, what] = seen.get((axes, what), 0) + 1
    assert set(seen) == set(product(flips, ("noise", "shift", "none")))
    assert 160 < sum(n for (axes, _), n in seen.items() if not axes) < 240


# -------------------------------------------------------------------------------------------------------- optimisation


def test_weight_decay_is_for_matrices_and_kernels(own: Own) -> None:
    trainer = own()
    trainer.initialize()
    decayed, spared = trainer.optimizer.param_groups
    assert (decayed["weight_decay"], spared["weight_decay"], decayed["lr"]) == (1e-4, 0, 3e-4)
    assert all(p.dim() > 1 for p in decayed["params"])
    assert all(p.dim() <= 1 for p in spared["params"])
    everything = {id(p) for p in trainer.network.parameters()}
    assert {id(p) for p in (*decayed["params"], *spared["params"])} == everything


def test_published_optimizer_and_schedule(own: Own) -> None:
    trainer = own("OSSNetTrainer_Published_C")
    trainer.initialize()
    assert isinstance(trainer.optimizer, Lookahead)
    assert (trainer.optimizer.k, trainer.optimizer.alpha) == (5, 0.8)  # specification ossnet 2.5
    (group,) = trainer.optimizer.param_groups
    assert len(group["params"]) == len(list(trainer.network.parameters()))
    rates = {}
    for epoch in (0, 19, 20, 29, 30, 49, 20):  # a resumed training steps to any epoch
        trainer.lr_scheduler.step(epoch)
        rates[epoch] = group["lr"]
    assert rates == pytest.approx({0: 3e-4, 19: 3e-4, 20: 3e-5, 29: 3e-5, 30: 3e-6, 49: 3e-6})
    adamw = own("OSSNetTrainer_Published_C_AdamW")
    adamw.initialize()
    assert type(adamw.optimizer) is torch.optim.AdamW


def test_a_schedule_of_few_epochs() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0)
    schedule = MultiStepSchedule(optimizer, 1.0, (1, 2))
    rates = []
    for epoch in range(3):
        schedule.step(epoch)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1, 0.1, 0.01])


def test_another_optimizer_is_the_base_trainers(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OSSNetTrainer, "optimizer_name", "sgd")
    trainer = own()
    trainer.initialize()
    assert type(trainer.optimizer) is torch.optim.SGD


@pytest.mark.parametrize("recipe", ["", "Published_C"])
def test_resumed_equals_uninterrupted(recipe: str, workspace: support.Workspace, own: Own, tmp_path: Path) -> None:
    """Weights, the optimizer's slow weights and the points go on as they would have."""
    suffixes = [recipe] * bool(recipe) + ["Seed1", "2its", "3epochs"]
    base: Any = type("Keyed", (KeyedBatches, OSSNetTrainer), {})
    made = type("Keyed", (base,), variant_attributes(OSSNetTrainer, suffixes))
    plans = own("_".join(["OSSNetTrainer", *suffixes])).plans_manager.plans
    with workspace.environment(tmp_path / "whole"):
        whole = support.build_trainer(made, workspace, plans)
        whole.run_training()
    with workspace.environment(tmp_path / "parts"):
        parts = interrupted(workspace, plans, made)
    assert_same_state(whole, parts)
    for key in ("train_losses", "val_losses", "dice_per_class_or_region"):
        assert parts.logger.get_value(key, step=None) == whole.logger.get_value(key, step=None)


# --------------------------------------------------------------------------------------------------------------- steps


def batch_of(trainer: Any, seed: int = 0) -> dict[str, Any]:
    """Images and nnU-Net's target for them, of the trainer's kind."""
    generator = torch.Generator().manual_seed(seed)
    patch, manager = trainer.configuration_manager.patch_size, trainer.label_manager
    data = torch.randn(2, 1, *patch, generator=generator)
    target: Tensor = (data > 0).to(torch.int16) + (data > 1).to(torch.int16)
    ignored = torch.rand(target.shape, generator=generator) < 0.3
    if manager.has_regions:
        target = torch.cat([target > 0, target == 2], 1)
        if manager.has_ignore_label:
            target = torch.cat([target & ~ignored, ignored], 1)
    elif manager.has_ignore_label:
        target[ignored] = manager.ignore_label
    return {"data": data, "target": target, "keys": ["x", "y"]}


@pytest.mark.parametrize("kind", ["plain", "regions", "ignore", "regionsignore"])
def test_validation_counts_are_nnunets(kind: str, own: Own) -> None:
    """With all voxels as points, and the dense logits for nnU-Net."""
    trainer = own("OSSNetTrainer_Seed1", kind)
    trainer.initialize()
    head = trainer.network.decoder.seg_layers[0]
    nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(1))
    trainer.network.eval()
    trainer.network.decode_mode = "dense"
    batch = batch_of(trainer)

    def all_voxels(dense: Tensor, sampling: Any, ignored: Tensor | None, generator: Any) -> Points:
        coords = voxel_coordinates(dense.shape[2:]).expand(2, -1, -1)
        weights = torch.ones(2, 1, coords.shape[1]) if ignored is None else (~ignored).flatten(2).float()
        return Points(coords, dense.flatten(2), weights, coords.shape[1])

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr("nnunet_ext.trainers.ossnet.draw_points", all_voxels)
        ours = trainer.validation_step(batch)
        trainer.loss = lambda output, target: torch.zeros(())
        theirs = nnUNetTrainer.validation_step(trainer, batch)
    assert np.isfinite(ours["loss"])
    for key in ("tp_hard", "fp_hard", "fn_hard"):
        np.testing.assert_array_equal(ours[key], theirs[key])
    assert ours["tp_hard"].sum() + ours["fp_hard"].sum() > 0
    assert ours["fn_hard"].sum() > 0


def test_validation_points_are_the_same_in_every_epoch(own: Own) -> None:
    trainer = own()
    trainer.initialize()
    batch = batch_of(trainer)
    state = torch.get_rng_state()
    first, again = (trainer._prepare(batch, validation=True)[1].points for _ in range(2))
    assert torch.equal(first.coords, again.coords)
    assert first.coords.shape[1] == 4 * trainer.network.n_points
    assert torch.equal(torch.get_rng_state(), state)
    one, other = (trainer._prepare(batch)[1].points for _ in range(2))
    assert not torch.equal(one.coords, other.coords)


@pytest.mark.parametrize("kind", ["ignore", "regionsignore"])
def test_a_batch_without_any_label(kind: str, own: Own) -> None:
    """Ignored everywhere: nothing to learn or to count, and nothing that is not finite."""
    trainer = own(kind=kind)
    trainer.initialize()
    batch = batch_of(trainer)
    manager = trainer.label_manager
    if manager.has_regions:
        batch["target"][:] = 0
        batch["target"][:, -1] = 1
    else:
        batch["target"][:] = manager.ignore_label
    with torch.no_grad():
        counts = trainer.validation_step(batch)
    assert all(counts[key].sum() == 0 for key in ("tp_hard", "fp_hard", "fn_hard"))
    assert np.isfinite(counts["loss"])
    assert np.isfinite(trainer.train_step(batch)["loss"])
    assert all(bool(torch.isfinite(p).all()) for p in trainer.network.parameters())


def test_a_gradient_scaler_changes_nothing(own: Own) -> None:
    weights = []
    for scaled in (False, True):
        trainer = own("OSSNetTrainer_Seed1")
        trainer.initialize()
        if scaled:
            trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        torch.manual_seed(3)
        for seed in range(2):
            trainer.train_step(batch_of(trainer, seed))
        weights.append(nn.utils.parameters_to_vector(trainer.network.parameters()).detach())
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-6)


# --------------------------------------------------------------------------------------------------- several processes


@pytest.mark.parametrize("name", ["OSSNetTrainer", *(f"OSSNetTrainer_Published_{variant}" for variant in VARIANTS)])
def test_no_parameter_is_unused(name: str, own: Own) -> None:
    """DDP would wait for its gradient."""
    trainer = own(name)
    trainer.initialize()
    inputs = training_inputs(trainer.network.train(), trainer.configuration_manager.patch_size, 1)
    assert unused_parameters(trainer.network, *inputs) == []
    trainer._freeze_unused_parameters()
    assert all(p.requires_grad for p in trainer.network.parameters())


@pytest.mark.usefixtures("one_process")
def test_trains_with_ddp(own: Own) -> None:
    trainer = own("OSSNetTrainer_2its_1epochs", disable_checkpointing=True)
    trainer.device, trainer.grad_scaler = torch.device("cpu"), None
    trainer.run_training()
    assert isinstance(trainer.network, DistributedDataParallel)
    assert np.isfinite(trainer.logger.get_value("train_losses", step=None)).all()


def test_two_processes_get_the_gradients_of_one_with_both_images(tmp_path: Path) -> None:
    other = spawn(ossnet_step.other_process, (str(tmp_path),), nprocs=1, join=False)
    found = ossnet_step.parallel_step(0, str(tmp_path))
    assert other is not None
    assert other.join()
    network = ossnet_step.seeded()
    x, target = ossnet_step.batch()
    ossnet_step.step(network, x, target, ddp=False)
    torch.testing.assert_close(found, gradients(network), rtol=1e-4, atol=1e-7)
