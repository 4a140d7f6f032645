"""Adaptive against dense decoding of trained OSS-Nets: time and equality. `ossnet.py` runs it.

The networks are trained by stock nnU-Net commands on the bundled hippocampus cases, a few minutes each, and kept in a
folder: they need not be good, but must have found the organ, so that its surface is like a real one. A validation case,
preprocessed as for prediction and padded to the patch, is decoded on a finer grid over the whole patch.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accuracy
import measure
import torch
from torch import Tensor

from nnunet_ext.architectures.blocks.point_grid import PointGrid
from nnunet_ext.demo.folder import DATASET
from nnunet_ext.names import plans_name

EDGE = 128
EQUAL = 0.999  # of all points have the same class both ways, at least
FOUND = 0.5  # mean foreground Dice of the validation fold from which a network has found the organ
MODES = ("dense", "adaptive")


@dataclass(frozen=True)
class Recipe:
    """How a network is trained, and what adaptive decoding should gain.

    Attributes:
        planner, trainer: names that nnU-Net's commands take.
        gb: GPU memory target of the plans, which decides about the patch or the batch.
        points: of a training step; None for the plans'.
        rounds: of the timing.
        target: dense by adaptive time, at least.
    """

    planner: str
    trainer: str
    gb: float
    points: int | None
    rounds: int
    target: float


RECIPES = {
    "OSSNetLocal": Recipe("OSSNetPlanner_W16", "OSSNetTrainer_NoMirroring_Seed0_20its_12epochs", 0.7, None, 5, 4.0),
    "OSSNet (C)": Recipe(
        "OSSNetPlanner_Published_W4", "OSSNetTrainer_Published_C_Seed0_1100its_1epochs", 0.5, 2**11, 2, 8.0
    ),
}


@dataclass(frozen=True)
class Timing:
    """What was measured of one network.

    Attributes:
        name: of the network.
        dice: mean foreground Dice of its validation fold; None where it was not trained.
        patch: voxels of the image.
        edge: of the grid, in points.
        seconds: dense and adaptive, of all rounds.
        evaluated: share of the grid's points that adaptive decoding evaluates.
        foreground: share of the grid's points that are not background.
        different: points whose class is not the same both ways.
        target: dense by adaptive time, at least.
    """

    name: str
    dice: float | None
    patch: tuple[int, ...]
    edge: int
    seconds: dict[str, list[float]]
    evaluated: float
    foreground: float
    different: int
    target: float

    @property
    def faster(self) -> float:
        """Dense by adaptive time, the median over the rounds."""
        return measure.ratio(self.seconds, *MODES)

    @property
    def equal(self) -> float:
        """Share of the points with the same class both ways."""
        return 1 - self.different / self.edge ** len(self.patch)


def model_folder(folder: Path, recipe: Recipe) -> Path:
    """Where nnU-Net puts the recipe's model if all its folders are in `folder`."""
    name = f"{recipe.trainer}__{plans_name(recipe.planner)}__{accuracy.CONFIGURATION}"
    return folder / "nnUNet_results" / DATASET / name


def train(folder: Path, recipe: Recipe, threads: int) -> None:
    """Plan, preprocess, train and validate in `folder`, which may hold an earlier, unfinished attempt."""
    env, plans = accuracy.environment(folder, threads), plans_name(recipe.planner)
    if not (folder / "nnUNet_raw" / DATASET).exists():
        accuracy.fill(folder, None)
    planning = ["-d", "4", "-pl", recipe.planner, "-c", accuracy.CONFIGURATION, "-np", "1", "-npfp", "1"]
    planning += ["-gpu_memory_target", str(recipe.gb), "-overwrite_plans_name", plans]
    accuracy.run(["nnUNetv2_plan_and_preprocess", *planning], env)
    if recipe.points is not None:
        file = folder / "nnUNet_preprocessed" / DATASET / f"{plans}.json"
        content = json.loads(file.read_text())
        configuration = content["configurations"][accuracy.CONFIGURATION]
        configuration["batch_size"] = 2
        configuration["architecture"]["arch_kwargs"]["n_points"] = recipe.points
        file.write_text(json.dumps(content, indent=2))
    training = ["4", accuracy.CONFIGURATION, accuracy.FOLD, "-tr", recipe.trainer, "-p", plans, "-device", "cpu"]
    accuracy.run(["nnUNetv2_train", *training], env)


def trained(folder: Path, recipe: Recipe, threads: int) -> tuple[Path, float]:
    """The recipe's model folder, trained if it is not there yet, and its Dice.

    Raises:
        RuntimeError: the network has not found the organ.
    """
    model = model_folder(folder, recipe)
    summary = model / f"fold_{accuracy.FOLD}" / "validation" / "summary.json"
    if not summary.exists():
        train(folder, recipe, threads)
    dice = float(json.loads(summary.read_text())["foreground_mean"]["Dice"])
    if not dice >= FOUND:
        raise RuntimeError(f"{model.name} has a Dice of {dice:.2f}: its surface is not an organ's; train it longer.")
    return model, dice


def case_of(folder: Path, model: Path) -> tuple[Any, Tensor]:
    """The model's network in eval mode, and the first validation case as it sees it, (1, C, *patch)."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), (int(accuracy.FOLD),), "checkpoint_final.pth")
    predictor.network.load_state_dict(predictor.list_of_parameters[0])
    splits = folder / "nnUNet_preprocessed" / DATASET / "splits_final.json"
    case = json.loads(splits.read_text())[int(accuracy.FOLD)]["val"][0]
    files = sorted((folder / "nnUNet_raw" / DATASET / "imagesTr").glob(f"{case}_*"))
    configuration = predictor.configuration_manager
    preprocessor = configuration.preprocessor_class(verbose=False)
    data = preprocessor.run_case(
        [str(file) for file in files], None, predictor.plans_manager, configuration, predictor.dataset_json
    )[0]
    return predictor.network.eval(), centred(torch.as_tensor(data)[None].float(), configuration.patch_size)


def centred(x: Tensor, patch: list[int]) -> Tensor:
    """(B, C, *spatial) padded with zeros or cut to the patch, the same on both sides."""
    for axis, edge in enumerate(patch, start=2):
        missing = edge - x.shape[axis]
        pads = [0, 0] * (x.dim() - 1 - axis) + [missing // 2, missing - missing // 2]
        x = torch.nn.functional.pad(x, pads)
    return x.contiguous()


def measure_network(name: str, network: Any, x: Tensor, edge: int, rounds: int, **facts: Any) -> Timing:
    """Decode a grid of `edge` points along every axis over the image x (1, C, *patch) both ways, in turns."""
    patch = tuple(x.shape[2:])
    grid, found = PointGrid.resized(patch, (edge,) * len(patch)), {}
    with torch.no_grad():
        context = network.encode(x)

    def decoding(mode: str) -> Callable[[], None]:
        def run() -> None:
            found[mode] = network.decode_points(context, x, grid, mode)

        return run

    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds = measure.in_turns({mode: decoding(mode) for mode in MODES}, rounds, clock)
    classes = {mode: decoded.logits.argmax(0) for mode, decoded in found.items()}
    return Timing(
        name,
        patch=patch,
        edge=edge,
        seconds=seconds,
        evaluated=float(found["adaptive"].evaluated.float().mean()),
        foreground=float((classes["dense"] > 0).float().mean()),
        different=int((classes["dense"] != classes["adaptive"]).sum()),
        **facts,
    )


def timings(folder: Path, threads: int) -> list[Timing]:
    """Both trained networks."""
    found = []
    for name, recipe in RECIPES.items():
        model, dice = trained(folder, recipe, threads)
        network, x = case_of(folder, model)
        found.append(measure_network(name, network, x, EDGE, recipe.rounds, dice=dice, target=recipe.target))
    return found


def toy() -> list[Timing]:
    """A network that was not trained: logits of a ball beside its own."""
    import ossnet_volume

    network = ossnet_volume.predictor().network.eval()
    x = centred(torch.from_numpy(ossnet_volume.image())[None, None], ossnet_volume.PATCH)
    return [measure_network("toy", network, x, 40, 1, dice=None, target=1.0)]
