"""Every registered trainer: its class and names, what it must refuse, its loss, and its second stage."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import support
import torch
from contract.models import SHORT, Planned, Trained, entry_of, trainer_named
from contract.registered import CONFIGURATIONS, NETWORKS, PLANNERS, TRAINERS, configurations, option_names
from contract.trainer_checks import CHECKS
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from resuming import KeyedBatches, assert_same_state, interrupted
from torch import Tensor

from nnunet_ext import lookup
from nnunet_ext.names import UnknownNameError
from nnunet_ext.registry import STOCK_PLANNER

COMMON = ("AdamW", "FineTune", "NoMirroring", "Seed3", "2its", "1epochs")
NAMES = [
    name
    for base, entry in TRAINERS.items()
    for name in (base, *option_names(entry), *(f"{base}_{suffix}" for suffix in COMMON), "_".join((base, *COMMON)))
]
TRAINED = [(base, configuration) for base, entry in TRAINERS.items() for configuration in configurations(entry)]
by_configuration = pytest.mark.parametrize(("name", "configuration"), TRAINED)
HEAD = ".seg_layers."


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_class(name: str, check: Callable[[Any], None]) -> None:
    check(trainer_named(name))


# -------------------------------------------------------------------------------------------------- what is not claimed


@pytest.mark.parametrize("base", TRAINERS)
def test_names_that_are_not_claimed_are_refused(base: str) -> None:
    entry = TRAINERS[base]
    refused = ["Nonsense", "1epochs_2its", "0its", "AdamW_AdamW"]
    refused += [] if entry.kd else ["KD"]
    refused += [f"{group[0]}_{group[1]}" for group in entry.options if len(group) > 1]
    for suffix in refused:
        with pytest.raises(UnknownNameError, match=base):
            trainer_named(f"{base}_{suffix}")


@pytest.mark.parametrize("base", TRAINERS)
def test_dimensions_that_are_not_claimed_are_refused(base: str, planned: Planned) -> None:
    entry = TRAINERS[base]
    if entry.planner != STOCK_PLANNER:
        assert set(entry.dimensions) <= set(NETWORKS[entry.network].dimensions) <= {2, 3}
        assert PLANNERS[entry.planner].network == entry.network
    for dimension in {2, 3} - set(entry.dimensions):
        with pytest.raises(NotImplementedError, match=rf"(?s){base}.*{CONFIGURATIONS[dimension]}.*nnUNetTrainer"):
            planned.trainer(base, "plain", CONFIGURATIONS[dimension]).initialize()


@by_configuration
def test_deep_supervision_as_claimed(name: str, configuration: str, planned: Planned) -> None:
    trainer = planned.trainer(name, "plain", configuration)
    assert trainer.enable_deep_supervision is TRAINERS[name].deep_supervision
    if not TRAINERS[name].deep_supervision:
        trainer.initialize()
        trainer.set_deep_supervision_enabled(True)  # nnU-Net does so after its validation
        image = torch.zeros(1, 1, *trainer.configuration_manager.patch_size)
        assert isinstance(trainer.network(image), Tensor)


@by_configuration
def test_impossible_patch_is_refused(name: str, configuration: str, planned: Planned, tmp_path: Path) -> None:
    """One voxel more along each axis: trains a step, or is refused before training with the patch's size."""
    plans = planned.of(name, "plain")
    patch = [edge + 1 for edge in plans["configurations"][configuration]["patch_size"]]
    plans["configurations"][configuration]["patch_size"] = patch
    trainer = support.build_trainer(trainer_named(f"{name}{SHORT}"), planned.workspace, plans, configuration)
    try:
        trainer.initialize()
    except ValueError as error:
        text = str(error)
    else:
        trainer.run_training()
        return
    assert str(tuple(patch)) in text


# ------------------------------------------------------------------------------------------------------------- the loss


def batch_of(trainer: Any) -> tuple[Tensor, Any]:
    """A training batch: data (B, C, *spatial) and nnU-Net's target."""
    training, _ = trainer.get_dataloaders()
    batch = next(training)
    return batch["data"], batch["target"]


def nested(function: Callable[[Tensor], Tensor], target: Any) -> Any:
    """The function on a target or, with deep supervision, on every scale's."""
    return [function(t) for t in target] if isinstance(target, (list, tuple)) else function(target)


def logits_for(trainer: Any, target: Any) -> Any:
    """Some logits of the target's size(s)."""
    heads = trainer.label_manager.num_segmentation_heads
    generator = torch.Generator().manual_seed(0)
    return nested(lambda t: torch.randn(t.shape[0], heads, *t.shape[2:], generator=generator), target)


def loss_of(trainer: Any, logits: Any, target: Any) -> Tensor:
    """The trainer's loss; where it is over points, of the logits at some points of the target."""
    if not hasattr(trainer, "point_target"):
        loss: Tensor = trainer.loss(logits, target)
        return loss
    prepared = trainer.point_target(target, validation=True)
    at_points: Any = prepared.points.coords.flip(-1)
    for _ in range(logits.dim() - 4):  # as grid_sample wants it
        at_points = at_points[:, None]
    unit = 2 * at_points[:, None] / torch.tensor([edge - 1 for edge in reversed(logits.shape[2:])]) - 1
    sampled = torch.nn.functional.grid_sample(logits, unit, mode="nearest", align_corners=True)
    of_points: Tensor = trainer.loss((sampled.flatten(2), []), prepared)
    return of_points


def ignored(trainer: Any, target: Tensor) -> Tensor:
    """(B, 1, *spatial) bool: which voxels are ignored; the last channel with regions, else the label's value."""
    if trainer.label_manager.has_regions:
        return target[:, -1:] > 0
    return target == trainer.label_manager.ignore_label


def unannotated(trainer: Any, target: Tensor) -> Tensor:
    """The target with every voxel ignored."""
    if trainer.label_manager.has_regions:
        return torch.cat([torch.zeros_like(target[:, :-1]), torch.ones_like(target[:, -1:])], 1)
    return torch.full_like(target, trainer.label_manager.ignore_label)


def partly_annotated(trainer: Any, target: Tensor) -> Tensor:
    """The target with a quarter of it ignored and a quarter annotated as background, along the last axis."""
    quarter = target.shape[-1] // 4
    nothing = torch.zeros_like(target[..., :quarter])
    return torch.cat([unannotated(trainer, nothing), nothing, target[..., 2 * quarter :]], -1)


@by_configuration
@pytest.mark.parametrize("kind", ["ignore", "regionsignore"])
def test_loss_ignores_ignored_voxels(name: str, configuration: str, kind: str, planned: Planned) -> None:
    trainer = planned.trainer(name, kind, configuration)
    trainer.initialize()
    target = nested(lambda t: partly_annotated(trainer, t), batch_of(trainer)[1])
    logits = logits_for(trainer, target)

    def changed(where_ignored: bool) -> Any:
        def change(y: Tensor, t: Tensor) -> Tensor:
            return torch.where(ignored(trainer, t) == where_ignored, 1 - 3 * y, y)

        if isinstance(target, list):
            return [change(y, t) for y, t in zip(logits, target, strict=True)]
        return change(logits, target)

    loss = loss_of(trainer, logits, target)
    torch.testing.assert_close(loss_of(trainer, changed(where_ignored=True), target), loss)
    assert not torch.isclose(loss_of(trainer, changed(where_ignored=False), target), loss)


@by_configuration
@pytest.mark.parametrize("kind", ["ignore", "regionsignore"])
def test_fully_ignored_batch_is_harmless(name: str, configuration: str, kind: str, planned: Planned) -> None:
    trainer = planned.trainer(name, kind, configuration)
    trainer.initialize()
    data, target = batch_of(trainer)
    target = nested(lambda t: unannotated(trainer, t), target)
    result = trainer.train_step({"data": data, "target": target, "keys": ["a", "b"]})
    assert math.isfinite(result["loss"])
    assert all(torch.isfinite(p).all() for p in trainer.network.parameters())


@by_configuration
def test_batch_dice_is_respected(name: str, configuration: str, planned: Planned) -> None:
    losses = []
    for batch_dice in (True, False):
        plans = planned.of(name, "plain")
        plans["configurations"][configuration]["batch_dice"] = batch_dice
        trainer = support.build_trainer(trainer_named(name), planned.workspace, plans, configuration)
        trainer.initialize()
        patch = trainer.configuration_manager.patch_size
        target: Any = torch.zeros(2, 1, *patch, dtype=torch.int16)
        target[0, ..., :8] = 1  # the foreground is in one of two samples only
        if trainer.enable_deep_supervision:
            scales = trainer._get_deep_supervision_scales()
            steps = [(..., *(slice(None, None, round(1 / s)) for s in scale)) for scale in scales]
            target = [target[step] for step in steps]
        losses.append(loss_of(trainer, logits_for(trainer, target), target))
    assert all(torch.isfinite(loss) for loss in losses)
    assert not torch.isclose(losses[0], losses[1])


@by_configuration
def test_one_batch_is_learned(name: str, configuration: str, planned: Planned) -> None:
    """The loss of one batch falls by half in 30 steps."""
    trainer = planned.trainer(f"{name}_AdamW_Seed1", "plain", configuration, initial_lr=1e-2)
    trainer.initialize()
    data, target = batch_of(trainer)
    batch = {"data": data, "target": target, "keys": ["a", "b"]}
    losses = [float(trainer.train_step(batch)["loss"]) for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]


# ---------------------------------------------------------------------------------- resume, pretrained weights, stages


@by_configuration
def test_resumed_equals_uninterrupted(name: str, configuration: str, planned: Planned, tmp_path: Path) -> None:
    base: Any = trainer_named(f"{name}_Seed1_1its_3epochs")
    keyed = type("Keyed", (KeyedBatches, base), {})
    plans = planned.of(name, "plain")
    with planned.workspace.environment(tmp_path / "whole"):
        whole = support.build_trainer(keyed, planned.workspace, plans, configuration)
        whole.run_training()
    with planned.workspace.environment(tmp_path / "parts"):
        parts = interrupted(planned.workspace, plans, keyed, configuration)
    for key in ("train_losses", "val_losses", "lrs", "ema_fg_dice"):
        assert parts.logger.get_value(key, step=None) == whole.logger.get_value(key, step=None)
        assert len(whole.logger.get_value(key, step=None)) == 3
    assert_same_state(whole, parts)


@by_configuration
def test_pretrained_weights_for_other_classes(
    name: str, configuration: str, planned: Planned, trained: Trained
) -> None:
    source = trained(name, "plain", configuration)
    trainer = planned.trainer(f"{name}_Seed1", "manyclasses", configuration)
    trainer.initialize()
    before = {key: value.clone() for key, value in trainer.network.state_dict().items()}
    load_pretrained_weights(trainer.network, str(Path(source.output_folder) / "checkpoint_final.pth"))
    given, now = source.network.state_dict(), trainer.network.state_dict()
    for key, value in now.items():
        assert torch.equal(value, before[key] if HEAD in key else given[key]), key
    data, target = batch_of(trainer)
    assert math.isfinite(trainer.train_step({"data": data, "target": target, "keys": ["a", "b"]})["loss"])


@pytest.mark.parametrize("base", [name for name, entry in TRAINERS.items() if 3 in entry.dimensions])
def test_cascade(base: str, planned: Planned, workspace: support.Workspace) -> None:
    """Both stages, with the first stage's predictions in between; without them, a sentence."""
    plans = support.with_cascade(planned.of(base, "plain"))
    made: Any = trainer_named(f"{base}{SHORT}")
    stage = "3d_cascade_fullres"
    if not entry_of(base).cascade:
        with pytest.raises(NotImplementedError, match=rf"(?s){base}.*cascade"):
            support.build_trainer(made, workspace, plans, stage).initialize()
        return
    workspace.preprocess(plans, "3d_lowres")
    early = support.build_trainer(made, workspace, plans, stage)
    with pytest.raises(RuntimeError, match=rf"(?s)first stage.*{made.__name__}.*3d_lowres"):
        early.run_training()
    first = support.build_trainer(made, workspace, plans, "3d_lowres", fold="all")
    first.run_training()
    first.perform_actual_validation()
    second = support.build_trainer(made, workspace, plans, stage)
    second.run_training()
    assert second.num_input_channels == 1 + 2
    assert math.isfinite(second.logger.get_value("val_losses", step=0))
    second.perform_actual_validation()
    assert (Path(second.output_folder) / "validation" / "summary.json").is_file()


def test_every_trainer_is_found_through_the_suite() -> None:
    """The lists above are the registry's: a newly registered name needs no new code."""
    assert {name for name, _ in TRAINED} == set(TRAINERS)
    assert all(lookup.find("trainer", name) is not None for name in NAMES)
