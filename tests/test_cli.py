from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_ext import __version__, cli, names, registry
from nnunet_ext.cli import main


def test_list_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for name in (*registry.TRAINERS, *registry.PLANNERS, *registry.NETWORKS):
        assert name in out
    assert (
        "SSHUNetTrainer[_TSM|GSM|GSF][_VFN][_Published][_KD][_AdamW][_FineTune][_NoMirroring][_Seed<n>][_<n>its][_<n>epochs]"
        in out
    )
    assert "SSHUNetPlanner[M|L|XL][_Published][_W<n>]" in out


def test_list_for_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    listing = json.loads(capsys.readouterr().out)
    assert listing["version"] == __version__
    assert [trainer["name"] for trainer in listing["trainers"]] == list(registry.TRAINERS)
    trainer = listing["trainers"][0]
    assert trainer["suffixes"][0] == "TSM|GSM|GSF"
    assert (trainer["dimensions"], trainer["cascade"], trainer["kd"]) == ([3], True, True)
    assert listing["planners"][0]["suffixes"] == ["M|L|XL", "_Published", "_W<n>"]
    assert listing["networks"][0]["target"] == "nnunet_ext.architectures.sshunet:SSHUNet"


@pytest.mark.parametrize(
    "arguments", [["list"], ["list", "--json"], ["env"], ["--help"], ["demo", "--help"], ["redundancy", "--help"]]
)
def test_light_verbs_import_neither_torch_nor_nnunet(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom nnunet_ext.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit as e: assert not e.code\n"
        "print([m for m in ('torch', 'numpy', 'nnunetv2', 'nnunet_ext.doctor') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"


def test_env_prints_the_shim_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env"]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert folder == cli.shim_folder()
    assert (folder / "nnunet_ext_trainers.py").is_file()


def test_as_a_module() -> None:
    command = [sys.executable, "-m", "nnunet_ext", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == f"nnunet-ext {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["unknown"], ["list", "--unknown"], ["import-weights", "sshunet"]])
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: nnunet-ext" in capsys.readouterr().err


def test_user_errors_are_one_sentence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["import-weights", "sshunet", "missing.pt", "-o", "somewhere"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("nnunet-ext: ")
    assert "missing.pt" in err
    assert "Traceback" not in err


def test_full_disk_is_one_sentence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> Path:
        raise OSError(errno.ENOSPC, "No space left on device", "/data/plans.json")

    monkeypatch.setattr(cli, "shim_folder", full)
    assert main(["env"]) == 1
    expected = "nnunet-ext: no space left on the device while writing /data/plans.json: free some, or point nnU-Net's"
    assert capsys.readouterr().err.startswith(expected)


def test_other_errors_of_the_system_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> Path:
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(cli, "shim_folder", fails)
    with pytest.raises(PermissionError):
        main(["env"])


def test_every_verb_has_help() -> None:
    for verb in cli.VERBS:
        if verb != "plan":  # that is nnU-Net's own
            with pytest.raises(SystemExit) as caught:
                main([verb, "--help"])
            assert caught.value.code == 0


def test_plans_names_agree() -> None:
    assert {names.plans_name(entry.planner) for entry in registry.TRAINERS.values()} == {
        "SSHUNetPlans",
        "UNETRPPPlans",
        "SwinUNetPlans",
        "NNFormerPlans",
        "OSSNetPlans",
        "nnUNetPlans",
    }
