"""`nnunet-ext redundancy`: the number, the networks that it works for, and the command on a trained model."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import kd_networks
import kd_step
import numpy as np
import pytest
import support
import torch
from torch import Tensor

from nnunet_ext import lookup
from nnunet_ext.cli import main
from nnunet_ext.inference import redundancy
from nnunet_ext.inference.patches import central_patches, load_predictor, padded_to
from nnunet_ext.inference.redundancy import ChannelGram, measure

Plans = Callable[[str], dict[str, Any]]


def correlation(rows: np.ndarray) -> float:
    """Mean absolute correlation of (C, N), by numpy."""
    found = np.corrcoef(rows)
    return float(np.abs(found[np.triu_indices(len(rows), 1)]).mean())


def of(*pieces: Tensor) -> float | None:
    gram = ChannelGram()
    for piece in pieces:
        gram.add(piece)
    return gram.redundancy()


# ----------------------------------------------------------------------------------------------------------- the number


@pytest.mark.parametrize("shape", [(2, 5, 7, 9), (1, 4, 5, 6, 7)])
def test_it_is_numpys_over_batch_pieces_and_chunks(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redundancy, "CHUNK", 50)
    f = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 100
    f[:, 1] += f[:, 0]
    g = f.flip(1).transpose(-1, -2)
    rows = torch.cat([x.movedim(1, 0).flatten(1) for x in (f, g)], 1).double().numpy()
    assert of(f, g) == pytest.approx(correlation(rows), abs=1e-9)


def test_copies_have_1_whatever_scale_and_sign() -> None:
    f = torch.randn(1, 1, 8, 8)
    assert of(torch.cat([f, -3 * f, f + 5], 1)) == pytest.approx(1)


def test_channels_that_do_not_vary_do_not_count() -> None:
    f = torch.randn(1, 3, 8, 8)
    constant = torch.tensor([0.0, 7.0])[None, :, None, None].expand(1, 2, 8, 8)
    assert of(torch.cat([f, constant], 1)) == pytest.approx(of(f))
    assert of(torch.cat([f[:, :1], constant], 1)) is None
    assert of(f[:, :1]) is None


# --------------------------------------------------------------------------------------------------------- the networks


@pytest.mark.parametrize("name", ["u_net", "unetrpp", "foreign"])
def test_every_network_with_feature_points(name: str) -> None:
    network = kd_step.StatedForeign() if name == "foreign" else getattr(kd_networks, name)()
    size = {"u_net": (16, 24), "unetrpp": (16, 32, 32), "foreign": (8, 12)}[name]
    cases: Mapping[str, list[Tensor]] = {case: [torch.randn(1, 1, *size) for _ in range(2)] for case in "ab"}
    found = measure(network, cases)
    assert found[0].place.part == "encoder"
    assert found[-1].place.part == "last"
    for one in found:
        assert list(one.cases) == ["a", "b"]
        assert one.mean is not None
        assert 0 < one.mean <= 1
        assert one.channels > 1
        assert one.positions >= 8
    assert not any(module._forward_hooks for module in network.modules())
    assert not network.training


def test_views_of_sshunet_are_one_map() -> None:
    network = kd_networks.sshunet()
    x = torch.randn(1, 1, 16, 16, 16)
    means = []
    for execution in ("batched", "sequential"):
        network.view_execution = execution
        means.append([one.mean for one in measure(network, {"case": [x]})])
    assert means[0] == pytest.approx(means[1], abs=1e-4)


def test_hooks_are_gone_after_an_error() -> None:
    network = kd_networks.u_net()
    with pytest.raises(RuntimeError):
        measure(network, {"case": [torch.randn(1, 3, 16, 24)]})
    assert not any(module._forward_hooks for module in network.modules())


# ---------------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def model(workspace: support.Workspace, planned: Plans) -> Path:
    """The folder of a model trained with KD for an iteration."""
    trainer = support.build_trainer(
        lookup.find("trainer", "KDUNetTrainer_1its_1epochs"),  # type: ignore[arg-type]
        workspace,
        planned("plain"),
    )
    trainer.run_training()
    return Path(trainer.output_folder).parent


@pytest.fixture
def images(workspace: support.Workspace) -> Path:
    return workspace.raw / "Dataset901_plain" / "imagesTr"


def test_a_table_json_and_a_picture(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "report" / "here"
    assert main(["redundancy", str(model), "-i", str(images), "-o", str(output)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"encoder +0 +encoder\.stages\.1 +8 +\d+ +0\.\d{3} +0\.\d{3} to 0\.\d{3}\n", out)
    assert "4 image(s), at most 3 central patches each" in out
    content = json.loads((output / "redundancy.json").read_text())
    assert (content["fold"], content["images"], content["patches"]) == ("0", 4, 3)
    assert [point["part"] for point in content["points"]][-1] == "last"
    assert list(content["points"][0]["cases"]) == list(support.CASES)
    assert (output / "redundancy.txt").read_text().splitlines()[0].startswith("part")
    assert (output / "redundancy.png").read_bytes().startswith(b"\x89PNG")


def test_json_alone_is_printed_and_plain_trainers_work(
    model: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = model / "fold_0" / "checkpoint_final.pth"
    torch.save({**torch.load(path, weights_only=False), "trainer_name": "nnUNetTrainer"}, path)
    assert main(["redundancy", str(model), "-i", str(images), "-f", "0", "--json", "--patches", "1"]) == 0
    points = json.loads(capsys.readouterr().out)["points"]
    assert all(0 <= point["mean"] <= 1 for point in points)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nowhere", "-i", "IMAGES"], r"nowhere is no model folder: it has no plans\.json and dataset\.json; give"),
        (["MODEL", "-i", "nowhere"], "nowhere: there is no such folder"),
        (["MODEL", "-i", "MODEL"], r"has no images of the model's kind, such as CASE_0000\.nii\.gz"),
        (["MODEL", "-i", "IMAGES", "-f", "3"], r"has no fold 3 with checkpoint_final\.pth; there is: 0"),
        (["MODEL", "-i", "IMAGES", "-chk", "x.pth"], r"has no fold with x\.pth; there is: none"),
        (["MODEL", "-i", "IMAGES", "--patches", "0"], "--patches must be at least 1; got 0"),
    ],
)
def test_what_cannot_be_used_is_said_in_a_sentence(
    model: Path, images: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    places = {"MODEL": str(model), "IMAGES": str(images)}
    assert main(["redundancy", *(places.get(argument, argument) for argument in arguments)]) == 1
    error = capsys.readouterr().err
    assert re.search(rf"nnunet-ext: .*{text}", error)
    assert "Traceback" not in error


def test_a_case_without_a_channel_is_said(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(images, tmp_path / "images")
    shutil.copy(images / "case_0_0000.nii.gz", tmp_path / "images" / "case_0_0001.nii.gz")
    assert main(["redundancy", str(model), "-i", str(tmp_path / "images")]) == 1
    assert "case_0 has 2 channel(s), and the model needs 1" in capsys.readouterr().err


def test_weights_that_do_not_fit_are_said(model: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = model / "fold_0" / "checkpoint_final.pth"
    torch.save({**torch.load(path, weights_only=False), "trainer_name": "nnUNetTrainerOfSomebody"}, path)
    assert main(["redundancy", str(model), "-i", str(images)]) == 1
    assert "cannot load" in (error := capsys.readouterr().err)
    assert "nnUNetTrainerOfSomebody" in error


def test_a_network_without_points_is_told_how(
    model: Path, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    load = nnUNetPredictor.initialize_from_trained_model_folder

    def foreign(self: Any, *given: Any) -> None:
        load(self, *given)
        self.network = kd_step.Foreign()

    monkeypatch.setattr(nnUNetPredictor, "initialize_from_trained_model_folder", foreign)
    assert main(["redundancy", str(model), "-i", str(images)]) == 1
    assert "features of Foreign: give the network a method `kd_points(self)" in capsys.readouterr().err


def test_patches_are_nnunets_windows_nearest_to_the_centre(model: Path) -> None:
    predictor, fold = load_predictor(model, None, "checkpoint_final.pth", torch.device("cpu"))
    assert fold == "0"
    patch = predictor.configuration_manager.patch_size
    data = torch.zeros(1, *(2 * edge for edge in patch))
    middle = tuple(slice(edge // 2, edge // 2 + edge) for edge in patch)
    data[0][middle] = 1
    nearest, *others = central_patches(predictor, data, 4)
    assert nearest.shape == (1, 1, *patch)
    assert nearest.min() == 1
    assert all(0 < other.mean() < 1 for other in others)
    assert len(others) == 3
    (small,) = central_patches(predictor, torch.ones(1, 4, 5, 6), 4)
    assert small.shape == (1, 1, *patch)
    assert small.sum() == 4 * 5 * 6


def test_slices_of_two_dimensional_configurations() -> None:
    class Predictor:
        class configuration_manager:  # noqa: N801
            patch_size = (4, 4)

        def _internal_get_sliding_window_slicers(self, size: tuple[int, ...]) -> list[Any]:
            return [(slice(None), d, slice(0, 4), slice(x, x + 4)) for d in range(size[0]) for x in (0, 2, 4)]

    data = torch.arange(5.0)[None, :, None, None].expand(1, 5, 4, 8)
    found = central_patches(Predictor(), data, 3)
    assert [patch.shape for patch in found] == 3 * [(1, 1, 4, 4)]
    assert [float(patch.mean()) for patch in found] == [2, 1, 3]


def test_padding_is_on_both_sides_and_of_the_last_axes_only() -> None:
    padded = padded_to(torch.ones(1, 2, 3, 4), (8, 3))
    assert padded.shape == (1, 2, 8, 4)
    assert padded[0, 0, :, 0].tolist() == [0, 0, 1, 1, 1, 0, 0, 0]
