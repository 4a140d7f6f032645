"""`nnunet-ext adapt-patch`: what is re-sampled and how, what is refused, and fine-tuning from its file."""

from __future__ import annotations

import json
import math
import pydoc
import re
from pathlib import Path
from typing import Any

import pytest
import support
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from torch import Tensor

from nnunet_ext.architectures.grids import token_grids
from nnunet_ext.architectures.unetrpp import UNETRPP
from nnunet_ext.architectures.unetrpp_plans import unetrpp_architecture
from nnunet_ext.cli import main
from nnunet_ext.planners.unetrpp import UNETRPPPlanner
from nnunet_ext.trainers.variants import trainer_class
from nnunet_ext.weights.patch_size import adapt_patch_size, changed_arguments

STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]]
OLD, NEW = (8, 32, 32), (12, 48, 32)


def network(patch: tuple[int, ...], **options: Any) -> Any:
    shortened = {"n_blocks_per_stage": [1] * 4, "n_blocks_per_stage_decoder": [1] * 3, "proj_size": [16, 16, 4, 2]}
    block = unetrpp_architecture(
        patch, STRIDES, base_width=4, **{**shortened, "proj_size_decoder": [4, 16, 16], **options}
    )
    arguments = dict(block["arch_kwargs"])
    for name in block["_kw_requires_import"]:
        arguments[name] = pydoc.locate(arguments[name])
    made: Any = pydoc.locate(block["network_class_name"])
    torch.manual_seed(0)
    return made(input_channels=1, num_classes=3, **arguments)


@pytest.mark.parametrize("projections", ["tied", "separate", "no_bias"])
def test_adapted_weights_fit_the_other_network(projections: str) -> None:
    source = network(OLD, projections=projections)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.normal_()
    state = source.state_dict()
    target = network(NEW, projections=projections)
    target.load_state_dict(adapt_patch_size(state, STRIDES, OLD, NEW), strict=True)
    changed = {key for key, value in target.state_dict().items() if not torch.equal(value, state[key])}
    endings = {key.split(".", 4)[-1] for key in changed if key != UNETRPP.patch_size_key}
    expected = {"pos_embed", "attention.spatial_temperature", "attention.key_projection.weight"}
    assert endings == expected | ({"attention.value_projection.weight"} if projections == "separate" else set())
    assert target(torch.randn(1, 1, *NEW)).shape == (1, 3, *NEW)


def field(grid: tuple[int, ...]) -> Tensor:
    """A linear function of the position, at the centres of a grid's cells; flattened row-major."""
    axes = torch.meshgrid(*((torch.arange(n) + 0.5) / n for n in grid), indexing="ij")
    return (axes[0] + 10 * axes[1] + 100 * axes[2]).flatten()


def test_positions_keep_their_place_and_sums_over_tokens_stay() -> None:
    state = network(OLD).state_dict()
    old, new = token_grids(OLD, STRIDES), token_grids(NEW, STRIDES)
    places = {"encoder.stages.0.0": 0, "encoder.stages.3.0": 3, "decoder.stages.0.0": 2, "decoder.stages.2.0": 0}
    for block, level in places.items():
        position = state[f"{block}.pos_embed"]
        position.copy_(field(old[level])[None, :, None].expand_as(position))
        state[f"{block}.attention.key_projection.weight"].fill_(0.25)
    adapted = adapt_patch_size(state, STRIDES, OLD, NEW)
    for block, level in places.items():
        inner = torch.zeros(new[level], dtype=torch.bool)
        inner[tuple(slice(1, -1) if n > 2 else slice(None) for n in new[level])] = True
        wanted = field(new[level])
        got = adapted[f"{block}.pos_embed"][0, :, 0]
        if min(old[level]) > 2:  # else all is border, where interpolation is constant
            torch.testing.assert_close(got[inner.flatten()], wanted[inner.flatten()])
        ratio = math.prod(new[level]) / math.prod(old[level])
        weight = adapted[f"{block}.attention.key_projection.weight"]
        torch.testing.assert_close(weight, torch.full_like(weight, 0.25 / ratio))
        temperature = adapted[f"{block}.attention.spatial_temperature"]
        torch.testing.assert_close(temperature, torch.full_like(temperature, math.sqrt(ratio)))


def test_a_patch_that_the_strides_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(12, 50, 32\) is not divisible by the total stride \(4, 16, 16\)"):
        adapt_patch_size(network(OLD).state_dict(), STRIDES, OLD, (12, 50, 32))


# ------------------------------------------------------------------------------------------------------ through files


class Small(UNETRPPPlanner):
    base_width = 4


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> support.Workspace:
    return support.Workspace(tmp_path_factory.mktemp("adapt"))


@pytest.fixture(scope="module")
def plans(workspace: support.Workspace) -> dict[str, Any]:
    made = workspace.plan("plain", Small, thin=False)
    with workspace.environment():
        workspace.preprocess(made)
    return made


@pytest.fixture(scope="module")
def trained(workspace: support.Workspace, plans: dict[str, Any]) -> Path:
    """A checkpoint as nnU-Net writes it."""
    with workspace.environment():
        trainer = support.build_trainer(trainer_class("UNETRPPTrainer_1its_1epochs"), workspace, plans)
        trainer.run_training()
    return Path(trainer.output_folder) / "checkpoint_final.pth"


def for_patch(plans: dict[str, Any], patch: list[int]) -> dict[str, Any]:
    """The same plans for another patch size, edited as the command says."""
    changed: dict[str, Any] = json.loads(json.dumps(plans))
    configuration = changed["configurations"]["3d_fullres"]
    configuration["patch_size"] = patch
    configuration["architecture"]["arch_kwargs"]["patch_size"] = patch
    return changed


def larger(plans: dict[str, Any]) -> list[int]:
    return [edge + 16 for edge in plans["configurations"]["3d_fullres"]["patch_size"]]


def test_fine_tuning_from_an_adapted_checkpoint(
    workspace: support.Workspace,
    plans: dict[str, Any],
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wished = for_patch(plans, larger(plans))
    file, adapted = tmp_path / "plans.json", tmp_path / "adapted.pth"
    file.write_text(json.dumps(wished))
    assert main(["adapt-patch", str(trained), "--plans", str(file), "-o", str(adapted)]) == 0
    assert "-pretrained_weights" in capsys.readouterr().out
    with workspace.environment(tmp_path / "results"):
        trainer = support.build_trainer(trainer_class("UNETRPPTrainer_1its_1epochs"), workspace, wished)
        trainer.initialize()
        with pytest.raises(AssertionError, match=rf"(?s){UNETRPP.patch_size_key} is not the same.*\b24, 32, 32"):
            load_pretrained_weights(trainer.network, str(trained))
        load_pretrained_weights(trainer.network, str(adapted))
        source = torch.load(trained, weights_only=False)["network_weights"]
        kept = "encoder.stages.0.0.attention.qkvv.weight"
        assert torch.equal(trainer.network.state_dict()[kept], source[kept])
        trainer.run_training()
    assert math.isfinite(trainer.logger.get_value("train_losses", step=0))


def test_the_same_by_a_patch_size(plans: dict[str, Any], trained: Path, tmp_path: Path) -> None:
    patch = larger(plans)
    adapted = tmp_path / "adapted.pth"
    arguments = ["adapt-patch", str(trained), "--patch-size", *map(str, patch), "-o", str(adapted)]
    assert main(arguments) == 0
    content = torch.load(adapted, weights_only=True)
    assert content["network_weights"][UNETRPP.patch_size_key].shape[2:] == tuple(patch)
    assert content["init_args"]["plans"]["configurations"]["3d_fullres"]["patch_size"] == patch
    assert main(arguments) == 1, "an existing file is not replaced unless asked for"
    assert main([*arguments, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_res_blocks": 2}, '"n_res_blocks": 1 instead of 2'),
        ({"sa_layout": "legacy"}, '"sa_layout": "fixed" instead of "legacy"'),
        ({"strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]]}, '"strides": [[1, 1, 1], ['),
        ({"stem_groups": 2}, 'no "stem_groups" instead of 2'),
        ({"proj_size": [64, 64, 48, 4], "num_heads": [1, 1, 1, 1]}, " instead of [64, 64, 48, 4]"),
    ],
)
def test_plans_of_another_network_are_refused(
    plans: dict[str, Any],
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    words: str,
) -> None:
    other = for_patch(plans, larger(plans))
    other["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"].update(change)
    file = tmp_path / "plans.json"
    file.write_text(json.dumps(other))
    assert main(["adapt-patch", str(trained), "--plans", str(file), "-o", str(tmp_path / "x.pth")]) == 1
    text = capsys.readouterr().err
    assert words in text
    assert "differ in more than the patch size" in text
    assert "the plans must keep the checkpoint's network" in text
    assert "in plans.json, configurations.3d_fullres.architecture.arch_kwargs, set " in text
    assert not (tmp_path / "x.pth").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"state_dict": {"a": torch.zeros(1)}}, "not a checkpoint of nnU-Net"),
        (b"no pickle", "not a readable PyTorch checkpoint"),
        (None, "no such file"),
    ],
)
def test_other_files_are_refused(content: Any, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    assert main(["adapt-patch", str(file), "--patch-size", "8", "8", "8", "-o", str(tmp_path / "x.pth")]) == 1
    assert words in capsys.readouterr().err


def test_plans_are_accepted_after_the_edits_that_the_error_asks_for(
    plans: dict[str, Any], trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A planner clamps proj_size to the tokens of a small patch."""
    other, file = for_patch(plans, larger(plans)), tmp_path / "plans.json"
    arguments = other["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    arguments["proj_size"] = [1] * 4
    command = ["adapt-patch", str(trained), "--plans", str(file), "-o", str(tmp_path / "x.pth")]
    file.write_text(json.dumps(other))
    assert main(command) == 1
    asked = re.search(r'set "proj_size": (.*) instead of \[1, 1, 1, 1\]', capsys.readouterr().err)
    assert asked is not None
    arguments["proj_size"] = json.loads(asked[1])
    file.write_text(json.dumps(other))
    assert main(command) == 0
    assert "note     the plans must keep the checkpoint's network" in capsys.readouterr().out


def test_legacy_weights_for_fixed_plans_are_refused() -> None:
    fixed = {"patch_size": [8, 32, 32], "n_res_blocks": 1}
    assert changed_arguments({**fixed, "sa_layout": "legacy"}, fixed) == ["sa_layout"]
    assert changed_arguments({**fixed, "sa_layout": "fixed", "patch_size": (8, 8, 8)}, fixed) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("init_args", "its init_args lack plans and configuration"),
        ("weights", "its network_weights are not named tensors"),
        ("plans", "not complete plans of nnU-Net (KeyError: 'configurations')"),
        ("architecture", "not complete plans of nnU-Net (KeyError: 'architecture')"),
        ("patch", "patch_size and strides must be lists of positive whole numbers"),
        ("circle", "inherits from itself"),
        ("marker", f"the weights have no entry {UNETRPP.patch_size_key}"),
        ("other patch", "the weights are for patches of (24, 32, 32) voxels, and the checkpoint's own plans name"),
        ("position", "encoder.stages.0.0.pos_embed has the shape (1, 7, 8), and by the patch size"),
        ("projection", "attention.key_projection.weight has the shape (7,), and by the patch size"),
        ("stage", "encoder.stages.9.0.pos_embed has the shape (1, 7, 8), and by the patch size and the strides"),
    ],
)
def test_contradictions_in_the_checkpoint(
    change: str, words: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(trained, weights_only=False)
    weights, plans = content["network_weights"], content["init_args"]["plans"]
    settings = plans["configurations"]["3d_fullres"]
    first = "encoder.stages.0.0"
    if change == "init_args":
        content["init_args"] = {}
    elif change == "weights":
        content["network_weights"] = [1]
    elif change == "plans":
        del plans["configurations"]
    elif change == "architecture":
        del settings["architecture"]
    elif change == "patch":
        settings["architecture"]["arch_kwargs"]["patch_size"] = [24, 32, "32"]
    elif change == "circle":
        plans["configurations"]["3d_fullres"] = {"inherits_from": "3d_fullres"}
    elif change == "marker":
        del weights[UNETRPP.patch_size_key]
    elif change == "other patch":
        settings["architecture"]["arch_kwargs"]["patch_size"] = [96, 96, 96]
    elif change == "position":
        weights[f"{first}.pos_embed"] = torch.zeros(1, 7, 8)
    elif change == "projection":
        weights[f"{first}.attention.key_projection.weight"] = torch.zeros(7)
    else:
        weights["encoder.stages.9.0.pos_embed"] = torch.zeros(1, 7, 8)
    file = tmp_path / "edited.pth"
    torch.save({key: content[key] for key in ("network_weights", "init_args")}, file)
    assert main(["adapt-patch", str(file), "--patch-size", "96", "96", "96", "-o", str(tmp_path / "x.pth")]) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "x.pth").exists()


def test_a_wrong_number_of_axes_is_refused(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["adapt-patch", str(trained), "--patch-size", "32", "32", "-o", str(tmp_path / "x.pth")]) == 1
    assert "3 spatial axes; got the patch size (32, 32)" in capsys.readouterr().err
