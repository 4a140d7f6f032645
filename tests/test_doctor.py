from __future__ import annotations

import json
import os
import subprocess
import venv
from pathlib import Path

import pytest

from nnunet_ext import doctor, lookup, registry, versions
from nnunet_ext.cli import main, shim_folder
from nnunet_ext.doctor import Finding

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def no_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests keep nnU-Net's variables set for a whole session."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an empty virtual environment."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    return folder / ("Scripts" if os.name == "nt" else "bin") / "python"


def check_elsewhere(python: Path, check: str, *paths: Path, **environment: str) -> list[Finding]:
    """Run one check in another environment that sees the package, and more folders, by PYTHONPATH only."""
    code = "import json, dataclasses; from nnunet_ext import doctor\n"
    code += f"print(json.dumps([dataclasses.asdict(f) for f in doctor.{check}()]))"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (*paths, ROOT)))} | environment
    out = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, env=env).stdout
    return [Finding(**finding) for finding in json.loads(out)]


def distribution(folder: Path, name: str, version: str = "2.8.1", package: bool = True) -> Path:
    """A folder in which the distribution ``name`` has put a package nnunetv2."""
    if package:
        (folder / "nnunetv2").mkdir(parents=True)
        (folder / "nnunetv2" / "__init__.py").touch()
    information = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (information / "top_level.txt").write_text("nnunetv2\n")
    (information / "RECORD").write_text("nnunetv2/__init__.py,,\n")
    return folder


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1
    return findings[0]


def test_all_is_well_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lookup.install()
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path))
    assert main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert {finding["status"] for finding in findings} == {"ok"}
    resolved = {finding["message"].split()[-1] for finding in findings if finding["check"] == "names"}
    assert resolved == {*registry.TRAINERS, *registry.PLANNERS, *registry.NETWORKS}


def test_failures_set_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "missing"))
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert f"fail  nnUNet_raw    {tmp_path / 'missing'} is no folder" in out
    assert "-> make it, or correct the variable" in out
    assert out.splitlines()[-1].endswith("1 to put right")


def test_startup_file_on_pythonpath_is_not_read(bare: Path) -> None:
    finding = only(check_elsewhere(bare, "check_startup"))
    assert finding.status == "fail"
    assert f"the start-up file is in {ROOT}, but Python reads such files only in site directories" in finding.message
    assert "pip install CHECKOUT_OR_WHEEL" in finding.advice
    assert "nnunet-ext plan" in finding.advice


def test_startup_file_in_a_target_folder_is_not_read(bare: Path, tmp_path: Path) -> None:
    """As after ``pip install --target``: the folder holds the package and its start-up file, and is on PYTHONPATH."""
    (tmp_path / "nnunet_ext").symlink_to(ROOT / "nnunet_ext")
    (tmp_path / "nnunet_ext.pth").write_text("import nnunet_ext._startup; nnunet_ext._startup.register()\n")
    finding = only(check_elsewhere(bare, "check_startup", tmp_path))
    assert finding.status == "fail"
    assert "--target" in finding.message


def test_startup_without_file(bare: Path, tmp_path: Path) -> None:
    (tmp_path / "nnunet_ext").symlink_to(ROOT / "nnunet_ext")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import nnunet_ext.doctor as d\n"
    code += f"d.__file__ = {str(tmp_path / 'nnunet_ext' / 'x.py')!r}; d.Path.resolve = lambda p: p\n"
    code += "print(d.check_startup()[0].message)"
    out = subprocess.run([bare, "-I", "-c", code], capture_output=True, text=True, check=True).stdout
    assert "there is no start-up file" in out


def test_manual_way_makes_it_a_warning(bare: Path) -> None:
    finding = only(check_elsewhere(bare, "check_startup", nnUNet_extTrainer=str(shim_folder())))
    assert finding.status == "warn"


def test_switched_off(bare: Path) -> None:
    finding = only(check_elsewhere(bare, "check_startup", NNUNET_EXT_DISABLE_STARTUP="1"))
    assert finding.status == "warn"
    assert "switched off by NNUNET_EXT_DISABLE_STARTUP" in finding.message


def test_startup_file_that_is_read_but_does_nothing(bare: Path) -> None:
    out = subprocess.run(
        [bare, "-c", "import site; print(site.getsitepackages()[0])"], capture_output=True, text=True, check=True
    )
    file = Path(out.stdout.strip()) / "nnunet_ext.pth"
    file.write_text("# an old one\n")
    try:
        finding = only(check_elsewhere(bare, "check_startup"))
    finally:
        file.unlink()
    assert finding.status == "fail"
    assert f"the start-up file in {file.parent.resolve()} did not take effect" in finding.message


def test_no_nnunet(bare: Path) -> None:
    assert only(check_elsewhere(bare, "check_nnunet_version")).message == "nnunetv2 is not installed"
    assert check_elsewhere(bare, "check_nnunet_origin") == []
    assert "can't be imported" in only(check_elsewhere(bare, "check_names")).message
    assert only(check_elsewhere(bare, "check_torch")).status == "fail"


def test_nnunet_outside_the_tested_range(bare: Path, tmp_path: Path) -> None:
    finding = only(check_elsewhere(bare, "check_nnunet_version", distribution(tmp_path, "nnunetv2", "2.9.0")))
    assert finding.status == "fail"
    assert "but nnunetv2 2.9.0 is installed" in finding.message
    assert finding.advice.startswith("install a tested one with pip install 'nnunetv2>=2.8.1,<2.9'")


def test_nnunet_without_metadata(bare: Path, tmp_path: Path) -> None:
    (tmp_path / "nnunetv2").mkdir()
    (tmp_path / "nnunetv2" / "__init__.py").touch()
    assert only(check_elsewhere(bare, "check_nnunet_version", tmp_path)).status == "warn"


def test_right_origin(bare: Path, tmp_path: Path) -> None:
    assert only(check_elsewhere(bare, "check_nnunet_origin", distribution(tmp_path, "nnunetv2"))).status == "ok"


@pytest.mark.parametrize("beside", [False, True], ids=["instead", "over it"])
def test_fork_under_another_name(bare: Path, tmp_path: Path, beside: bool) -> None:
    folder = distribution(tmp_path, "nnunetv2-fork")
    if beside:
        distribution(tmp_path, "nnunetv2", package=False)
    finding = only(check_elsewhere(bare, "check_nnunet_origin", folder))
    assert finding.status == "fail"
    assert "nnunetv2-fork" in finding.message
    assert "pip uninstall" in finding.advice


def test_copy_that_shadows_the_installed_one(bare: Path, tmp_path: Path) -> None:
    installed = distribution(tmp_path / "installed", "nnunetv2")
    (tmp_path / "fork" / "nnunetv2").mkdir(parents=True)
    (tmp_path / "fork" / "nnunetv2" / "__init__.py").touch()
    finding = only(check_elsewhere(bare, "check_nnunet_origin", tmp_path / "fork", installed))
    assert finding.status == "fail"
    assert f"imported from {tmp_path / 'fork' / 'nnunetv2'}, which shadows" in finding.message


def test_editable_nnunet_is_no_fork(bare: Path, tmp_path: Path) -> None:
    sources = tmp_path / "sources"
    (sources / "nnunetv2").mkdir(parents=True)
    (sources / "nnunetv2" / "__init__.py").touch()
    information = distribution(tmp_path / "site", "nnunetv2", package=False) / "nnunetv2-2.8.1.dist-info"
    direct = {"url": f"file://{sources}", "dir_info": {"editable": True}}
    (information / "direct_url.json").write_text(json.dumps(direct))
    assert only(check_elsewhere(bare, "check_nnunet_origin", sources, tmp_path / "site")).status == "ok"


def test_second_nnunet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_other_nnunets() == []
    monkeypatch.syspath_prepend(distribution(tmp_path, "nnunetv2"))
    finding = only(doctor.check_other_nnunets())
    assert finding.status == "warn"
    assert f"{tmp_path / 'nnunetv2'} is used, not " in finding.message


@pytest.mark.parametrize(
    ("folder", "status"),
    [(shim_folder(), "ok"), (ROOT / "nnunet_ext" / "trainers", "fail"), (ROOT, "fail"), (Path("/no/where"), "warn")],
)
def test_external_folders(monkeypatch: pytest.MonkeyPatch, folder: Path, status: str) -> None:
    monkeypatch.setenv("nnUNet_extTrainer", str(folder))
    finding = only(doctor.check_external_folders())
    assert finding.status == status
    assert str(folder) in finding.message


def test_other_peoples_folders_are_their_business(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    assert doctor.check_external_folders() == []


def test_shadowed_name_is_reported(own_registry: None) -> None:
    target = registry.TRAINERS["SSHUNetTrainer"].target
    registry.register(registry.TrainerEntry("nnUNetTrainer", target, network="SSHUNet", planner="SSHUNetPlanner"))
    bad = [finding for finding in doctor.check_names() if finding.status != "ok"]
    assert "trainer nnUNetTrainer is found as" in only(bad).message


def test_names_of_an_untested_nnunet_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "installed_nnunet", lambda: "3.0")
    failed = {finding.message.split()[1] for finding in doctor.check_names() if finding.status == "fail"}
    assert failed == {*registry.TRAINERS, *registry.PLANNERS}


def test_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "missing"))
    findings = {finding.check: finding for finding in doctor.check_folders()}
    statuses = [findings[name].status for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")]
    assert statuses == ["ok", "fail", "warn"]
    assert findings["nnUNet_results"].advice == "export nnUNet_results=/path/to/nnUNet_results"


def test_folder_without_permission(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    finding = {finding.check: finding for finding in doctor.check_folders()}["nnUNet_results"]
    assert (finding.status, "no permission" in finding.message) == ("fail", True)
