"""Whole cases embedded: the same places however they are stored, in tiles as at once, raw CT for published weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
import torch
from made_volumes import made_case, made_pool, smooth_volume, stored_otherwise
from torch import Tensor
from torch.nn import functional as F

from nnunet_ext.architectures.anatomical_embedding import Embedding
from nnunet_ext.errors import UserError
from nnunet_ext.pretraining.embedding_file import EmbeddingFile, new_network
from nnunet_ext.pretraining.embedding_maps import Embedder, embed_volume, load_embedder
from nnunet_ext.pretraining.embedding_settings import Settings
from nnunet_ext.pretraining.frames import Frame
from nnunet_ext.pretraining.matching import match

CPU = torch.device("cpu")
SETTINGS = Settings(1, 2.0, (16, 16, 16), features=(4, 8, 8, 8), fine=8, coarse=8)
FRAME = Frame.regular((20, 40, 40), (2.0, 1.0, 1.0), (-7.0, 30.0, 500.0))


class Pooled:
    """Stands for the published network: mean and spread of each cell's voxels."""

    fine_stride, coarse_stride = (2, 2, 2), (4, 16, 16)
    seen: tuple[int, ...] = ()

    def __call__(self, x: Tensor) -> Embedding:
        self.seen = tuple(x.shape)
        self.lowest, self.highest = float(x.min()), float(x.max())
        return Embedding(*(self._pooled(x, stride) for stride in (self.fine_stride, self.coarse_stride)))

    @staticmethod
    def _pooled(x: Tensor, stride: tuple[int, int, int]) -> Tensor:
        mean, square = F.avg_pool3d(x, stride), F.avg_pool3d(x * x, stride)
        return F.normalize(torch.cat([mean, (square - mean * mean).clamp(min=0).sqrt()], 1), dim=1)


def own_embedder() -> Embedder:
    return Embedder(new_network(SETTINGS).eval(), SETTINGS.spacing, False, CPU, 1)


@pytest.mark.parametrize(("axes", "mirrored"), [((0, 1, 2), (1, 2)), ((2, 0, 1), (0,)), ((2, 1, 0), (0, 1, 2))])
def test_another_orientation_gives_the_same_matches(axes: tuple[int, ...], mirrored: tuple[int, ...]) -> None:
    embedder = own_embedder()
    image = smooth_volume(0, FRAME.shape)
    case, moved = made_case("a", image, FRAME), made_case("b", smooth_volume(1, FRAME.shape), FRAME)
    pool = made_pool([case, moved], spacing=(2.0, 1.0, 1.0))
    other = stored_otherwise(image, FRAME, axes, mirrored)
    points = FRAME.to_lps(np.random.default_rng(0).uniform(0, 19, (20, 3)))
    maps, again, key = (embedder.embed(each, pool) for each in (case, other, moved))
    np.testing.assert_allclose(maps.frame.matrix, again.frame.matrix, atol=1e-9)
    found, refound = match(maps, key, points), match(again, key, points)
    np.testing.assert_allclose(found.scores, refound.scores, atol=2e-2)
    assert (
        np.linalg.norm(found.points - refound.points, axis=1) < 0.01
    ).mean() >= 0.9  # half precision, linear sampling
    itself = match(maps, again, points)
    assert np.linalg.norm(itself.points - points, axis=1).max() <= 2 * np.sqrt(3) + 1e-6  # the cell that holds them


def test_tiles_are_as_the_whole_where_the_network_sees_near_things_only() -> None:
    volume = torch.from_numpy(smooth_volume(2, (200, 16, 16)))[None]
    network = Pooled()
    whole, tiled = embed_volume(network, volume, CPU, 1 << 30), embed_volume(network, volume, CPU, 1)
    assert network.seen[2] < 200
    assert torch.equal(whole.fine, tiled.fine)
    assert torch.equal(whole.coarse, tiled.coarse)
    assert whole.fine.dtype == torch.float16


def test_other_channels_are_refused() -> None:
    case = made_case(
        "two", smooth_volume(0, (16, 16, 16), channels=2), Frame.regular((16,) * 3, (1.0,) * 3, (0.0,) * 3)
    )
    with pytest.raises(UserError, match=r"two has 2 channel\(s\), but the embedding was trained with 1"):
        own_embedder().embed(case, made_pool([case]))


def ct_file(path: Path) -> Path:
    """CT of 70 x 64 x 10 voxels (x, y, z), 2 x 1 x 5 mm, x towards the right."""
    values = np.random.default_rng(0).uniform(-3000, 5000, (10, 64, 70))
    image = SimpleITK.GetImageFromArray(values.astype(np.float32))
    image.SetSpacing((2.0, 1.0, 5.0))
    image.SetDirection((-1, 0, 0, 0, 1, 0, 0, 0, 1))
    SimpleITK.WriteImage(image, str(path))
    return path


def test_published_network_sees_raw_ct(tmp_path: Path) -> None:
    file = ct_file(tmp_path / "ct_0000.nii.gz")
    case = replace(made_case("ct", np.zeros((1, 4, 4, 4), np.float32), FRAME), raw=(str(file),))
    pool = made_pool([case], "CT")
    pool.plans["image_reader_writer"] = "SimpleITKIO"
    network = Pooled()
    maps = Embedder(network, 2.0, True, CPU).embed(case, pool)
    assert network.seen == (1, 1, 28, 64, 80)  # 25 x 32 x 70, padded; at least 16 x 64 x 64
    assert (network.lowest, network.highest) == (-50, 205)
    assert maps.frame.shape == (13, 16, 35)
    np.testing.assert_allclose(maps.frame.matrix[:3, :3], 4 * np.eye(3)[::-1], atol=1e-6)
    np.testing.assert_allclose(maps.frame.to_lps([0, 0, 34])[0], -1.0, atol=1e-5)  # the last cell, x = 0 and -2 mm


def test_published_network_needs_ct_that_is_there() -> None:
    case = made_case("a", np.zeros((1, 4, 4, 4), np.float32), FRAME)
    embedder = Embedder(Pooled(), 2.0, True, CPU)
    with pytest.raises(UserError, match="are for CT, but the data set's channels are MRI; train an embedding"):
        embedder.embed(case, made_pool([case]))
    with pytest.raises(UserError, match=r"a: .*need the raw CT, which is gone \(no file\)"):
        embedder.embed(case, made_pool([case], "CT"))


def test_embedder_of_a_file(tmp_path: Path) -> None:
    network = new_network(SETTINGS, seed=3)
    path = tmp_path / "embedding.pth"
    EmbeddingFile(SETTINGS, dict(network.state_dict()), 5, 5, 3, ("a",), (), {"state": {}}).write(path)
    embedder = load_embedder(path, CPU)
    assert not embedder.published
    assert not embedder.network.training
    assert embedder.definition["kind"] == "own"
    volume = torch.randn(1, 1, 16, 16, 16)
    torch.testing.assert_close(embedder.network(volume).fine, network.eval()(volume).fine)
    with pytest.raises(UserError, match="there is no such file"):
        load_embedder(tmp_path / "nothing.pth", CPU)
    torch.save({"state_dict": {"conv.weight": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="not an anatomical embedding"):
        load_embedder(tmp_path / "other.pth", CPU)
    broken: dict[str, Any] = torch.load(path, weights_only=True)
    broken["settings"]["unknown"] = 1
    torch.save(broken, path)
    with pytest.raises(UserError, match="written by another version"):
        load_embedder(path, CPU)
