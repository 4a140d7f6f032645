"""`nnunet-ext pretrain` as a user types it, through export to nnU-Net's own loader."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import support
import torch

from nnunet_ext import cli
from nnunet_ext.errors import UserError
from nnunet_ext.pretraining import checkpoint_format
from nnunet_ext.pretraining.landmarks import LandmarkTable
from nnunet_ext.pretraining.run_folder import FINAL, LATEST
from nnunet_ext.pretraining.starting import leakage_notice, parse_option
from nnunet_ext.trainers.variants import trainer_class

Plans = Callable[[str], dict[str, Any]]
PRETRAIN = ["pretrain", "-d", "901", "--patch", "16", "16", "16", "--batch-size", "2", "-np", "1", "-device", "cpu"]
SMALL = ["--alice", "width=16", "hidden=16", "bottleneck=8", "prototypes=16", "heads=2", "casa_hidden=16"]


@pytest.fixture(autouse=True)
def data(folders: support.Workspace, planned: Plans) -> support.Workspace:
    """The data set "plain", and nnU-Net's variables."""
    planned("plain")
    return folders


def test_stop_resume_export_and_fine_tune(
    data: support.Workspace, planned: Plans, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*PRETRAIN, "--steps", "4", "--stop-after", "2", "-tr", "UNetTrainer", "--draw-every", "0"]) == 0
    told = capsys.readouterr()
    folder = tmp_path / "nnUNet_results" / "Dataset901_plain" / "nnunet_ext_pretraining"
    folder = folder / "mae__UNetTrainer__nnUNetPlans__3d_fullres"
    assert "mae: PlainConvUNet, " in told.out
    assert "4 images; patch (16, 16, 16), batch 2, mask blocks (4, 4, 4); sgd, learning rate 0.01" in told.out
    assert "stopped after step 2 of 4; --resume goes on" in told.out
    assert "validation cases of fold(s) 0, 1 of Dataset901_plain are among the images" in told.err
    assert cli.main([*PRETRAIN, "-tr", "UNetTrainer"]) == 1
    assert "holds a training already: go on with --resume" in capsys.readouterr().err
    assert cli.main([*PRETRAIN, "-tr", "UNetTrainer", "--resume", "--learning-rate", "1"]) == 1
    assert "given otherwise: learning_rate" in capsys.readouterr().err
    assert cli.main([*PRETRAIN, "-tr", "UNetTrainer", "--resume", "--exclude", "case_1"]) == 1
    assert "the images are not those that the training was begun with: 1 gone (case_1)" in capsys.readouterr().err
    assert cli.main([*PRETRAIN, "-tr", "UNetTrainer", "--resume", "--transductive"]) == 0
    assert "WARNING" not in capsys.readouterr().err
    assert cli.main([*PRETRAIN, "-tr", "UNetTrainer", "--resume"]) == 1
    assert "this training is over" in capsys.readouterr().err
    content = checkpoint_format.read(folder / FINAL)
    assert content["provenance"]["transductive"]
    assert content["provenance"]["settings"]["steps"] == 4
    exported = tmp_path / "weights.pth"
    assert cli.main(["pretrain-export", str(folder / FINAL), "-o", str(exported)]) == 0
    network = trainer_class("UNetTrainer_FineTune_1its_1epochs")
    trainer = support.build_trainer(network, data, planned("plain"))
    trainer.initialize()
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    load_pretrained_weights(trainer.network, str(exported))
    theirs = content["networks"]["student"]
    ours = trainer.network.state_dict()
    encoder = {key: torch.equal(ours[key], value) for key, value in theirs.items() if key.startswith("encoder.")}
    assert encoder
    assert all(encoder.values())
    assert not torch.equal(ours["decoder.stages.0.convs.0.conv.weight"], theirs["decoder.stages.0.convs.0.conv.weight"])
    command = ["pretrain-export", str(folder / FINAL), "-o", str(exported), "--overwrite", "--what", "all"]
    assert cli.main(command) == 0
    load_pretrained_weights(trainer.network, str(exported))
    ours = trainer.network.state_dict()
    assert all(torch.equal(ours[key], value) for key, value in theirs.items() if ".seg_layers." not in key)


def test_alice_with_landmarks(data: support.Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alice = [*PRETRAIN, "--method", "alice", *SMALL, "--steps", "2", "--views"]
    assert cli.main([*alice, "bodybox", "-o", str(tmp_path / "a")]) == 1
    assert "make it with nnunet-ext correspond" in capsys.readouterr().err
    assert (
        cli.main(["correspond", "-d", "901", "--kind", "bodybox", "--points", "8", "-np", "1", "--threshold", "-1"])
        == 0
    )
    assert cli.main([*alice, "bodybox", "-o", str(tmp_path / "a"), "--stop-after", "1", "--log-every", "1"]) == 0
    settings = checkpoint_format.read(tmp_path / "a" / LATEST)["provenance"]
    assert settings["settings"]["landmarks"] == "bodybox"
    assert settings["landmarks"]["acceptance"] > 0.5
    capsys.readouterr()
    resume = ["pretrain", "-d", "901", "--resume", "-o", str(tmp_path / "a"), "-device", "cpu", "-np", "1"]
    path = next((data.preprocessed / "Dataset901_plain").glob("**/landmarks_bodybox.npz"))
    table = LandmarkTable.load(path)
    replace(table, points=table.points + 1).save(path)
    assert cli.main(resume) == 1
    assert "the landmark table bodybox was made again since" in capsys.readouterr().err
    table.save(path)
    plans_file = data.preprocessed / "Dataset901_plain" / "nnUNetPlans.json"
    plans = plans_file.read_text()
    plans_file.write_text(json.dumps({**json.loads(plans), "original_median_shape_after_transp": [1, 2, 3]}))
    assert cli.main(resume) == 1
    assert "the plans nnUNetPlans were changed since" in capsys.readouterr().err
    plans_file.write_text(plans)
    assert cli.main(resume) == 0
    assert "alice: PlainConvUNet" in capsys.readouterr().out
    line = json.loads((tmp_path / "a" / "log.jsonl").read_text().splitlines()[-1])
    assert {"cls", "patch", "reconstruction", "entropy_cls", "spread", "agreement", "learning_rate"} <= set(line)
    assert set(checkpoint_format.read(tmp_path / "a" / FINAL)["networks"]) == {"student", "teacher"}


def test_a_fold_left_out(data: support.Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*PRETRAIN, "--steps", "1", "--exclude-fold", "0", "-o", str(tmp_path / "a")]
    assert cli.main(command) == 0
    assert "validation cases" not in capsys.readouterr().err
    splits = json.loads((data.preprocessed / "Dataset901_plain" / "splits_final.json").read_text())
    names = {case["name"] for case in checkpoint_format.read(tmp_path / "a" / FINAL)["cases"]}
    assert names == set(support.CASES) - set(splits[0]["val"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "--steps must be at least 1; got 0"),
        (["--mask-ratio", "1"], "--mask-ratio must lie between 0 and 1; got 1.0"),
        (["--method", "mae", "--views", "affine"], "--views is for --method alice"),
        (["--alice", "prototypes=2"], "--shuffled and --alice are for --method alice"),
        (["--method", "alice", "--views", "overlap", "--alice", "foo=2"], r"Alice has no options \['foo'\]"),
        (["--only-unlabelled"], "--only-unlabelled needs --unlabelled FOLDER"),
        (["--patch", "17", "16", "16"], r"--patch 17 16 16: edges must be multiples of \[4, 8, 8\]"),
        (["-tr", "UNETRPPTrainer"], "--patch 16 16 16: weights of UNETRPP depend on the patch"),
        (["-tr", "OSSNetTrainer"], "OSSNetLocal cannot be pre-trained"),
        (["--exclude-fold", "one"], "fold one: a fold is 0, 1, 2"),
        (["--exclude-fold", "all"], "--exclude-fold all: fold all validates on no case"),
        (["--method", "alice", "--views", "overlap", "--shuffled"], "--shuffled is for pairs of two patients"),
        (["--method", "alice", "--views", "overlap", "--anatomical-share", "1"], "--anatomical-share is for pairs of"),
        (["--method", "alice", "--views", "overlap", "--alice", "fill=1"], "--alice fill, scale: they are"),
        (["--resume"], "--resume: there is no checkpoint_latest.pth in .*; give -d, -p, -c, -tr and --method"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    import re

    assert cli.main([*PRETRAIN, *arguments]) == 1
    assert re.search(message, capsys.readouterr().err)


def test_options_of_alice() -> None:
    assert dict(map(parse_option, ("a=1", "b=1,2.5", "c=true", "d=hidden"))) == {
        "a": 1,
        "b": (1, 2.5),
        "c": True,
        "d": "hidden",
    }


def test_no_notice_without_folds(data: support.Workspace, planned: Plans, tmp_path: Path) -> None:
    from nnunet_ext.pretraining.preparing import open_pool

    pool = open_pool("901", "nnUNetPlans", "3d_fullres", progress=False)
    assert leakage_notice(pool, False) is not None
    assert leakage_notice(pool, True) is None
    assert leakage_notice(pool, False, "0") is None
    other = data.copy(tmp_path / "copy")
    (other.preprocessed / "Dataset901_plain" / "splits_final.json").unlink()
    with other.environment():  # four cases, no splits: too few for nnU-Net's five folds
        assert leakage_notice(pool, False) is None


def test_intensities(data: support.Workspace, planned: Plans) -> None:
    """0 and 1 after z-scores; else those of the images."""
    import numpy as np

    from nnunet_ext.pretraining.intensities import Intensities, intensities_of
    from nnunet_ext.pretraining.preparing import open_pool

    pool = open_pool("901", "nnUNetPlans", "3d_fullres", progress=False)
    assert intensities_of(pool) == Intensities((0.0,), (1.0,))
    plans = json.loads(json.dumps(pool.plans))
    plans["configurations"]["3d_fullres"]["normalization_schemes"] = ["CTNormalization"]
    found = intensities_of(replace(pool, plans=plans))
    voxels = np.concatenate([np.asarray(case.image()).ravel() for case in pool.cases])
    assert found.mean == pytest.approx((voxels.mean(),), abs=1e-3)
    assert found.deviation == pytest.approx((voxels.std(),), abs=1e-3)


def test_other_plans_are_refused() -> None:
    """A training goes on with its own plans and configuration, by name and by content."""
    from nnunet_ext.pretraining.preparing import open_pool
    from nnunet_ext.pretraining.starting import require_same_images, require_same_plans

    pool = open_pool("901", "nnUNetPlans", "3d_fullres", progress=False)
    content = {"provenance": {"plans": "otherPlans"}, "configuration": "3d_fullres", "plans": pool.plans, "cases": []}
    with pytest.raises(UserError, match=r"has the plans otherPlans .*: give -p otherPlans -c 3d_fullres"):
        require_same_images(content, pool)
    require_same_plans(content, pool.plans)
    with pytest.raises(UserError, match="the plans otherPlans were changed since the training was begun"):
        require_same_plans(content, {**pool.plans, "transpose_forward": [2, 1, 0]})
