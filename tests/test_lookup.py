"""Names through nnU-Net's own look-ups, in this process."""

from __future__ import annotations

import importlib
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import nnunetv2
import pytest
from nnunetv2.experiment_planning import plan_and_preprocess_api
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunet_ext import lookup, registry, versions
from nnunet_ext.cli import shim_folder
from nnunet_ext.errors import NameNotFoundError, UnsupportedNnunetError
from nnunet_ext.names import UnknownNameError, parse_trainer

lookup.install()  # as a notebook would, where the start-up file is not read
FOREIGN = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
class {name}(nnUNetTrainer):
    pass
"""


def find_planner(name: str) -> Any:
    """As nnU-Net's planning does."""
    folder = os.path.join(nnunetv2.__path__[0], "experiment_planning")
    return plan_and_preprocess_api.recursive_find_python_class(
        folder, name, current_module="nnunetv2.experiment_planning"
    )


def foreign_folder(folder: Path, *names: str) -> str:
    folder.mkdir()
    for name in names:
        (folder / f"{folder.name}_{name.lower()}.py").write_text(FOREIGN.format(name=name))
    return str(folder)


def set_folders(monkeypatch: pytest.MonkeyPatch, *folders: str | Path) -> None:
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join(map(str, folders)))


@pytest.mark.parametrize("name", ["SSHUNetTrainer", "SSHUNetTrainer_GSM_VFN_AdamW_2its_3epochs"])
def test_trainers(name: str) -> None:
    found: Any = recursive_find_trainer_class_by_name(name)
    assert all(again is found for again in (recursive_find_trainer_class_by_name(name), lookup.find("trainer", name)))
    assert (found.__name__, found.__module__) == (name, "nnunet_ext.trainers.sshunet")
    assert pickle.loads(pickle.dumps(found)) is found


@pytest.mark.parametrize("name", ["SSHUNetPlanner", "SSHUNetPlannerXL_Published_W8"])
def test_planners(name: str) -> None:
    found = find_planner(name)
    assert found is find_planner(name) is lookup.find("planner", name)
    assert found.__module__ == "nnunet_ext.planners.sshunet"


def test_networks() -> None:
    assert lookup.find("network", "SSHUNet") is registry.load(registry.NETWORKS["SSHUNet"].target)
    assert lookup.find("network", "Other") is None


def test_built_in_names_are_never_shadowed(own_registry: None) -> None:
    target = registry.TRAINERS["SSHUNetTrainer"].target
    registry.register(registry.TrainerEntry("nnUNetTrainer", target, network="SSHUNet", planner="SSHUNetPlanner"))
    assert recursive_find_trainer_class_by_name("nnUNetTrainer").__module__.startswith("nnunetv2.")
    assert find_planner("ExperimentPlanner").__module__.startswith("nnunetv2.")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("SSHUNetTrainer_Mine", r"no suffix 'Mine'\. Allowed, in this order: SSHUNetTrainer\[_TSM\|GSM\|GSF\]"),
        ("SSHUNetTrainer_VFN_GSM", "it is spelled SSHUNetTrainer_GSM_VFN"),
        ("SSHUnetTrainer", "did you mean SSHUNetTrainer?"),
    ],
)
def test_unknown_trainers_get_our_sentence(name: str, sentence: str) -> None:
    with pytest.raises(NameNotFoundError, match=sentence) as caught:
        recursive_find_trainer_class_by_name(name)
    assert isinstance(caught.value, RuntimeError), "as nnU-Net's own error"


def test_trainers_that_have_nothing_to_do_with_us_get_nnunets_error() -> None:
    with pytest.raises(RuntimeError, match="Could not find requested nnunet trainer") as caught:
        recursive_find_trainer_class_by_name("SomethingElse")
    assert not isinstance(caught.value, NameNotFoundError)


@pytest.mark.parametrize(
    ("name", "sentence"), [("SSHUNetPlanner_8", "no suffix '8'"), ("SSHUnetPlannerL", "did you mean SSHUNetPlannerL?")]
)
def test_unknown_planners_get_our_sentence(name: str, sentence: str) -> None:
    with pytest.raises(NameNotFoundError, match=sentence):
        plan_and_preprocess_api.plan_experiments([1], name)


def test_foreign_class_with_our_base_name_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    empty = foreign_folder(tmp_path / "empty", "Unrelated")
    theirs = foreign_folder(tmp_path / "theirs", "SSHUNetTrainer_Mine")
    for folders in ([theirs], [empty, theirs], [theirs, empty], [shim_folder(), theirs], [theirs, shim_folder()]):
        set_folders(monkeypatch, *folders, tmp_path / "does_not_exist")
        found = recursive_find_trainer_class_by_name("SSHUNetTrainer_Mine")
        assert found.__module__ == "theirs_sshunettrainer_mine"


def test_the_sentence_comes_after_the_last_external_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folders = [foreign_folder(tmp_path / "one", "One"), foreign_folder(tmp_path / "two", "Two"), str(tmp_path / "none")]
    set_folders(monkeypatch, *folders)
    with pytest.raises(NameNotFoundError, match="no suffix 'Mine'"):
        recursive_find_trainer_class_by_name("SSHUNetTrainer_Mine")
    set_folders(monkeypatch, "", tmp_path / "none")
    with pytest.raises(NameNotFoundError, match="no suffix 'Mine'"):
        recursive_find_trainer_class_by_name("SSHUNetTrainer_Mine")


def test_ours_answers_before_external_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    set_folders(monkeypatch, foreign_folder(tmp_path / "theirs", "SSHUNetTrainer_GSM"))
    assert recursive_find_trainer_class_by_name("SSHUNetTrainer_GSM").__module__ == "nnunet_ext.trainers.sshunet"


@pytest.mark.parametrize("version", ["2.8.0", "2.7.1", "2.9.0", "2.9.0.dev1", "3.0"])
def test_an_untested_nnunet_gets_one_sentence(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(versions, "installed_nnunet", lambda: version)
    expected = rf"made for nnunetv2>=2\.8\.1,<2\.9, but nnunetv2 {version} is installed: install a tested one"
    with pytest.raises(UnsupportedNnunetError, match=expected) as caught:
        recursive_find_trainer_class_by_name("SSHUNetTrainer")
    assert "\n" not in str(caught.value)
    with pytest.raises(UnsupportedNnunetError, match=expected):
        find_planner("SSHUNetPlanner")
    assert recursive_find_trainer_class_by_name("nnUNetTrainer") is not None, "nnU-Net's own names are not our business"


@pytest.mark.parametrize("version", ["2.8.1", "2.8.1.post1", "2.8.17", None])
def test_tested_nnunets(version: str | None) -> None:
    assert versions.problem(version) is None


def test_the_range_is_that_of_the_package() -> None:
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert f'"{versions.WANTED}"' in text


class TestShim:
    """The manual way: only ``nnUNet_extTrainer``, no hook."""

    @pytest.fixture(autouse=True)
    def without_hook(self, monkeypatch: pytest.MonkeyPatch) -> None:
        module = sys.modules["nnunetv2.utilities.find_class_by_name"]
        wrapper: Any = module.recursive_find_python_class
        for name in ("find_class_by_name", "find_objects"):
            monkeypatch.setattr(f"nnunetv2.utilities.{name}.recursive_find_python_class", wrapper.__wrapped__)
        assert not lookup.is_installed()
        set_folders(monkeypatch, shim_folder())

    @pytest.mark.parametrize("name", [*registry.TRAINERS, "SSHUNetTrainer_GSF_Seed1_2its_3epochs"])
    def test_canonical_class(self, name: str) -> None:
        first, second = (recursive_find_trainer_class_by_name(name) for _ in range(2))
        assert first is second is lookup.find("trainer", name)
        parsed = parse_trainer(name)
        assert parsed is not None
        assert first.__module__ == parsed.entry.target.partition(":")[0]
        assert getattr(importlib.import_module(first.__module__), name) is first
        assert pickle.loads(pickle.dumps(first)) is first
        assert "nnunet_ext_trainers" not in sys.modules, "nnU-Net removes what it imported from the folder"

    def test_unknown_suffix_warns_with_the_sentence(self) -> None:
        with (
            pytest.warns(UserWarning, match="no suffix 'Mine'"),
            pytest.raises(RuntimeError, match="Could not find requested nnunet trainer"),
        ):
            recursive_find_trainer_class_by_name("SSHUNetTrainer_Mine")

    def test_foreign_class_after_the_shim(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        set_folders(monkeypatch, shim_folder(), foreign_folder(tmp_path / "theirs", "SSHUNetTrainer_Mine"))
        assert recursive_find_trainer_class_by_name("SSHUNetTrainer_Mine").__module__ == "theirs_sshunettrainer_mine"

    def test_the_folder_holds_one_module_that_names_the_trainers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert [path.name for path in shim_folder().glob("*.py")] == ["nnunet_ext_trainers.py"]
        monkeypatch.syspath_prepend(shim_folder())
        shim = importlib.import_module("nnunet_ext_trainers")
        try:
            assert dir(shim) == sorted(registry.TRAINERS)
            assert shim.SSHUNetTrainer is lookup.find("trainer", "SSHUNetTrainer")
            with pytest.warns(UserWarning, match="no suffix 'Mine'"), pytest.raises(UnknownNameError):
                _ = shim.SSHUNetTrainer_Mine
            with pytest.raises(AttributeError, match="no trainer of that name"):
                _ = shim.Other
        finally:
            sys.modules.pop("nnunet_ext_trainers", None)
