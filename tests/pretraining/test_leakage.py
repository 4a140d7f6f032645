from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import support
import torch
from exported import cases_of, pretrained
from nnunetv2.run.run_training import maybe_load_checkpoint

from nnunet_ext.errors import UserError
from nnunet_ext.pretraining import checkpoint_format, exporting, leakage
from nnunet_ext.trainers.variants import trainer_class
from nnunet_ext.weights.saving import save_atomically

Plans = Callable[[str], dict[str, Any]]
VALIDATED = {0: ("case_2", "case_3"), 1: ("case_0", "case_1")}


def test_the_splits_file_tells(workspace: support.Workspace) -> None:
    folder = workspace.preprocessed / workspace.dataset("plain")
    assert {fold: leakage.validation_cases(folder, fold) for fold in (0, 1)} == VALIDATED
    assert leakage.validation_cases(folder, "1") == VALIDATED[1]
    assert leakage.validation_cases(folder, "all") == ()
    assert leakage.number_of_folds(folder) == 2
    with pytest.raises(UserError, match="fold one: a fold is 0, 1, 2"):
        leakage.validation_cases(folder, "one")


def test_nnunets_own_splits(workspace: support.Workspace, planned: Plans, tmp_path: Path) -> None:
    """Without a splits file, and for a fold that the file has not: as nnU-Net's trainer is going to split."""
    plans = planned("plain")
    copy = workspace.copy(tmp_path / "copy")
    folder = copy.preprocessed / plans["dataset_name"]
    (folder / "splits_final.json").unlink()
    data = folder / plans["configurations"]["3d_fullres"]["data_identifier"]
    labels = next((folder / "gt_segmentations").iterdir())
    for number in range(4, 9):
        shutil.copy(labels, labels.with_name(f"case_{number}.nii.gz"))
        for file in list(data.glob("case_0*")):
            shutil.copy(file, file.with_name(file.name.replace("case_0", f"case_{number}")))
    with copy.environment():
        for fold in (0, 4, 7):
            ours = leakage.validation_cases(folder, fold)
            trainer = support.build_trainer(trainer_class("UNetTrainer"), copy, plans, fold=fold)
            assert ours == tuple(trainer.do_split()[1])
            if fold == 0:
                (folder / "splits_final.json").unlink()
    (folder / "splits_final.json").write_text("{}")
    with pytest.raises(UserError, match="no splits file"):
        leakage.validation_cases(folder, 0)
    with pytest.raises(UserError, match=r"neither splits_final.json nor preprocessed cases"):
        leakage.validation_cases(tmp_path, 0)


def test_cases_are_known_by_file_and_by_name(workspace: support.Workspace, tmp_path: Path) -> None:
    dataset = workspace.dataset("plain")
    raw = workspace.raw / dataset
    known = cases_of(workspace, dataset, ("case_0", "case_1"))
    renamed = [{**case, "name": f"folder.{case['name']}", "source": "elsewhere"} for case in known]
    unhashed = [{**case, "sha256": []} for case in known]
    cases = ("case_3", "case_1", "case_0")
    assert [(o.case, o.same_file) for o in leakage.overlap(known, raw, cases)] == [("case_1", True), ("case_0", True)]
    assert next((o.case, o.pretrained) for o in leakage.overlap(renamed, raw, cases)) == ("case_1", "folder.case_1")
    assert [(o.case, o.same_file) for o in leakage.overlap(unhashed, raw, cases)] == [
        ("case_1", False),
        ("case_0", False),
    ]
    gone = tmp_path / dataset
    assert [o.case for o in leakage.overlap(known, gone, cases)] == ["case_1", "case_0"]
    assert leakage.overlap(renamed, gone, cases) == []
    assert leakage.overlap(unhashed, workspace.raw / workspace.dataset("noncubic"), cases) == []
    text = leakage.warning(leakage.overlap(renamed, raw, cases), 3, dataset, 1)
    assert text.startswith(f"2 of 3 validation cases of {dataset}, fold 1, were pre-trained on (the same image files)")
    assert "case_0 (as folder.case_0)" in text
    assert "--exclude-fold 1" in text


@pytest.mark.parametrize(
    ("names", "transductive", "expected"),
    [
        (("case_0", "case_2"), False, "WARNING: 1 of 2 validation cases of Dataset901_plain, fold 0, were pre-trained"),
        (("case_0", "case_2"), True, "Transductive: 1 of 2 validation cases"),
        (("case_0", "case_1"), False, None),
    ],
)
def test_our_trainers_warn(
    names: tuple[str, ...],
    transductive: bool,
    expected: str | None,
    folders: support.Workspace,
    planned: Plans,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plans = planned("plain")
    dataset_json = folders.dataset_json(plans["dataset_name"])
    path = tmp_path / "checkpoint.pth"
    provenance = {"transductive": transductive}
    pretrained(path, plans, dataset_json, cases=cases_of(folders, plans["dataset_name"], names), provenance=provenance)
    target = exporting.make_target("UNetTrainer", plans, "3d_fullres", dataset_json)
    content, _ = exporting.export(exporting.source_of(checkpoint_format.read(path)), target)
    save_atomically(checkpoint_format.as_plain(content), path)
    made = trainer_class("UNetTrainer_FineTune_1its_1epochs")
    trainer = support.build_trainer(made, folders, plans, disable_checkpointing=True)
    maybe_load_checkpoint(trainer, False, False, str(path))
    trainer.run_training()
    log, stderr = support.log_of(trainer), capsys.readouterr().err
    assert "-pretrained_weights were given" not in log
    for text in (log, stderr):
        told = expected is not None and not (transductive and text is stderr)
        assert ("pre-trained on" in text) == told
    assert expected is None or expected in log


def test_files_that_say_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        leakage.origin_of(tmp_path / "none.pth")
    contents: list[Any] = [{"network_weights": {}}, [1], {"nnunet_ext": {"version": "1"}}]
    for content in contents:
        torch.save(content, tmp_path / "some.pth")
        assert leakage.origin_of(tmp_path / "some.pth") is None
    (tmp_path / "some.pth").write_text(json.dumps({}))
    assert leakage.origin_of(tmp_path / "some.pth") is None
