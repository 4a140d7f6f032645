"""A case as a function of its image's voxel indices: where they lie, and that nnU-Net's own prediction comes out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.inference import predict_from_raw_data
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet
from point_model import PATCH, TinyPoints, noise, predictor, properties

from nnunet_ext.architectures.blocks import adaptive_decoding
from nnunet_ext.architectures.blocks.point_grid import PointGrid, voxel_coordinates
from nnunet_ext.architectures.ossnet_local import OSSNetLocal
from nnunet_ext.errors import UserError
from nnunet_ext.inference import volume_field, volume_windows
from nnunet_ext.inference.volume_field import CERTAIN, CaseField
from nnunet_ext.inference.volume_geometry import CaseGeometry
from nnunet_ext.inference.volume_windows import nearby

BIG = (19, 25, 10)  # some windows along two axes, one along the last


@pytest.fixture
def network() -> TinyPoints:
    torch.manual_seed(0)
    return TinyPoints(2, 3).eval()


@pytest.fixture
def single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """nnU-Net accumulates in half precision, on the CPU, too."""
    gaussian = predict_from_raw_data.compute_gaussian

    def precise(*args: Any, **kwargs: Any) -> torch.Tensor:
        return gaussian(*args, **kwargs, dtype=torch.float32)

    precise.cache_clear = gaussian.cache_clear  # type: ignore[attr-defined]
    monkeypatch.setattr(predict_from_raw_data, "compute_gaussian", precise)
    monkeypatch.setattr(torch, "half", torch.float32)


# --------------------------------------------------------------------------------------------------------- the geometry


@pytest.mark.parametrize("resample", [resample_data_or_seg_to_shape, resample_torch_fornnunet])
@pytest.mark.parametrize("new", [(20, 30, 25), (40, 12, 33)])
def test_a_resampled_voxel_lies_where_nnunet_took_it_from(resample: Any, new: tuple[int, int, int]) -> None:
    """A linear ramp, linearly resampled, has the coordinate itself as its value."""
    shape = (20, 24, 40)
    ramp = np.stack(np.meshgrid(*(np.arange(edge, dtype=np.float32) for edge in shape), indexing="ij"))
    order = {"order": 1} if resample is resample_data_or_seg_to_shape else {}
    values = torch.from_numpy(np.asarray(resample(ramp, new, [1, 1, 1], [1, 1, 1], **order)))
    geometry = CaseGeometry.of(properties(shape), (0, 1, 2), new, (1, 1, 1))
    found = geometry.coordinates(values.flatten(1).T).T.reshape(3, *new)
    inner = (slice(None), *(slice(3, -3),) * 3)
    assert torch.allclose(found[inner], voxel_coordinates(new).T.reshape(3, *new)[inner], atol=2e-5)


def test_transposition_crop_resampling_and_padding_are_undone_together() -> None:
    geometry = CaseGeometry.of(
        properties((30, 40, 50), crop=[(3, 23), (0, 40), (10, 20)]), (2, 0, 1), (20, 20, 5), PATCH
    )
    assert geometry.shape == (40, 50, 30)
    assert geometry.backward == (1, 2, 0)
    # image axis 0 is the case's axis 1: halved; 1 is 2: from voxel 10 on, halved, 2 zeros before; 2 is 0: from voxel 3
    found = geometry.coordinates(torch.tensor([[0.5, 10.5, 3.0], [39.5, 19.5, 22.5]]))
    assert found.tolist() == [[0, 0, 2], [19.5, 19.5, 6.5]]
    grid = PointGrid((4, 5, 6), (0.5, 2.0, 1.5), (1.0, 9.0, 4.0))
    mapped = geometry.grid(grid)
    index = torch.tensor([[1, 2, 3]])
    assert mapped.shape == (6, 4, 5)
    assert torch.allclose(mapped.coordinates(index[:, [2, 0, 1]]), geometry.coordinates(grid.coordinates(index)))


def test_points_in_the_crop() -> None:
    geometry = CaseGeometry.of(
        properties((20, 20, 20), crop=[(3, 9), (0, 20), (5, 6)]), (0, 1, 2), (6, 20, 1), (1, 1, 1)
    )
    grid = PointGrid((40, 10, 4), (0.5, 2.0, 0.1), (-0.25, 0.5, 5.45))
    inside = geometry.inside(grid)
    held = geometry.holds(grid.coordinates(voxel_coordinates(grid.shape).long())).reshape(grid.shape)
    expected = torch.zeros_like(held)
    expected[inside] = True
    assert torch.equal(held, expected)
    assert inside == (slice(6, 18), slice(0, 10), slice(0, 1))
    assert geometry.holds(torch.tensor([[2.5, 0.0, 5.0], [2.49, 0.0, 5.0]])).tolist() == [True, False]


# ------------------------------------------------------------------------------------------------------------ the field


@pytest.mark.parametrize("shape", [BIG, (5, 30, 7), PATCH, (8, 13, 10)])
def test_at_the_cases_voxels_it_is_nnunets_sliding_window(
    network: TinyPoints, shape: tuple[int, int, int], single_precision: None
) -> None:
    data, nnunets = noise(2, *shape), predictor(network)
    found = CaseField(nnunets, data, properties(shape)).logits(PointGrid.of_voxels(shape))
    assert bool(found.evaluated.all())
    assert torch.allclose(found.logits, nnunets.predict_sliding_window_return_logits(data), atol=2e-4)


def test_nnunets_half_precision_makes_no_difference_but_rounding(network: TinyPoints) -> None:
    data, nnunets = noise(2, *BIG), predictor(network)
    found = CaseField(nnunets, data, properties(BIG)).logits(PointGrid.of_voxels(BIG)).logits
    difference = (found - nnunets.predict_sliding_window_return_logits(data)).abs()
    assert float(difference.flatten().quantile(0.95)) < 5e-3


def test_without_gaussian(network: TinyPoints, single_precision: None) -> None:
    data, nnunets = noise(2, *BIG), predictor(network)
    nnunets.use_gaussian = False
    found = CaseField(nnunets, data, properties(BIG)).logits(PointGrid.of_voxels(BIG)).logits
    assert torch.allclose(found, nnunets.predict_sliding_window_return_logits(data), atol=1e-4)


def test_mirroring_and_folds_are_averaged_as_by_nnunet(network: TinyPoints, single_precision: None) -> None:
    folds = [TinyPoints(2, 3).state_dict() for _ in range(2)]
    data, nnunets = noise(2, *BIG), predictor(network, folds=folds)
    nnunets.use_mirroring = True
    expected = nnunets.predict_logits_from_preprocessed_data(data)
    found = CaseField(nnunets, data, properties(BIG), mirroring=True).logits(PointGrid.of_voxels(BIG)).logits
    assert torch.allclose(found, expected, atol=2e-4)


def test_any_points_in_any_order_are_those_of_the_grid(network: TinyPoints) -> None:
    shape, crop, forward = (30, 26, 14), [(3, 22), (0, 25), (2, 12)], (2, 0, 1)
    field = CaseField(predictor(network, transpose=forward), noise(2, *BIG), properties(shape, crop=crop))
    assert field.shape == (26, 14, 30)
    grid = PointGrid((9, 12, 11), (1.7, 1.3, 2.3), (3.2, -1.5, -0.4))
    index = voxel_coordinates(grid.shape).long()
    order = torch.randperm(len(index), generator=torch.Generator().manual_seed(0))
    dense = field.logits(grid)
    assert torch.allclose(field.logits_at(grid.coordinates(index[order])), dense.logits.flatten(1)[:, order], atol=1e-5)
    outside = ~dense.evaluated.flatten()
    assert 0 < int(outside.sum()) < len(index)
    assert dense.logits.flatten(1)[:, outside].unique(dim=1).T.tolist() == [[CERTAIN, -CERTAIN, -CERTAIN]]


def test_points_far_apart_are_not_asked_for_together(network: TinyPoints, monkeypatch: pytest.MonkeyPatch) -> None:
    field = CaseField(predictor(network), noise(2, *BIG), properties(BIG))
    index = torch.randperm(19 * 25 * 10, generator=torch.Generator().manual_seed(0))
    coords = voxel_coordinates(BIG)[index]
    together = field.logits_at(coords)
    monkeypatch.setattr(volume_windows, "NEARBY_VOXELS", 100)
    monkeypatch.setattr(volume_windows, "FEW_POINTS", 10)
    spans: list[float] = []
    blended = volume_windows.WindowField._blended

    def measured(self: Any, part: torch.Tensor) -> torch.Tensor:
        spans.append(float((part.amax(0) - part.amin(0) + 1).prod()))
        return blended(self, part)

    monkeypatch.setattr(volume_windows.WindowField, "_blended", measured)
    assert torch.allclose(field.logits_at(coords), together, atol=1e-5)
    assert 50 < max(spans) <= 100
    assert sum(spans) == len(coords)


def test_points_are_put_into_boxes_only_where_that_bounds_something() -> None:
    grid = PointGrid((20, 20, 20), (2.0,) * 3, (0.0,) * 3)  # 8000 points over 39 voxels an edge, as of a coarse lattice
    coords = grid.coordinates(voxel_coordinates(grid.shape))
    parts = nearby(coords)
    assert len(parts) == 4
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(len(coords)))
    assert len(nearby(coords / 2)) == 1  # a fine one
    assert len(nearby(coords[:: len(coords) // 1000])) == 1  # few points
    assert len(nearby(torch.full((2000, 3), torch.nan))) == 1


def test_an_image_beyond_the_crop_is_no_region() -> None:
    nnunets = predictor(
        TinyPoints(1, 2, regions=True), labels={"background": 0, "whole": [1, 2], "core": 2}, order=(1, 2)
    )
    field = CaseField(nnunets, noise(1, *PATCH), properties((20, 20, 20), crop=[(0, 8), (0, 12), (0, 10)]))
    assert field.regions
    assert field.num_classes == 2
    assert field.logits_at(torch.tensor([[15.0, 0, 0]])).flatten().tolist() == [-CERTAIN] * 2
    assert not field.logits(PointGrid((2, 2, 2), (1.0,) * 3, (12.0,) * 3)).evaluated.any()


def test_gradients_flow_to_coordinates_only(network: TinyPoints) -> None:
    field = CaseField(predictor(network), noise(2, *BIG), properties(BIG))
    coords = torch.tensor([[9.3, 12.2, 4.6], [30.0, 0.0, 0.0]], requires_grad=True)
    field.logits_at(coords)[1].sum().backward()
    assert coords.grad is not None
    step = torch.tensor([[1e-2, 0.0, 0.0]])
    with torch.no_grad():
        numeric = (field.logits_at(coords[:1] + step) - field.logits_at(coords[:1] - step))[1, 0] / 2e-2
    assert float(coords.grad[0, 0]) == pytest.approx(float(numeric), rel=0.02, abs=1e-3)
    assert coords.grad[1].tolist() == [0, 0, 0]
    assert not field.logits_at(coords.detach()).requires_grad


def test_windows_are_encoded_once_and_memory_is_bounded(network: TinyPoints) -> None:
    shape = (30, 30, 30)
    nnunets, data, grid = predictor(network), noise(2, *shape), PointGrid.resized(shape, (60, 60, 60))

    def encoded(cached: int) -> int:
        field = CaseField(nnunets, data, properties(shape), cached_windows=cached)
        for brick in field.bricks(grid, 24):
            field.logits(grid.brick([s.start for s in brick], [s.stop - s.start for s in brick]))
        assert len(field._windows._kept) <= cached
        return field._windows.encoded

    windows = len(nnunets._internal_get_sliding_window_slicers(shape))
    assert encoded(windows) == windows
    assert windows < encoded(24) < 2.5 * windows < encoded(1)


def test_bricks_hold_every_point_of_the_crop_once(network: TinyPoints) -> None:
    shape, crop, forward = (30, 26, 14), [(3, 22), (0, 25), (2, 12)], (2, 0, 1)
    field = CaseField(predictor(network, transpose=forward), noise(2, *BIG), properties(shape, crop=crop))
    for grid in (PointGrid.of_voxels(field.shape), PointGrid.resized(field.shape, (70, 40, 33))):
        count = torch.zeros(grid.shape)
        bricks = field.bricks(grid, 16)
        for brick in bricks:
            assert max(part.stop - part.start for part in brick) <= 16
            count[brick] += 1
        assert torch.equal(count.bool(), field.logits(grid).evaluated)
        assert count.max() == 1
        assert len(bricks) < 60


def test_presence_is_that_of_all_windows_at_the_right_place() -> None:
    torch.manual_seed(0)
    network = TinyPoints(1, 2, cell=2).eval()
    field = CaseField(predictor(network), noise(1, *BIG), properties(BIG))._windows
    assert field.encoded == 0
    found = field.presence((0, 0, 0), BIG)
    assert found is not None
    assert found.image_size == (20, 26, 10)
    for window in field.windows:
        cut = (slice(None), *(slice(s, s + p) for s, p in zip(window, PATCH, strict=True)))
        values = network.encode(noise(1, *BIG)[cut][None])[0].sigmoid()
        for at in ((0, 0, 0), (7, 11, 9), (3, 5, 4)):
            z, y, x = ((s + a) // 2 for s, a in zip(window, at, strict=True))
            assert (found.probabilities[:, z, y, x] >= values[:, at[0], at[1], at[2]] - 1e-6).all()
    assert found.probabilities.max() < 1


def test_adaptive_decoding_gets_the_presence(network: TinyPoints, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    decode = adaptive_decoding.decode_grid
    monkeypatch.setattr(volume_field, "decode_grid", lambda *a, **k: (given.update(k), decode(*a, **k))[1])
    field = CaseField(predictor(TinyPoints(2, 3, cell=2)), noise(2, *BIG), properties(BIG))
    field.logits(PointGrid.of_voxels(BIG), "adaptive")
    assert given["presence"].probabilities.shape[0] == 3
    field.logits(PointGrid.of_voxels(BIG))
    assert given["presence"] is None
    CaseField(predictor(network), noise(2, *BIG), properties(BIG)).logits(PointGrid.of_voxels(BIG), "adaptive")
    assert given["presence"] is None


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (lambda: predictor(torch.nn.Conv3d(1, 2, 3)), "network is Conv3d, which knows voxels only; .*OSSNetTrainer"),
        (lambda: predictor(TinyPoints(1, 3, dim=2), patch=(8, 8)), "2d configuration"),
        (
            lambda: predictor(TinyPoints(1, 3), plans={"nnunet_ext": {"case_adapter": "lits"}}),
            "imported published one.*predict-volume",
        ),
    ],
)
def test_other_models_are_told_what_to_do(made: Any, text: str) -> None:
    with pytest.raises(UserError, match=text):
        CaseField.load(made(), ["nowhere.nii.gz"])


# ------------------------------------------------------------------------------------------------------- a real network


def test_a_real_network_gives_nnunets_prediction_and_the_same_labels_adaptively(single_precision: None) -> None:
    torch.manual_seed(0)
    strides = [[1] * 3, [2] * 3, [2] * 3]
    network = OSSNetLocal(1, 3, [4, 8, 8], torch.nn.Conv3d, [[3] * 3] * 3, strides, 3).eval()
    torch.nn.init.normal_(network.decoder.seg_layers[0].weight)
    network.decode_mode = "dense"
    shape = (20, 16, 24)
    data = torch.nn.functional.interpolate(noise(1, 1, 3, 3, 3), size=shape, mode="trilinear")[0]
    nnunets = predictor(network, patch=(16, 16, 16))
    field, grid = CaseField(nnunets, data, properties(shape)), PointGrid.of_voxels(shape)
    dense = field.logits(grid).logits
    assert torch.allclose(dense, nnunets.predict_sliding_window_return_logits(data), atol=1e-3)
    adaptive = field.logits(grid, "adaptive")
    assert torch.allclose(adaptive.logits[:, adaptive.evaluated], dense[:, adaptive.evaluated], atol=1e-3)
    assert (adaptive.logits.argmax(0) == dense.argmax(0)).float().mean() > 0.99
    between = torch.tensor([[8.3, 4.2, 11.9]], requires_grad=True)
    field.logits_at(between).sum().backward()
    assert between.grad is not None
    assert between.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in network.parameters())
