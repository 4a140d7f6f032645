"""The demo: its folder, its data, its commands, its table and pictures; and, once, the whole way."""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from nnunet_ext.demo import add_arguments, plan, steps
from nnunet_ext.demo.folder import DATA, DATASET, MARKER, TASK, choose_cases, make_download, prepare_folder
from nnunet_ext.demo.pictures import cut, draw_case, draw_overlay, draw_training_curve, most_labelled
from nnunet_ext.demo.results import case_dice, dice_table, lowest_median_highest, structures
from nnunet_ext.demo.steps import Command, Step, run_step
from nnunet_ext.demo.training_log import read_epochs
from nnunet_ext.errors import UserError

LOG = """
2026-01-01 00:00:00.000000: Epoch 0
2026-01-01 00:00:01.000000: train_loss 0.6529
2026-01-01 00:00:01.000000: val_loss -0.517
2026-01-01 00:00:01.000000: Pseudo dice [np.float32(0.5), np.float32(0.25)]
2026-01-01 00:00:02.000000: Epoch 1
2026-01-01 00:00:03.000000: train_loss 1e-05
2026-01-01 00:00:03.000000: val_loss nan
2026-01-01 00:00:03.000000: Pseudo dice [np.float32(nan), 0.75]
2026-01-01 00:00:04.000000: Epoch 2
2026-01-01 00:00:05.000000: train_loss 0.1
"""


def summary(dice: dict[str, tuple[float, float]]) -> dict[str, Any]:
    """What nnU-Net writes, for the Dice of two labels in some cases."""
    cases = [
        {
            "reference_file": f"/somewhere/{name}.nii.gz",
            "metrics": {str(label): {"Dice": value} for label, value in zip((1, 2), values, strict=True)},
        }
        for name, values in dice.items()
    ]
    means = np.nanmean(list(dice.values()), axis=0)
    return {
        "metric_per_case": cases,
        "mean": {"1": {"Dice": means[0]}, "2": {"Dice": means[1]}},
        "foreground_mean": {"Dice": float(means.mean())},
    }


def _loaded(path: Path) -> Any:
    return nibabel.load(path)


# ------------------------------------------------------------------------------------------------------- bundled data


def test_bundled_data_is_whole_small_and_licensed() -> None:
    """Every image has its label and geometry, the held-back cases are kept apart, licence and attribution are there."""
    source = DATA / DATASET
    names = {tag: sorted(path.name[:-7] for path in (source / f"labels{tag}").glob("*.nii.gz")) for tag in ("Tr", "Ts")}
    assert (len(names["Tr"]), len(names["Ts"])) == (24, 8)
    assert not set(names["Tr"]) & set(names["Ts"])
    for tag, cases in names.items():
        assert sorted(path.name[:-12] for path in (source / f"images{tag}").glob("*.nii.gz")) == cases
        for case in cases:
            image: Any = nibabel.load(source / f"images{tag}" / f"{case}_0000.nii.gz")
            label: Any = nibabel.load(source / f"labels{tag}" / f"{case}.nii.gz")
            assert image.shape == label.shape
            assert np.array_equal(image.affine, label.affine)
            assert np.unique(label.dataobj).tolist() == [0, 1, 2]
    assert sum(path.stat().st_size for path in source.rglob("*")) < 4e6
    readme = (source / "README.md").read_text()
    for words in (
        "CC-BY-SA 4.0",
        "creativecommons.org/licenses/by-sa/4.0",
        "1902.09063",
        "Medical Segmentation Decathlon",
    ):
        assert words in readme


def test_bundled_split_is_the_one_that_nnunet_makes() -> None:
    crossval = pytest.importorskip("nnunetv2.utilities.crossval_split")
    training, held_back = choose_cases(quick=False)
    assert not set(training) & set(held_back)
    assert json.loads((DATA / DATASET / "splits_final.json").read_text()) == [
        {part: [str(case) for case in cases] for part, cases in split.items()}
        for split in crossval.generate_crossval_split(training)
    ]


@pytest.mark.parametrize(("quick", "counts"), [(False, (24, 8)), (True, (10, 2))])
def test_download_is_laid_out_as_the_decathlons(tmp_path: Path, quick: bool, counts: tuple[int, int]) -> None:
    assert make_download(tmp_path, quick) == counts
    task, bundled = tmp_path / "download" / TASK, DATA / DATASET
    places = {"imagesTr": task, "labelsTr": task, "imagesTs": task, "labelsTs": tmp_path}
    for (folder, place), count in zip(places.items(), np.repeat(counts, 2), strict=True):
        files = list((place / ("references" if folder == "labelsTs" else folder)).iterdir())
        assert len(files) == count
        for file in files:
            ending = "_0000.nii.gz" if folder.startswith("images") else ".nii.gz"
            assert file.read_bytes() == (bundled / folder / file.name.replace(".nii.gz", ending)).read_bytes()
    description = json.loads((task / "dataset.json").read_text())
    assert (description["numTraining"], description["numTest"]) == counts
    assert description["labels"] == {"0": "background", "1": "Anterior", "2": "Posterior"}
    assert (task / description["training"][0]["label"]).is_file()
    assert (task / "README.md").is_file()  # licence and attribution go with the data


# ------------------------------------------------------------------------------------------------------------- folder


def test_folder_of_somebody_else_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "nnUNet_raw").mkdir()
    (tmp_path / "nnUNet_raw" / "precious.txt").write_text("precious")
    with pytest.raises(UserError, match=r"not empty.*-o FOLDER"):
        prepare_folder(tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["nnUNet_raw", "precious.txt"]


def test_earlier_demo_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    folder = prepare_folder(tmp_path / "new" / "folder")
    assert (folder / MARKER).is_file()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept.txt").write_text("")
    (folder / "nnUNet_results").rmdir()
    (folder / "nnUNet_results").symlink_to(outside)
    for name in ("nnUNet_raw/old.txt", "dice.txt", "notes.txt"):
        (folder / name).write_text("")
    prepare_folder(folder)
    assert (folder / "notes.txt").is_file()
    assert (outside / "kept.txt").is_file()
    assert not (folder / "nnUNet_results").is_symlink()
    assert not list((folder / "nnUNet_raw").iterdir())
    assert not (folder / "dice.txt").exists()


def test_folder_that_is_a_file_or_under_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="not a folder"):
        prepare_folder(tmp_path / "file")
    with pytest.raises(UserError, match="cannot write"):
        prepare_folder(tmp_path / "file" / "below")


# ----------------------------------------------------------------------------------------------------------- commands


def test_commands_are_stock_commands_with_names_that_exist(tmp_path: Path) -> None:
    """Only nnU-Net's commands between conversion and submission; trainer and planner parse; labels are unique."""
    from nnunet_ext.names import parse_planner, parse_trainer

    for settings in (plan.FULL, plan.QUICK):
        assert parse_trainer(settings.trainer) is not None
        made = plan.make_steps(settings, tmp_path, "cpu")
        commands = [command for step in made for command in step.commands]
        own = [command.arguments[:3] for command in commands if not command.arguments[0].startswith("nnUNetv2_")]
        assert own == [("nnunet-ext", "convert", "msd"), ("nnunet-ext", "submit", "msd")]
        assert len({command.label for command in commands}) == len(commands)
        assert sum("nnUNetv2_train" in command.arguments for command in commands) == 2
    assert parse_planner(plan.PLANNER) is not None
    assert plan.PLANNER.replace("Planner", "Plans") == plan.PLANS


def test_script_is_valid_shell_and_sets_every_variable(tmp_path: Path) -> None:
    folder = tmp_path / "with space"
    folder.mkdir()
    values = plan.variables(folder, cores=2)
    names = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    assert [values[name] for name in names] == [str(folder / name) for name in names]
    exports = plan.export_lines(values, path="/nowhere")
    show = Step("show", (Command("show", (sys.executable, "-c", "import os; print(os.environ['nnUNet_raw'])")),))
    (folder / "commands.sh").write_text(plan.script(exports, [show]))
    shown = subprocess.run(["sh", str(folder / "commands.sh")], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == str(folder / "nnUNet_raw")
    assert exports[0].startswith("export PATH=")
    assert len(plan.export_lines(values, path=steps.scripts_folder())) == len(exports) - 1
    whole = plan.script(exports, plan.make_steps(plan.FULL, folder, "cpu"))
    subprocess.run(["sh", "-n"], input=whole, text=True, check=True)


def python(label: str, code: str) -> Command:
    """A command that runs Python code."""
    return Command(label, (sys.executable, "-c", code))


def test_commands_of_a_step_run_at_the_same_time_with_logs(tmp_path: Path) -> None:
    """Each waits for a file that the other writes."""
    code = (
        "import os, pathlib, time; pathlib.Path('{folder}/{mine}').touch()\n"
        "while not pathlib.Path('{folder}/{other}').exists(): time.sleep(0.02)\nprint('done', os.environ['WORD'])"
    )
    both = [python(a, code.format(folder=tmp_path, mine=a, other=b)) for a, b in (("a", "b"), ("b", "a"))]
    run_step(Step("both", tuple(both)), {**os.environ, "WORD": "twice"}, tmp_path)
    assert [(tmp_path / f"{name}.log").read_text().strip() for name in "ab"] == ["done twice"] * 2


def test_failing_command_is_told_with_its_log_and_stops_the_others(tmp_path: Path) -> None:
    failing = python("failing", "print('first'); print('the reason'); raise SystemExit(3)")
    sleeping = python(
        "sleeping", f"import os, time; open(r'{tmp_path / 'pid'}', 'w').write(str(os.getpid())); time.sleep(60)"
    )
    start = time.monotonic()
    with pytest.raises(UserError) as error:
        run_step(Step("both", (sleeping, failing)), os.environ, tmp_path)
    assert time.monotonic() - start < 30
    text = str(error.value)
    for words in ("exit code 3", sys.executable, "the reason", str(tmp_path / "failing.log")):
        assert words in text
    if (tmp_path / "pid").is_file() and os.name == "posix":
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / "pid").read_text()), 0)


def test_missing_command_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nnUNetv2_nothing.*install"):
        run_step(Step("none", (Command("none", ("nnUNetv2_nothing",)),)), {"PATH": ""}, tmp_path)


def test_only_the_last_lines_of_a_log_are_shown(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("\n".join(f"line {number}" for number in range(100)))
    text = steps.failure(Command("x", ("nnUNetv2_train", "4")), 1, log)
    assert "line 99" in text
    assert "line 50" not in text


# ------------------------------------------------------------------------------------------------ table, log, picture


def test_epochs_are_read_from_a_log_that_ends_anywhere() -> None:
    epochs = read_epochs(LOG)
    assert [epoch.train_loss for epoch in epochs] == [0.6529, 1e-05]
    assert epochs[0].val_loss == -0.517
    assert math.isnan(epochs[1].val_loss)
    assert [epoch.mean_dice for epoch in epochs] == [0.375, 0.75]
    assert read_epochs("") == []


def test_table_has_structures_folds_and_ensemble() -> None:
    names = structures(DATA / DATASET / "dataset.json")
    assert names == {"1": "Anterior", "2": "Posterior"}
    low, high = summary({"a": (0.5, 0.7), "b": (0.7, 0.9)}), summary({"a": (0.9, 0.8), "b": (0.9, 0.8)})
    rows = [line.split() for line in dice_table({"fold": low, "ensemble": high}, names).splitlines()]
    rows = [row for row in rows if not set(row[0]) <= {"-"}]
    assert rows == [
        ["fold", "ensemble"],
        ["Anterior", "0.600", "0.900"],
        ["Posterior", "0.800", "0.800"],
        ["Mean", "0.700", "0.850"],
    ]


def test_cases_are_chosen_by_their_dice_and_missing_ones_come_last() -> None:
    dice = case_dice(summary({"a": (0.5, 0.7), "b": (math.nan, math.nan), "c": (0.1, 0.2), "d": (0.9, math.nan)}))
    assert list(dice) == ["c", "a", "d", "b"]
    assert dice["a"] == pytest.approx(0.6)
    assert dice["d"] == 0.9
    assert lowest_median_highest({"c": 0.1, "a": 0.6, "d": 0.9}) == ["c", "a", "d"]
    assert lowest_median_highest({"c": 0.1}) == ["c"]


def test_planes_are_cut_and_turned_as_radiologists_expect() -> None:
    """RAS volume: right is on the left of coronal and axial planes, front is right in sagittal ones, head is up."""
    volume = np.zeros((3, 4, 5))
    volume[2, 3, 4] = 1  # right, front, top
    sagittal, coronal, axial = (cut(volume, axis, position) for axis, position in enumerate((2, 3, 4)))
    assert sagittal.shape == (5, 4)
    assert sagittal[4, 3] == 1
    assert coronal.shape == (5, 3)
    assert coronal[4, 0] == 1
    assert axial.shape == (4, 3)
    assert axial[3, 0] == 1
    labels = np.zeros((3, 4, 5), dtype=np.uint8)
    assert [most_labelled(labels, axis) for axis in range(3)] == [1, 2, 2]
    labels[0, 1, 2:4] = 2
    labels[0, 2, 3] = 1
    assert [most_labelled(labels, axis) for axis in range(3)] == [0, 1, 3]


def test_case_is_drawn_with_the_colours_of_its_structures() -> None:
    figure = Figure(figsize=(6, 6))
    image = np.random.default_rng(0).random((20, 24, 16))
    reference = np.zeros(image.shape, dtype=np.uint8)
    reference[5:12, 5:12, 5:12], reference[5:12, 12:18, 5:12] = 1, 2
    part = figure.add_subfigure(figure.add_gridspec(1, 1)[0])
    draw_case(part, image, reference, np.zeros_like(reference), (1.0, 1.0, 2.0), [1, 2])
    panels = np.array(part.axes).reshape(3, 3)
    assert [axes.get_title() for axes in panels[0]] == ["image", "reference", "prediction"]
    drawn = np.vectorize(lambda axes: len(axes.collections))(panels)
    assert drawn[:, 0].tolist() == [0, 0, 0]
    assert (drawn[:, 1] >= 2).all()  # fill and line of at least one structure
    assert drawn[0, 2] == 2  # nothing predicted: the outlines of the reference only
    left, right, bottom, top = panels[0, 0].images[0].get_extent()
    assert (right - left, top - bottom) == (24.0, 32.0)  # mm


def test_overlay_and_curve_are_written(tmp_path: Path) -> None:
    source = DATA / DATASET
    _, held_back = choose_cases(quick=True)
    scores = summary({case: (0.5 + number / 4, 0.5) for number, case in enumerate(held_back)})
    names = structures(source / "dataset.json")
    images, references = source / "imagesTs", source / "labelsTs"
    draw_overlay(tmp_path / "overlay.png", images, references, references, scores, names, "title")
    (tmp_path / "log").write_text(LOG)
    draw_training_curve(tmp_path / "curve.png", {"fold 0": tmp_path / "log", "fold 1": tmp_path / "log"}, 20, "title")
    overlay, curve = (imread(tmp_path / name)[..., :3] for name in ("overlay.png", "curve.png"))
    assert overlay.shape[1] > 1000
    orange = (np.abs(overlay - np.array([1.0, 0.624, 0.11])) < 0.05).all(axis=-1)
    assert orange.sum() > 500  # Anterior's outlines
    assert (curve.std(axis=(0, 1)) > 0.02).all()


# ------------------------------------------------------------------------------------------------------------ all of it


def test_options() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    given = parser.parse_args(["--quick", "-o", "there", "-device", "cpu"])
    assert (given.quick, given.folder, given.device) == (True, Path("there"), "cpu")
    assert not parser.parse_args([]).quick


@pytest.mark.timeout(600)
@pytest.mark.e2e
def test_demo_goes_the_whole_way(tmp_path: Path) -> None:
    """Console commands, from the download to the picture and the server's folder."""
    command = [sys.executable, "-m", "nnunet_ext", "demo", "--quick", "-o", str(tmp_path / "demo"), "-device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "demo"
    for name in ("fold_0", "fold_1", "ensemble"):
        assert len(list((folder / "predictions" / name).glob("*.nii.gz"))) == 2
    for fold in (0, 1):
        assert (
            folder / "nnUNet_results" / DATASET / plan.QUICK.model / f"fold_{fold}" / "checkpoint_final.pth"
        ).is_file()
    said = ("export nnUNet_raw=", "nnUNetv2_train 4 3d_fullres 0", "Anterior", "Posterior", "Mean", "ensemble")
    for words in (*said, "refuses it without the other nine"):
        assert words in done.stdout
    assert "Posterior" in (folder / "dice.txt").read_text()
    for name in ("overlay.png", "training_curve.png"):
        assert (folder / name).stat().st_size > 10_000
    raw = folder / "nnUNet_raw" / DATASET
    assert len(json.loads((raw / "conversion.json").read_text())["cases"]) == 12
    predicted = sorted((folder / "predictions" / "ensemble").glob("*.nii.gz"))
    for path in predicted:
        sent, seen = (_loaded(file) for file in (folder / "submission" / TASK / path.name, path))
        assert np.array_equal(sent.dataobj, seen.dataobj)
        assert np.array_equal(sent.affine, seen.affine)
    assert (folder / "submission.zip").is_file()
    assert len(read_epochs((folder / "logs" / "train_fold_1.log").read_text())) == plan.QUICK.epochs


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_terminated_demo_ends_its_commands(tmp_path: Path) -> None:
    """A job scheduler's SIGTERM reaches the trainings, too."""
    inner = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = (
        "import os, sys; from pathlib import Path; from nnunet_ext.demo import main, steps\n"
        f"step = steps.Step('sleep', (steps.Command('sleep', (sys.executable, '-c', {inner!r})),))\n"
        f"with main.termination_as_exit(): steps.run_step(step, os.environ, Path({str(tmp_path)!r}))"
    )
    demo = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while not ((tmp_path / "pid").is_file() and (tmp_path / "pid").read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    demo.send_signal(signal.SIGTERM)
    assert demo.wait(timeout=30) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
