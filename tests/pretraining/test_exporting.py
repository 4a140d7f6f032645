from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import support
import torch
from exported import as_residual, pretrained
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from torch import Tensor, nn

from nnunet_ext.errors import UserError
from nnunet_ext.pretraining import checkpoint_format, export_check, exporting
from nnunet_ext.pretraining.copying import copy_weights
from nnunet_ext.pretraining.planned import adapted_plans, find_trainer
from nnunet_ext.weights.saving import save_atomically

Plans = Callable[[str], dict[str, Any]]
pytestmark = pytest.mark.usefixtures("folders")


def exported(
    path: Path, plans: dict[str, Any], dataset_json: dict[str, Any], trainer: str = "UNetTrainer", **options: Any
) -> tuple[dict[str, Any], exporting.Target]:
    """The content of the file for plans, and its target; it is written to `path` beside the checkpoint, and checked."""
    target = exporting.make_target(trainer, plans, "3d_fullres", dataset_json)
    branch = options.pop("branch", None)
    source = exporting.source_of(checkpoint_format.read(path), branch)
    content, copied = exporting.export(source, target, **options)
    save_atomically(checkpoint_format.as_plain(content), path.with_name("exported.pth"))
    export_check.check(path.with_name("exported.pth"), target, content["network_weights"])
    return {**content, "copied": copied}, target


def encoder_of(network: nn.Module, image: Tensor) -> list[Tensor]:
    with torch.no_grad():
        found: list[Tensor] = network.eval().encoder(image)  # type: ignore[operator]
    return found


@pytest.mark.parametrize("residual", [False, True], ids=["PlainConvUNet", "ResidualEncoderUNet"])
def test_nnunets_loader_gives_the_pretrained_encoder(
    residual: bool, workspace: support.Workspace, planned: Plans, tmp_path: Path
) -> None:
    """Aliases: the last of up to four names counts, and all of them have the pre-trained values."""
    plans = as_residual(planned("plain")) if residual else planned("plain")
    dataset_json = workspace.dataset_json(plans["dataset_name"])
    student = pretrained(tmp_path / "checkpoint.pth", plans, dataset_json)["student"]
    content, target = exported(tmp_path / "checkpoint.pth", plans, dataset_json)
    fresh = target.network(5)
    heads = {key: value.clone() for key, value in fresh.state_dict().items() if ".seg_layers." in key}
    load_pretrained_weights(fresh, str(tmp_path / "exported.pth"))
    image = torch.randn(1, 1, 24, 32, 32)
    assert all(map(torch.equal, encoder_of(fresh, image), encoder_of(student, image)))
    state, theirs = fresh.state_dict(), student.state_dict()
    assert all(torch.equal(state[key], theirs[key]) for key in state if ".seg_layers." not in key)
    assert all(torch.equal(state[key], value) for key, value in heads.items())
    aliases = [key for key in state if key.startswith("decoder.encoder.") and "all_modules" in key]
    assert aliases
    assert content["copied"].share("encoder") == content["copied"].share("rest") == 1
    read = torch.load(tmp_path / "exported.pth", weights_only=True)
    plan = read["nnssl_adaptation_plan"]
    assert plan["architecture_plans"]["arch_class_name"].endswith(
        "ResidualEncoderUNet" if residual else "PlainConvUNet"
    )
    assert any(key.startswith(plan["key_to_stem"] + ".") for key in state)
    assert {f"{key}.weight" for key in plan["keys_to_in_proj"]} <= state.keys()
    assert plan["pretrain_plan"]["configurations"]["3d_fullres"]["spacing_style"] == "median"
    assert read["current_epoch"] == 2
    assert read["trainer_name"] == "UNetTrainer"
    assert read["init_args"]["configuration"] == "3d_fullres"
    assert read["nnunet_ext"]["branch"] == "student"
    assert read["citations"][0]["name"] == "MAE"


def test_a_file_changed_under_one_name_only_is_refused(
    workspace: support.Workspace, planned: Plans, tmp_path: Path
) -> None:
    plans = planned("plain")
    dataset_json = workspace.dataset_json(plans["dataset_name"])
    path = tmp_path / "checkpoint.pth"
    pretrained(path, plans, dataset_json)
    content = checkpoint_format.read(path)
    state = content["networks"]["student"]
    state["encoder.stages.0.0.convs.0.conv.weight"] = state["encoder.stages.0.0.convs.0.conv.weight"] + 1
    checkpoint_format.write(path, content)
    with pytest.raises(UserError, match="are names of one weight, but have different values"):
        exported(path, plans, dataset_json)


def test_encoder_alone_and_branches(workspace: support.Workspace, planned: Plans, tmp_path: Path) -> None:
    plans = planned("plain")
    dataset_json = workspace.dataset_json(plans["dataset_name"])
    path = tmp_path / "checkpoint.pth"
    networks = pretrained(path, plans, dataset_json, branches=("student", "teacher"))
    for branch, expected in ((None, "teacher"), ("student", "student")):
        content, target = exported(path, plans, dataset_json, branch=branch, what="encoder", seed=3)
        theirs, fresh = networks[expected].state_dict(), target.network(3).state_dict()
        for key, value in content["network_weights"].items():
            assert torch.equal(value, theirs[key] if "encoder." in key else fresh[key]), key
        assert content["copied"].share("rest") == 0
        assert content["citations"][0]["name"] == "Alice"
    assert not torch.equal(
        target.network(4).state_dict()["decoder.stages.0.convs.0.conv.weight"],
        fresh["decoder.stages.0.convs.0.conv.weight"],
    )
    pretrained(path, plans, dataset_json)
    with pytest.raises(UserError, match=r"--branch teacher: pre-training by mae has no teacher; .* has student"):
        exported(path, plans, dataset_json, branch="teacher")


def test_other_channels_and_classes(workspace: support.Workspace, planned: Plans, tmp_path: Path) -> None:
    one, two = planned("plain"), planned("twochannels")
    path = tmp_path / "checkpoint.pth"
    student = pretrained(path, one, workspace.dataset_json(one["dataset_name"]))["student"]
    two = {**two, "configurations": one["configurations"]}
    dataset_json = workspace.dataset_json(two["dataset_name"])
    content, target = exported(path, two, dataset_json)
    assert len(content["nnunet_ext"]["adapted"]) == 1
    loaded = target.network(7)
    load_pretrained_weights(loaded, str(tmp_path / "exported.pth"))
    image = torch.randn(1, 1, 24, 32, 32)
    for ours, theirs in zip(encoder_of(loaded, image.repeat(1, 2, 1, 1, 1)), encoder_of(student, image), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_too_little_in_common(workspace: support.Workspace, planned: Plans, tmp_path: Path) -> None:
    plans = planned("plain")
    dataset_json = workspace.dataset_json(plans["dataset_name"])
    path = tmp_path / "checkpoint.pth"
    pretrained(path, support.with_stages(plans, 3), dataset_json)
    with pytest.raises(UserError, match=r"(?s)only \d+\.\d % of the encoder's parameters fit .*--partial"):
        exported(path, plans, dataset_json)
    content, _ = exported(path, plans, dataset_json, partial=True)
    assert 0 < content["copied"].share("encoder") < 0.95
    assert {fate for _, fate, *_ in content["copied"].table()} == {"transferred", "left random"}
    with pytest.raises(UserError, match="-c 3d_lowres: the plans nnUNetPlans have 2d, 3d_fullres"):
        exporting.make_target("UNetTrainer", plans, "3d_lowres", dataset_json)
    with pytest.raises(UserError, match="cascade"):
        exporting.make_target("UNetTrainer", support.with_cascade(plans), "3d_cascade_fullres", dataset_json)
    with pytest.raises(UserError, match="-tr NoSuchTrainer"):
        exporting.make_target("NoSuchTrainer", plans, "3d_fullres", dataset_json)


@pytest.mark.parametrize("trainer", ["UNETRPPTrainer", "SSHUNetTrainer", "NNFormerTrainer"])
def test_our_networks(trainer: str, workspace: support.Workspace, planned: Plans, tmp_path: Path) -> None:
    """For another patch, tables of positions (and UNETR++'s projections) are adapted, the rest is transferred."""
    plans = planned("plain")
    dataset_json = workspace.dataset_json(plans["dataset_name"])
    plans = adapted_plans(find_trainer(trainer), plans, "3d_fullres", dataset_json)
    arguments = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    if trainer == "UNETRPPTrainer":  # a quarter of the features, for speed
        arguments["features_per_stage"] = [features // 4 for features in arguments["features_per_stage"]]
    path = tmp_path / "checkpoint.pth"
    pretrained(path, plans, dataset_json, trainer=trainer)
    content, _ = exported(path, plans, dataset_json, trainer)
    assert content["copied"].share("encoder") == 1
    assert not content["copied"].names("adapted")
    assert "nnssl_adaptation_plan" not in content
    if trainer == "SSHUNetTrainer":
        return
    other = checkpoint_format.read(path)["plans"]
    settings = other["configurations"]["3d_fullres"]
    settings["patch_size"][2] *= 2
    settings["architecture"]["arch_kwargs"]["patch_size"] = settings["patch_size"]
    content, _ = exported(path, other, dataset_json, trainer)
    assert content["copied"].share("encoder") == 1
    name = "pos_embed" if trainer == "UNETRPPTrainer" else "relative_position_bias_table"
    assert any(adapted.endswith(name) for adapted in content["nnunet_ext"]["adapted"])


def test_the_self_test_finds_what_is_wrong(workspace: support.Workspace, planned: Plans, tmp_path: Path) -> None:
    plans = planned("plain")
    dataset_json = workspace.dataset_json(plans["dataset_name"])
    pretrained(tmp_path / "checkpoint.pth", plans, dataset_json)
    content, target = exported(tmp_path / "checkpoint.pth", plans, dataset_json)
    path = tmp_path / "exported.pth"
    weights = dict(content["network_weights"])
    missing = {key: value for key, value in weights.items() if not key.startswith("decoder.encoder.")}
    save_atomically({"network_weights": missing}, path)
    with pytest.raises(UserError, match="loader refuses the exported file"):
        export_check.check(path, target, weights)
    first = "encoder.stages.0.0.convs.0.conv.weight"
    save_atomically(
        {"network_weights": {key: v + 1 if key.startswith("decoder.enc") else v for key, v in weights.items()}}, path
    )
    with pytest.raises(UserError, match=f"makes another network of the exported file \\({first}"):
        export_check.check(path, target, weights)


def test_copying_without_an_encoder() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    state = {key: value + 1 for key, value in network.state_dict().items() if key.startswith("0")}
    copied = copy_weights(network, state, channels=(1, 1))
    assert copied.share("rest") == 0.5
    assert copied.names("left random") == ["1.weight", "1.bias"]
    assert copied.share("encoder") == 1
