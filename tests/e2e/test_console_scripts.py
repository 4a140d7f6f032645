"""nnU-Net's own console scripts with our names, in clean virtual environments, worker processes and all.

Three ways run side by side, each on tiny data of its own: from the wheel (then uninstalled), from an editable install,
and the manual way with the start-up file switched off. The wheel goes through every command; to save time, the other
two only plan, train and predict, unless ``NNUNET_EXT_E2E=full`` is set: then all three go through every command.

torch and nnU-Net come from the environment of the tests, by a line in a ``.pth`` file that names its folder: Python
does not read the ``.pth`` files of a folder so named, so what is found there of nnunet_ext can only come from the clean
environment's own installation.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import venv
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import support

from nnunet_ext.cli import shim_folder

ROOT = Path(__file__).parents[2]
DATASET, CONFIGURATION = "901", "3d_fullres"
PLANNER, PLANS = "SSHUNetPlanner_W4", "SSHUNetPlans_W4"
TRAINER = "SSHUNetTrainer_AdamW_NoMirroring_2its_1epochs"
MODEL = f"{TRAINER}__{PLANS}__{CONFIGURATION}"
NAMED = ("-d", DATASET, "-tr", TRAINER, "-p", PLANS, "-c", CONFIGURATION)
PLANNING = ("-d", DATASET, "-pl", PLANNER, "-c", CONFIGURATION, "-np", "1", "-npfp", "1", "--no_pbar")
FULL = os.environ.get("NNUNET_EXT_E2E") == "full"
BUILD_TOOLS = ("hatchling", "packaging", "pathspec", "pluggy", "trove_classifiers", "tomli")


@dataclass
class Environment:
    """A clean virtual environment, and the variables of the processes that run in it."""

    folder: Path
    workspace: support.Workspace
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def by_hand(self) -> bool:
        """Whether the start-up file is switched off."""
        return "NNUNET_EXT_DISABLE_STARTUP" in self.variables

    @property
    def binaries(self) -> Path:
        return self.folder / ("Scripts" if os.name == "nt" else "bin")

    @property
    def python(self) -> Path:
        return self.binaries / "python"

    @property
    def site_packages(self) -> Path:
        """The environment's own, and no other: files are written there."""
        (folder,) = self.folder.rglob("site-packages")
        return folder

    def run(self, *command: str | Path, **more: str) -> str:
        """Run a command, away from the sources; returns its output, and fails with it."""
        env = {k: v for k, v in os.environ.items() if not k.startswith(("nnUNet_", "NNUNET_", "PYTHON", "COV"))}
        folders = (self.workspace.raw, self.workspace.preprocessed, self.workspace.results)
        env |= dict(zip(support.VARIABLES, map(str, folders), strict=True))
        env |= {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1", "nnUNet_compile": "f", "OMP_NUM_THREADS": "1"}
        env |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1"} | self.variables | more
        done = subprocess.run(
            command, cwd=self.workspace.root, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-6000:]}"
        return done.stdout

    def stock(self, script: str, *arguments: str | Path, **more: str) -> str:
        """One of nnU-Net's installed console scripts, by this environment's Python."""
        return self.run(self.python, Path(sys.executable).parent / script, *arguments, **more)

    def pip(self, *arguments: str | Path, **more: str) -> str:
        """The tests' pip, working on this environment."""
        return self.run(sys.executable, "-m", "pip", "--python", self.python, *arguments, **more)

    def borrow_dependencies(self) -> Path:
        """torch, nnU-Net and the rest from the tests' environment; returns the file that names their folders."""
        specs = [importlib.util.find_spec(name) for name in ("torch", "nnunetv2", "numpy")]
        folders = {str(Path(spec.origin).parents[1]) for spec in specs if spec is not None and spec.origin is not None}
        distutils = "import _distutils_hack; _distutils_hack.add_shim()\n" if sys.version_info >= (3, 12) else ""
        file = self.site_packages / "zz_dependencies.pth"
        file.write_text("\n".join(sorted(folders)) + "\n" + distutils)
        return file

    def state(self) -> list[str]:
        """Where nnunet_ext is (if anywhere), whether the hook waits, and what its start has imported of it."""
        code = (
            "import sys; at_start = sorted(m for m in sys.modules if m.startswith(('nnunet', 'torch')))\n"
            "try:\n import nnunet_ext._startup as s\n print(s.__file__, s.is_waiting(), *at_start)\n"
            "except ModuleNotFoundError:\n print('absent', *at_start)"
        )
        return self.run(self.python, "-c", code).split()


def new_environment(root: Path, name: str) -> Environment:
    workspace = support.Workspace(root / f"{name}_data")
    workspace.dataset("plain")
    venv.create(root / name, with_pip=False)
    return Environment(root / name, workspace)


def build_tools(root: Path) -> Path:
    """A folder for PYTHONPATH with what builds the package and nothing else."""
    folder = root / "build_tools"
    folder.mkdir()
    for name in BUILD_TOOLS:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            (folder / name).symlink_to(Path(spec.origin).parent)
    return folder


def install_wheel(environment: Environment, root: Path) -> None:
    environment.run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", root, ROOT)
    (wheel,) = root.glob("nnunet_ext-*.whl")
    environment.pip("install", "-q", "--no-deps", wheel)


def install_editable(environment: Environment, root: Path) -> None:
    arguments = ("install", "-q", "--no-deps", "--no-build-isolation", "-e", ROOT)
    environment.pip(*arguments, PYTHONPATH=str(build_tools(root)))


def plan(environment: Environment) -> None:
    """The stock command, or ours without the hook; worker processes start Python, and with it the hook, anew."""
    if environment.by_hand:
        environment.run(environment.binaries / "nnunet-ext", "plan", *PLANNING)
    else:
        environment.stock("nnUNetv2_plan_and_preprocess", *PLANNING)
    (preprocessed,) = environment.workspace.preprocessed.iterdir()
    assert (preprocessed / f"{PLANS}.json").is_file()
    assert len(list(preprocessed.glob(f"*_{CONFIGURATION}/*.pkl"))) == len(support.CASES)


def train(environment: Environment, fold: str, *arguments: str) -> None:
    environment.stock(
        "nnUNetv2_train", DATASET, CONFIGURATION, fold, "-tr", TRAINER, "-p", PLANS, "-device", "cpu", *arguments,
        nnUNet_n_proc_DA="0",
    )  # fmt: skip
    (dataset,) = environment.workspace.results.iterdir()
    folder = dataset / MODEL / f"fold_{fold}"
    assert (folder / "checkpoint_final.pth").is_file()
    assert (folder / "validation" / "summary.json").is_file()


def images(environment: Environment) -> Path:
    """A folder with one image to predict."""
    folder = environment.workspace.root / "to_predict"
    folder.mkdir(exist_ok=True)
    (raw,) = environment.workspace.raw.iterdir()
    shutil.copy(raw / "imagesTr" / f"{support.CASES[0]}_0000.nii.gz", folder)
    return folder


def predict(environment: Environment, fold: str, model: Path | None = None) -> Path:
    """Predict with probabilities; returns the folder of the predictions.

    By name without worker processes, to save time; from a model folder with them, which that command insists on.
    """
    folder = environment.workspace.root / f"predicted_{fold}"
    common: list[str | Path] = ["-i", images(environment), "-o", folder, "-f", fold, "-device", "cpu", "--disable_tta"]
    common.append("--save_probabilities")
    if model is None:
        environment.stock("nnUNetv2_predict", *common, *NAMED, "-npp", "0", "-nps", "0")
    else:
        environment.stock("nnUNetv2_predict_from_modelfolder", *common, "-m", model, "-npp", "1", "-nps", "1")
    assert (folder / f"{support.CASES[0]}.nii.gz").is_file()
    assert (folder / f"{support.CASES[0]}.npz").is_file()
    return folder


def find_best(environment: Environment) -> None:
    environment.stock(
        "nnUNetv2_find_best_configuration", DATASET, *NAMED[2:], "-f", "0", "1", "-np", "1", "--disable_ensembling"
    )
    (dataset,) = environment.workspace.results.iterdir()
    assert (dataset / "inference_instructions.txt").is_file()


def hand_over(environment: Environment) -> Path:
    """Export the model and install the zip into other results; returns the installed model's folder."""
    root = environment.workspace.root
    environment.stock("nnUNetv2_export_model_to_zip", *NAMED, "-o", root / "model.zip", "-f", "0", "1")
    results = root / "installed"
    results.mkdir()
    environment.stock("nnUNetv2_install_pretrained_model_from_zip", root / "model.zip", nnUNet_results=str(results))
    (dataset,) = results.iterdir()
    assert (dataset / MODEL / "fold_1" / "checkpoint_final.pth").is_file()
    return dataset / MODEL


def whole_chain(environment: Environment, *, every_command: bool) -> None:
    """Everything that nnU-Net's commands do with a name of ours, or only plan, train one fold and predict."""
    plan(environment)
    if not every_command:
        train(environment, "0")
        predict(environment, "0")
        return
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda fold: train(environment, fold, "--npz"), "01"))
        first, best = pool.submit(predict, environment, "0"), pool.submit(find_best, environment)
        best.result()
        predicted = [first.result(), predict(environment, "1", hand_over(environment))]
    ensembled = environment.workspace.root / "ensembled"
    environment.stock("nnUNetv2_ensemble", "-i", *predicted, "-o", ensembled, "-np", "1")
    assert (ensembled / f"{support.CASES[0]}.nii.gz").is_file()


def from_the_wheel(root: Path) -> None:
    """Every command; then nothing is left of the package."""
    environment = new_environment(root, "wheel")
    site = environment.site_packages
    before = {path for path in site.rglob("*") if "__pycache__" not in path.parts}
    assert environment.state() == ["absent"]
    install_wheel(environment, root)
    dependencies = environment.borrow_dependencies()
    place, *state = environment.state()
    assert site in Path(place).parents
    assert state == ["True", "nnunet_ext", "nnunet_ext._startup"]
    whole_chain(environment, every_command=True)
    dependencies.unlink()
    environment.pip("uninstall", "-q", "-y", "nnunet-ext")
    assert {path for path in site.rglob("*") if "__pycache__" not in path.parts} == before
    assert not (environment.binaries / "nnunet-ext").exists()
    assert environment.state() == ["absent"]


def from_an_editable_install(root: Path) -> None:
    """The same look-ups from the sources."""
    environment = new_environment(root, "editable")
    site = environment.site_packages
    install_editable(environment, root)
    environment.borrow_dependencies()
    assert environment.state() == [
        str(ROOT / "nnunet_ext" / "_startup.py"), "True", "nnunet_ext", "nnunet_ext._startup",
    ]  # fmt: skip
    assert (site / "nnunet_ext.pth").is_file()
    assert (site / "nnunet_ext.start").is_file()
    whole_chain(environment, every_command=FULL)


def by_hand(root: Path) -> None:
    """The start-up file switched off: ``nnUNet_extTrainer`` for trainers, ``nnunet-ext plan`` for planners."""
    environment = new_environment(root, "by_hand")
    install_editable(environment, root / "by_hand_data")
    environment.borrow_dependencies()
    environment.variables["NNUNET_EXT_DISABLE_STARTUP"] = "1"
    assert environment.state()[1] == "False"
    shim = environment.run(environment.binaries / "nnunet-ext", "env").strip()
    assert Path(shim) == shim_folder()
    environment.variables["nnUNet_extTrainer"] = shim
    whole_chain(environment, every_command=FULL)


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(1800 if FULL else 900)
def test_stock_commands_find_our_names(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        for way in [pool.submit(way, tmp_path) for way in (from_the_wheel, from_an_editable_install, by_hand)]:
            way.result()
