"""Every registered trainer end to end: trains, validates, predicts, is exported, installed, and predicts elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
import support
import torch
from contract.models import SHORT, Planned, Trained, trainer_named
from contract.registered import PLUGINS, TRAINERS, configurations, is_ours, option_names
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.model_sharing.model_export import export_pretrained_model
from nnunetv2.model_sharing.model_import import install_model_from_zip_file

CHECKPOINT = "checkpoint_final.pth"
KEYS = {
    "network_weights",
    "optimizer_state",
    "grad_scaler_state",
    "logging",
    "_best_ema",
    "current_epoch",
    "init_args",
    "trainer_name",
    "inference_allowed_mirroring_axes",
}
LABELS = ("plain", "regions", "ignore", "regionsignore")
SHAPES = ("anisotropic", "noncubic")
UNCHANGED = ("UNetTrainer",)
"""Networks, loss and data are nnU-Net's, so two kinds of data show as much as all."""
FULL = [
    (name, kind, c)
    for name, entry in TRAINERS.items()
    for c in configurations(entry)
    for kind in (("plain", "regionsignore") if name in UNCHANGED else LABELS + SHAPES)
]
VARIANTS = [
    (name, "plain", configurations(entry)[0])
    for base, entry in TRAINERS.items()
    for name in (*option_names(entry), f"{base}_AdamW_NoMirroring_Seed0")
]
SCRIPT = """
import importlib, json, os, sys
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

for job in json.loads(sys.argv[1]):
    for module in job["plugins"]:
        importlib.import_module(module)
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(job["model"], (0,), "checkpoint_final.pth")
    os.makedirs(job["output"])
    predictor.predict_from_files_sequential([job["files"]], [job["output"] + "/case_0"])
"""


def images_of(workspace: support.Workspace, dataset: str, case: str) -> list[str]:
    return [str(path) for path in sorted((workspace.raw / dataset / "imagesTr").glob(f"{case}_*"))]


def segmentation(path: Path) -> np.ndarray:
    array: np.ndarray = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
    return array


def allowed_labels(kind: str) -> set[int]:
    """Label values that a prediction may have: all but the ignored one."""
    tiny = support.KINDS[kind]
    values = {value for name, value in tiny.labels.items() if name != "ignore" and isinstance(value, int)}
    return values | set(tiny.regions_class_order or ())


def predictor_of(model: str | Path) -> Any:
    predictor = nnUNetPredictor(
        device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False, use_gaussian=True
    )
    predictor.initialize_from_trained_model_folder(str(model), (0,), CHECKPOINT)
    return predictor


@pytest.mark.parametrize(
    ("name", "kind", "configuration"), [pytest.param(*key, id="-".join(key)) for key in (*FULL, *VARIANTS)]
)
def test_trains_validates_and_predicts(
    name: str, kind: str, configuration: str, trained: Trained, workspace: support.Workspace, tmp_path: Path
) -> None:
    trainer = trained(name, kind, configuration)
    check_training(trainer)
    dataset = support.KINDS[kind].name(kind)
    predictor = predictor_of(trainer.output_folder_base)
    predictor.predict_from_files_sequential(
        [images_of(workspace, dataset, "case_3")], [str(tmp_path / "case_3")], save_probabilities=True
    )
    assert "deep_supervision" not in vars(getattr(predictor.network, "decoder", predictor.network)) or (
        not predictor.network.decoder.deep_supervision
    )
    predicted = segmentation(tmp_path / "case_3.nii.gz")
    assert predicted.shape == support.KINDS[kind].shape
    assert set(np.unique(predicted)) <= allowed_labels(kind)
    probabilities = np.load(tmp_path / "case_3.npz")["probabilities"]
    assert probabilities.shape == (trainer.label_manager.num_segmentation_heads, *support.KINDS[kind].shape)
    assert np.isfinite(probabilities).all()
    assert 0 <= probabilities.min() <= probabilities.max() <= 1
    if "NoMirroring" in name:
        assert predictor.allowed_mirroring_axes is None


def check_training(trainer: Any) -> None:
    """One value an epoch in every log, a complete checkpoint of plain types, and the validation's files."""
    for key in ("train_losses", "val_losses", "mean_fg_dice", "lrs", "epoch_end_timestamps"):
        values = trainer.logger.get_value(key, step=None)
        assert len(values) == 1
        assert np.isfinite(values).all()
    folder = Path(trainer.output_folder)
    checkpoint = torch.load(folder / CHECKPOINT, weights_only=False)
    assert checkpoint.keys() >= KEYS
    assert checkpoint["trainer_name"] == type(trainer).__name__
    json.dumps(checkpoint["init_args"]["plans"])
    assert checkpoint["inference_allowed_mirroring_axes"] != ()
    summary = json.loads((folder / "validation" / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == 2
    for written in ("plans.json", "dataset.json", "dataset_fingerprint.json"):
        assert (Path(trainer.output_folder_base) / written).is_file()
    if trainer.enable_deep_supervision:
        assert trainer.network.decoder.deep_supervision, "on again after the validation, as nnU-Net leaves it"


@pytest.mark.parametrize(
    ("name", "configuration"), [(name, c) for name, entry in TRAINERS.items() for c in configurations(entry)]
)
def test_without_deep_supervision(name: str, configuration: str, planned: Planned) -> None:
    trainer = planned.trainer(f"{name}{SHORT}", "plain", configuration, enable_deep_supervision=False)
    trainer.run_training()
    assert np.isfinite(trainer.logger.get_value("train_losses", step=None)).all()
    trainer.set_deep_supervision_enabled(True)  # nnU-Net does so after its validation
    output = trainer.network(torch.zeros(1, 1, *trainer.configuration_manager.patch_size))
    assert isinstance(output, torch.Tensor)


@pytest.mark.parametrize("name", TRAINERS)
def test_a_model_installed_from_its_zip_predicts_in_a_script(
    name: str, trained: Trained, workspace: support.Workspace, tmp_path: Path, run_scripts: Callable[[str], Path]
) -> None:
    configuration = configurations(TRAINERS[name])[0]
    dataset = support.KINDS["plain"].name("plain")
    expected = tmp_path / "case_0"
    predictor = predictor_of(trained(name, "plain", configuration).output_folder_base)
    predictor.allowed_mirroring_axes = None
    predictor.predict_from_files_sequential([images_of(workspace, dataset, "case_0")], [str(expected)])
    assert np.array_equal(segmentation(run_scripts(name)), segmentation(expected.with_suffix(".nii.gz")))


@pytest.fixture(scope="module")
def run_scripts(
    trained: Trained, workspace: support.Workspace, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The prediction of a trainer's model, exported and installed, by a script that imports nnunetv2 only.

    One process predicts with all models, first with ours; other packages' registrations are imported after that.
    """
    root = tmp_path_factory.mktemp("installed")
    outputs = {name: root / "predicted" / name for name in TRAINERS}

    def run() -> None:
        jobs = []
        for name in sorted(TRAINERS, key=lambda name: not is_ours(TRAINERS[name])):
            model = _through_a_zip(trained(name, "plain", configurations(TRAINERS[name])[0]), workspace, root)
            files = images_of(workspace, support.KINDS["plain"].name("plain"), "case_0")
            plugins = [] if is_ours(TRAINERS[name]) else PLUGINS
            jobs.append({"model": str(model), "output": str(outputs[name]), "files": files, "plugins": plugins})
        _run_script(jobs, root)

    def output_of(name: str) -> Path:
        if not outputs[name].exists():
            run()
        return outputs[name] / "case_0.nii.gz"

    return output_of


def _through_a_zip(trainer: Any, workspace: support.Workspace, root: Path) -> Path:
    """The model folder after nnU-Net's export and install, in another folder of results."""
    file = root / f"{type(trainer).__name__}.zip"
    plans, configuration = trainer.plans_manager, trainer.configuration_name
    with workspace.environment():
        export_pretrained_model(
            plans.dataset_name, str(file), (configuration,), type(trainer).__name__, plans.plans_name, (0,)
        )
    with workspace.environment(root / "results"):
        install_model_from_zip_file(str(file))
    return root / "results" / plans.dataset_name / Path(trainer.output_folder_base).name


def _run_script(jobs: list[dict[str, Any]], root: Path) -> None:
    script = root / "predict.py"
    script.write_text(SCRIPT)
    paths = [path for path in sys.path if path and not path.startswith(sys.prefix)]  # where plug-ins may be
    environment = {"OMP_NUM_THREADS": "1", "PATH": "", "PYTHONPATH": ":".join(paths)}
    command = [sys.executable, str(script), json.dumps(jobs)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_options_change_what_they_say() -> None:
    """Each variant of the list above is another class of its base, with attributes of its own."""
    for base, entry in TRAINERS.items():
        for name in option_names(entry):
            made, plain = trainer_named(name), trainer_named(base)
            assert issubclass(made, plain)
            own = {key for key in vars(made) if not key.startswith("__")}
            assert own or len(made.__bases__) > 1, f"{name} changes nothing"  # KD is a second base class
