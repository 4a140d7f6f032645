"""Tiny data sets for tests that train, made in a second and in one process.

A `Workspace` is a folder with nnU-Net's three folders in it. `Workspace.dataset(kind)` writes raw images, labels, a
fingerprint and splits; `Workspace.plan` runs a planner and makes the network thin; `Workspace.preprocess` runs the
preprocessor on the cases without worker processes. Everything is made once and kept, so keep the workspace for the
whole test session, and give each test its own results folder. `build_trainer` and `quiet` make trainers that lose no
time.
"""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.pool
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
import torch
import torch.distributed

CASES = ("case_0", "case_1", "case_2", "case_3")
THIN_FEATURES = (4, 8, 8, 8, 8, 8, 8)
VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


@dataclass(frozen=True)
class Kind:
    """What a tiny data set looks like; shapes and spacings are (D, H, W), in voxels and millimetres."""

    number: int
    shape: tuple[int, int, int] = (24, 32, 32)
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    labels: dict[str, Any] = field(default_factory=lambda: {"background": 0, "organ": 1, "core": 2})
    regions_class_order: tuple[int, ...] | None = None
    channels: int = 1

    def name(self, kind: str) -> str:
        """nnU-Net's name of the data set."""
        return f"Dataset{self.number}_{kind}"


_REGIONS: dict[str, Any] = {"background": 0, "whole": [1, 2], "core": 2}
KINDS = {
    "plain": Kind(901),
    "noncubic": Kind(902, shape=(16, 24, 40)),
    "anisotropic": Kind(903, shape=(12, 48, 48), spacing=(3.0, 1.0, 1.0)),
    "regions": Kind(904, labels=_REGIONS, regions_class_order=(1, 2)),
    "ignore": Kind(905, labels={"background": 0, "organ": 1, "core": 2, "ignore": 3}),
    "regionsignore": Kind(906, labels={**_REGIONS, "ignore": 3}, regions_class_order=(1, 2)),
    "twochannels": Kind(907, channels=2),
    "manyclasses": Kind(908, labels={"background": 0, "organ": 1, "core": 2, **{f"c{i}": i for i in range(3, 24)}}),
}


class Workspace:
    """nnU-Net's folders under ``root`` with tiny data in them; what was made is not made again."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.raw, self.preprocessed, self.results = (root / name for name in VARIABLES)
        for folder in (self.raw, self.preprocessed, self.results):
            folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def environment(self, results: Path | None = None) -> Iterator[None]:
        """nnU-Net's variables point into the workspace (results elsewhere on demand); no worker processes."""
        new = dict(zip(VARIABLES, map(str, (self.raw, self.preprocessed, results or self.results)), strict=True))
        new.update(nnUNet_n_proc_DA="0", nnUNet_def_n_proc="1", nnUNet_compile="f")
        old = {name: os.environ.get(name) for name in new}
        os.environ.update(new)
        try:
            yield
        finally:
            for name, value in old.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    def dataset(self, kind: str) -> str:
        """Write raw data, fingerprint, splits and reference labels of a kind; returns the data set's name."""
        name = KINDS[kind].name(kind)
        if not (self.preprocessed / name / "splits_final.json").exists():
            _write_dataset(self, kind, name)
        return name

    def plan(self, kind: str, planner: Callable[..., Any] | None = None, *, thin: bool = True) -> dict[str, Any]:
        """Plan a kind with a planner class (None: nnU-Net's) and write the plans file.

        Args:
            kind: key of `KINDS`.
            planner: called with the data set's name, as nnU-Net calls planners.
            thin: features 4, 8, 8, ... and one convolution a stage where the network has such arguments.

        Returns:
            The plans, with batches of two. Configurations with the same spacing share preprocessed data, whoever
            planned them.
        """
        from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

        name = self.dataset(kind)
        with self.environment():
            os.environ.update(nnUNet_n_proc_DA="1")  # nnU-Net's planning fails with 0
            made = (planner or ExperimentPlanner)(name)
            made.plan_experiment()
        path = self.preprocessed / name / f"{made.plans_identifier}.json"
        plans: dict[str, Any] = json.loads(path.read_text())
        for configuration in plans["configurations"].values():
            if "spacing" in configuration:
                spacing = "x".join(f"{float(s):g}" for s in configuration["spacing"])
                configuration["data_identifier"] = f"tiny_{spacing}"
            if "batch_size" in configuration:
                configuration["batch_size"] = min(configuration["batch_size"], 2)
            if "architecture" in configuration:
                shorten_network(configuration["architecture"]["arch_kwargs"])
                if thin:
                    thin_network(configuration["architecture"]["arch_kwargs"])
        path.write_text(json.dumps(plans))
        return plans

    def write_plans(self, plans: dict[str, Any]) -> None:
        """Write (changed) plans where nnU-Net's commands look for them."""
        path = self.preprocessed / plans["dataset_name"] / f"{plans['plans_name']}.json"
        path.write_text(json.dumps(plans))

    def preprocess(self, plans: dict[str, Any], configuration: str = "3d_fullres") -> Path:
        """Preprocess all cases of a configuration in this process; returns the folder of the preprocessed cases."""
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        name = plans["dataset_name"]
        manager = PlansManager(plans)
        configured = manager.get_configuration(configuration)
        folder = self.preprocessed / name / configured.data_identifier
        folder.mkdir(exist_ok=True)
        dataset_json = self.dataset_json(name)
        for case in CASES:
            if (folder / f"{case}.pkl").exists():
                continue
            images = [
                str(self.raw / name / "imagesTr" / f"{case}_{c:04d}.nii.gz") for c in range(channels(dataset_json))
            ]
            label = str(self.raw / name / "labelsTr" / f"{case}.nii.gz")
            configured.preprocessor_class(verbose=False).run_case_save(
                str(folder / case), images, label, manager, configured, dataset_json
            )
        return folder

    def dataset_json(self, name: str) -> dict[str, Any]:
        """The data set's dataset.json."""
        content: dict[str, Any] = json.loads((self.raw / name / "dataset.json").read_text())
        return content

    def copy(self, root: Path) -> Workspace:
        """A copy of the workspace that a test may damage."""
        shutil.copytree(self.root, root)
        return Workspace(root)


def channels(dataset_json: dict[str, Any]) -> int:
    """Number of image channels."""
    return len(dataset_json["channel_names"])


def thin_network(arch_kwargs: dict[str, Any]) -> None:
    """Make a plans' network as small as its topology allows, in place."""
    if "features_per_stage" in arch_kwargs:
        arch_kwargs["features_per_stage"] = list(THIN_FEATURES[: len(arch_kwargs["features_per_stage"])])
    for key in ("n_conv_per_stage", "n_conv_per_stage_decoder", "n_blocks_per_stage"):
        if key in arch_kwargs:
            arch_kwargs[key] = [1] * len(arch_kwargs[key])


def shorten_network(arch_kwargs: dict[str, Any]) -> None:
    """One block a stage, where a plans' network has such arguments for encoder and decoder, in place."""
    for key in ("n_blocks_per_stage", "n_blocks_per_stage_decoder"):
        if "n_blocks_per_stage_decoder" in arch_kwargs:
            arch_kwargs[key] = [1] * len(arch_kwargs[key])


def with_stages(plans: dict[str, Any], n_stages: int, configuration: str = "3d_fullres") -> dict[str, Any]:
    """A copy of plans whose network has only its first ``n_stages`` stages."""
    plans = deepcopy(plans)
    arguments = plans["configurations"][configuration]["architecture"]["arch_kwargs"]
    for key, value in arguments.items():
        if isinstance(value, list):
            arguments[key] = value[: n_stages - 1 if key == "n_conv_per_stage_decoder" else n_stages]
    arguments["n_stages"] = n_stages
    return plans


def with_cascade(plans: dict[str, Any]) -> dict[str, Any]:
    """A copy of plans with 3d_lowres (twice the spacing, the same patch) and 3d_cascade_fullres added."""
    plans = deepcopy(plans)
    full = plans["configurations"]["3d_fullres"]
    low = deepcopy(full)
    low["spacing"] = [2 * s for s in full["spacing"]]
    low["data_identifier"] = f"{full['data_identifier']}_lowres"
    low["next_stage"] = "3d_cascade_fullres"
    plans["configurations"]["3d_lowres"] = low
    plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    return plans


def build_trainer(
    trainer: Callable[..., Any],
    workspace: Workspace,
    plans: dict[str, Any],
    configuration: str = "3d_fullres",
    fold: int | str = 0,
    **attributes: Any,
) -> Any:
    """Construct a trainer on the CPU, quiet; set ``workspace.environment(results)`` before.

    Args:
        trainer: the class.
        workspace: with the plans' data set, preprocessed for the configuration.
        plans: not changed.
        configuration: its name in the plans.
        fold: of the two that the data has, or "all".
        **attributes: set on the trainer after construction (``num_epochs=1``, ...).
    """
    dataset_json = workspace.dataset_json(plans["dataset_name"])
    made = trainer(deepcopy(plans), configuration, fold, dataset_json, torch.device("cpu"))
    for name, value in attributes.items():
        setattr(made, name, value)
    return quiet(made)


def quiet(trainer: Any) -> Any:
    """Without the drawing of progress.png (a second and more an epoch)."""
    trainer.logger.plot_progress_png = lambda *_: None
    return trainer


def log_of(trainer: Any) -> str:
    """What the trainer has written to its log file."""
    return Path(trainer.log_file).read_text()


@contextmanager
def one_of_two(rank: int, folder: str | Path) -> Iterator[None]:
    """As process `rank` of a group of two on the CPU, which meet in a file of `folder`; it ends when both are done."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    yield
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def spawn_as_threads(set_attribute: Callable[[Any, str, Any], None]) -> None:
    """Let nnU-Net's pools of spawned processes be a thread each.

    Args:
        set_attribute: pytest's ``monkeypatch.setattr``.
    """
    real = multiprocessing.get_context

    class Threads:
        def __getattr__(self, name: str) -> Any:
            return getattr(real("spawn"), name)

        def Pool(self, *_: Any, **__: Any) -> multiprocessing.pool.ThreadPool:
            return multiprocessing.pool.ThreadPool(1)

    set_attribute(multiprocessing, "get_context", lambda method=None: Threads() if method == "spawn" else real(method))


def _write_dataset(workspace: Workspace, kind: str, name: str) -> None:
    """Raw images and labels, dataset.json, fingerprint, splits (2 folds), and the labels for validation."""
    tiny = KINDS[kind]
    raw, preprocessed = workspace.raw / name, workspace.preprocessed / name
    for folder in (raw / "imagesTr", raw / "labelsTr", preprocessed):
        folder.mkdir(parents=True, exist_ok=True)
    dataset_json: dict[str, Any] = {
        "channel_names": {str(c): "MRI" for c in range(tiny.channels)},
        "labels": tiny.labels,
        "numTraining": len(CASES),
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "SimpleITKIO",
    }
    if tiny.regions_class_order is not None:
        dataset_json["regions_class_order"] = list(tiny.regions_class_order)
    for number, case in enumerate(CASES):
        images, label = _draw(tiny, number)
        for channel, image in enumerate(images):
            _save(image, tiny.spacing, raw / "imagesTr" / f"{case}_{channel:04d}.nii.gz")
        _save(label, tiny.spacing, raw / "labelsTr" / f"{case}.nii.gz")
    shutil.copytree(raw / "labelsTr", preprocessed / "gt_segmentations", dirs_exist_ok=True)
    intensities = {
        "max": 4.0,
        "mean": 1.0,
        "median": 1.0,
        "min": -2.0,
        "percentile_00_5": -1.0,
        "percentile_99_5": 3.0,
        "std": 1.0,
    }
    fingerprint = {
        "foreground_intensity_properties_per_channel": {str(c): intensities for c in range(tiny.channels)},
        "median_relative_size_after_cropping": 1.0,
        "shapes_after_crop": [list(tiny.shape) for _ in CASES],
        "spacings": [list(tiny.spacing) for _ in CASES],
    }
    half = len(CASES) // 2
    folds: Sequence[tuple[Sequence[str], Sequence[str]]] = ((CASES[:half], CASES[half:]), (CASES[half:], CASES[:half]))
    splits = [{"train": list(train), "val": list(val)} for train, val in folds]
    (raw / "dataset.json").write_text(json.dumps(dataset_json))
    (preprocessed / "dataset.json").write_text(json.dumps(dataset_json))
    (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    (preprocessed / "splits_final.json").write_text(json.dumps(splits))


def _draw(tiny: Kind, number: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Noise with a bright ball (label 1) and a brighter core (label 2) somewhere; ignored voxels in a corner."""
    random = np.random.default_rng([tiny.number, number])
    axes = np.meshgrid(*(np.linspace(-1, 1, edge) for edge in tiny.shape), indexing="ij")
    centre = random.uniform(-0.3, 0.3, size=3)
    distance = np.sqrt(sum((axis - c) ** 2 for axis, c in zip(axes, centre, strict=True)))
    label = (distance < 0.6).astype(np.uint8) + (distance < 0.3).astype(np.uint8)
    images = [(label + random.normal(scale=0.3, size=tiny.shape)).astype(np.float32) for _ in range(tiny.channels)]
    if "ignore" in tiny.labels:
        label[:, :8, :8] = tiny.labels["ignore"]
    return images, label


def _save(array: np.ndarray, spacing: tuple[float, float, float], path: Path) -> None:
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(spacing[::-1])
    SimpleITK.WriteImage(image, str(path))
