"""Our own embedding: what is learned, going on after an interruption, and settings that fit the volumes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_volumes import made_case, made_pool, smooth_volume

from nnunet_ext.errors import UserError
from nnunet_ext.pretraining import embedding_training as training
from nnunet_ext.pretraining.cases import Pool
from nnunet_ext.pretraining.embedding_file import new_network, read_embedding_file
from nnunet_ext.pretraining.embedding_grids import canonical_grid
from nnunet_ext.pretraining.embedding_maps import Embedder
from nnunet_ext.pretraining.embedding_quality import Quality, check_quality
from nnunet_ext.pretraining.embedding_settings import Settings, crop_size, isotropic_spacing, settings_for
from nnunet_ext.pretraining.embedding_training import learning_rate, split, train
from nnunet_ext.pretraining.embedding_views import Volume, draw_grids, draw_pair
from nnunet_ext.pretraining.frames import Frame

SIZE = (36, 40, 36)
SMALL = {"features": (4, 8, 8, 8), "fine": 8, "coarse": 8}


@pytest.fixture(scope="module")
def pool() -> Pool:
    frame = Frame.regular(SIZE, (1.0, 1.0, 1.0), (10.0, 20.0, 30.0))
    return made_pool([made_case(f"case_{i}", smooth_volume(i, SIZE), frame) for i in range(3)])


def test_training_learns_to_find_places(pool: Pool, tmp_path: Path) -> None:
    settings = settings_for(pool, **SMALL, temperature=0.2, learning_rate=0.05)
    cpu = torch.device("cpu")
    fresh = Embedder(new_network(settings).eval(), settings.spacing, False, cpu)
    before = check_quality(fresh, pool, pool.cases, held_out=False)
    trained = train(pool, tmp_path / "e.pth", 20, settings=settings, batch=1, progress=False, workers=1)
    losses = np.array(trained.losses)
    assert len(losses) == 20
    assert losses[1:].mean() < 0.9 * losses[0]
    quality = trained.quality
    assert before.poor
    assert quality.median_mm < 0.5 * before.median_mm
    assert quality.median_mm < 0.3 * quality.chance_mm
    assert not quality.held_out  # three are too few
    assert quality.points >= 195
    file = read_embedding_file(tmp_path / "e.pth")
    assert file.quality == quality.as_dict()
    assert (file.step, file.cases, file.held_out) == (20, ("case_0", "case_1", "case_2"), ())
    assert torch.load(tmp_path / "e.pth", weights_only=True)["settings"]["crop"] == [24, 32, 24]


def test_quality_warns() -> None:
    good = Quality(200, 5.9, 0.9, 8.0, 24.0, 2.0, 0.8, True)
    assert "Warning" not in good.summary()
    assert "200 points of warped held-out volumes: median error 5.9 mm, 90% within 10 mm" in good.summary()
    assert "more than three cells" in replace(good, median_mm=6.1).summary()
    assert "no better than leaving" in replace(good, unmoved_mm=5.0).summary()


def test_an_interrupted_training_goes_on_exactly(pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(settings_for(pool, **SMALL), crop=(16, 16, 16))

    def run(name: str, **changes: Any) -> training.Trained:
        return train(pool, tmp_path / name, 4, settings=settings, batch=1, saved_every=2, progress=False, **changes)

    run("whole.pth")
    step: Callable[..., float] = training._Run.step

    def stopped(self: Any, number: int, *rest: Any) -> float:
        if number == 3:
            raise KeyboardInterrupt
        return step(self, number, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(training._Run, "step", stopped)
        with pytest.raises(KeyboardInterrupt):
            run("parts.pth")
    assert read_embedding_file(tmp_path / "parts.pth").step == 2
    with pytest.raises(UserError, match="is there already"):
        run("parts.pth")
    with pytest.raises(UserError, match="trained with another seed"):
        run("parts.pth", seed=1, proceed=True)
    assert len(run("parts.pth", proceed=True).losses) == 2
    whole, parts = (read_embedding_file(tmp_path / name).weights for name in ("whole.pth", "parts.pth"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    finished = (tmp_path / "parts.pth").read_bytes()
    again = run("parts.pth", proceed=True)
    assert again.losses == ()
    assert again.quality.as_dict() == read_embedding_file(tmp_path / "parts.pth").quality
    assert (tmp_path / "parts.pth").read_bytes() == finished  # or all that was matched by it would be matched again


def test_a_loss_that_is_no_number_ends_the_training(pool: Pool, tmp_path: Path) -> None:
    settings = replace(settings_for(pool, **SMALL), crop=(16, 16, 16))
    broken = made_case("broken", np.full_like(pool.cases[0].image(), np.nan), pool.cases[0].frame)
    with pytest.raises(UserError, match="loss is nan in step 1: look for images"):
        train(replace(pool, cases=(broken,)), tmp_path / "e.pth", 2, settings=settings, batch=1, progress=False)
    assert not (tmp_path / "e.pth").exists()


def test_views_overlap_and_know_their_places(pool: Pool) -> None:
    settings = settings_for(pool)
    volume = Volume.of(pool.cases[0])
    grid = canonical_grid(volume.case.frame, settings.spacing)
    shared = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        first, second = draw_grids(grid, volume.case.frame, volume.case.body, settings, rng)
        assert all(0.79 < edge < 1.21 for frame in (first, second) for edge in frame.spacing)
        shared.append(bool(second.holds(first.to_lps((np.asarray(first.shape) - 1) / 2))))
    assert np.mean(shared) > 0.9  # the first one's centre is in the second one
    view, _ = draw_pair(volume, settings, ((2, 2, 2), (8, 8, 8)), np.random.default_rng(0))
    assert view.image.shape == (1, *settings.crop)
    assert view.fine.points.shape == (np.prod(settings.crop) // 8, 3)
    assert view.coarse.points.shape == (np.prod(settings.crop) // 512, 3)
    assert 0.5 < float(view.fine.valid.float().mean()) <= 1


def test_constant_images_are_no_problem() -> None:
    frame = Frame.regular((20, 20, 20), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    case = made_case("flat", np.ones((1, 20, 20, 20), np.float32), frame)
    view, _ = draw_pair(Volume.of(case), Settings(1, 1.0, (16, 16, 16)), ((2,) * 3, (8,) * 3), np.random.default_rng(0))
    assert bool(view.image.isfinite().all())


@pytest.mark.parametrize(
    ("spacing", "extent", "ct", "expected"),
    [
        ((2.5, 0.8, 0.8), (400, 350, 350), True, 2.0),
        ((1.0, 1.0, 1.0), (150, 200, 150), False, 2.0),
        ((10.0, 1.5, 1.5), (320, 300, 300), False, 6.0),
        ((1.0, 1.0, 1.0), (35, 50, 35), False, 1.0),  # hippocampus
        ((3.0, 0.6, 0.6), (60, 190, 190), False, 1.25),  # prostate
    ],
)
def test_spacing_fits_the_volumes(
    spacing: tuple[float, ...], extent: tuple[float, ...], ct: bool, expected: float
) -> None:
    assert isotropic_spacing(spacing, extent, ct) == expected


def test_crops_fit_the_volumes() -> None:
    assert crop_size((200, 175, 175)) == (64, 64, 64)
    assert crop_size((100, 175, 175)) == (32, 96, 96)
    assert crop_size((35, 50, 35)) == (24, 40, 24)
    assert crop_size((9, 100, 60)) == (16, 72, 48)


def test_split_and_learning_rate(pool: Pool) -> None:
    many = [replace(pool.cases[0], name=str(i)) for i in range(30)]
    training_cases, held_out = split(many, 0)
    assert (len(training_cases), len(held_out)) == (27, 3)
    assert sorted(int(case.name) for case in training_cases + held_out) == list(range(30))
    assert learning_rate(0, 20_000, 0.02) == pytest.approx(2e-5)
    assert learning_rate(500, 20_000, 0.02) == learning_rate(19_999, 20_000, 0.02) == pytest.approx(0.02)
