"""What would make numbers look better, or wrong, without a word."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from skimage import io

from nnunet_ext.errors import UserError
from nnunet_ext.evaluation_scripts.conventions import CONVENTIONS
from nnunet_ext.evaluation_scripts.evaluating import evaluate
from nnunet_ext.evaluation_scripts.metrics import CasePair
from nnunet_ext.evaluation_scripts.pairing import find_pairs
from nnunet_ext.evaluation_scripts.quantities import Metric
from nnunet_ext.evaluation_scripts.quantities import evaluate as values_of
from nnunet_ext.evaluation_scripts.results import Evaluation

DATASET_JSON: dict[str, Any] = {"labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}
HD95 = Metric("HD95", "hd95_pooled", "mm")


def box(shift: int = 0, shape: tuple[int, int, int] = (12, 10, 8)) -> np.ndarray:
    labels = np.zeros(shape, np.uint8)
    labels[3 + shift : 7 + shift, 3:6, 2:5] = 1
    return labels


def save(path: Path, labels: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(labels, np.eye(4) if affine is None else affine), path)


def folders(root: Path, **labels: np.ndarray | None) -> tuple[Path, Path]:
    """References are boxes; each keyword is a case's prediction, None: it is missing."""
    for case, predicted in labels.items():
        save(root / "references" / f"{case}.nii.gz", box())
        if predicted is not None:
            save(root / "predictions" / f"{case}.nii.gz", predicted)
    return root / "references", root / "predictions"


def run(root: Path, name: str, *metrics: Metric, **options: Any) -> Evaluation:
    pairs = find_pairs(root / "references", [root / "predictions"])
    return evaluate(pairs, DATASET_JSON, CONVENTIONS[name], metrics=metrics, **options)


#: Those that evaluate whatever labels there are; others want the organs or regions of their challenge.
ANY_LABELS = [
    name
    for name in sorted(CONVENTIONS)
    if not name.startswith(("brats", "unetrpp-synapse", "unetrpp-brats", "flare22", "lits"))
]


@pytest.mark.parametrize("name", ANY_LABELS)
def test_deleting_a_prediction_improves_no_average(tmp_path: Path, name: str) -> None:
    """Whatever an empty mask counts, a missing prediction is neither right nor at distance 0."""
    folders(tmp_path / "all", x=box(1), y=box(2), z=box(3))
    folders(tmp_path / "some", x=box(1), y=box(2), z=None)
    whole, lacking = run(tmp_path / "all", name), run(tmp_path / "some", name)
    for metric, described in lacking.metrics.items():
        found = lacking.cases[-1].values["a" if "a" in lacking.structures else "foreground"][metric]
        if described["higher_is_better"]:
            assert math.isnan(found) or found == 0
            assert lacking.mean(metric) <= whole.mean(metric)
        else:
            assert math.isnan(found)


def test_background_has_no_surface(tmp_path: Path) -> None:
    folders(tmp_path, x=box(1))
    with pytest.raises(UserError, match=r"HD95 of background: .*no surface"):
        run(tmp_path, "sshunet", HD95)
    pair = CasePair(box(), box(1), (1, 1, 1))
    for distances in (pair.border_distances, pair.element_distances):
        with pytest.raises(ValueError, match="labels other than 0"):
            distances((0,))


def test_turned_prediction_is_refused(tmp_path: Path) -> None:
    mirrored = np.diag([-1.0, 1.0, 1.0, 1.0])
    mirrored[0, 3] = 11
    folders(tmp_path, x=None, y=box())
    save(tmp_path / "predictions" / "x.nii.gz", box()[::-1], mirrored)
    with pytest.raises(UserError, match=r"axes are LAS, those of .* RAS: the same image, turned"):
        run(tmp_path, "sound")


def test_labels_of_sixteen_bits_are_named_before_they_take_memory(tmp_path: Path) -> None:
    folders(tmp_path, x=box())
    for folder in ("references", "predictions"):
        save(tmp_path / folder / "x.nii.gz", box().astype(np.uint16) * 65535)
    with pytest.raises(UserError, match=r"labels \[65535\] that dataset.json does not have"):
        run(tmp_path, "sound")


def test_high_labels_are_counted_without_a_table_of_all_numbers() -> None:
    reference, predicted = (labels.astype(np.uint16) * 40000 for labels in (box(), box(1)))
    overlap = CasePair(reference, predicted, (1, 1, 1)).overlap((40000,))
    assert (overlap.tp, overlap.fp, overlap.fn) == (27, 9, 9)
    assert overlap.tn == 12 * 10 * 8 - 45


def tiffs(root: Path, cases: dict[str, list[float] | None]) -> None:
    for case, spacing in cases.items():
        for folder, labels in (("references", box()), ("predictions", box(2))):
            (root / folder).mkdir(parents=True, exist_ok=True)
            io.imsave(root / folder / f"{case}.tif", labels, check_contrast=False)
            if spacing:
                (root / folder / f"{case}.json").write_text(json.dumps({"spacing": spacing}))


def test_spacing_beside_a_picture_is_part_of_what_is_kept(tmp_path: Path) -> None:
    tiffs(tmp_path, {"x": [1, 1, 1]})
    cache = tmp_path / "cache.jsonl"
    assert run(tmp_path, "sound", HD95, cache=cache).mean("HD95") == pytest.approx(2)
    tiffs(tmp_path, {"x": [5, 1, 1]})
    assert run(tmp_path, "sound", HD95, cache=cache).mean("HD95") > 2


def test_millimetres_and_pixels_do_not_mix(tmp_path: Path) -> None:
    tiffs(tmp_path, {"x": [5, 1, 1], "y": None})
    with pytest.raises(UserError, match=r"distances would be mixed: .*x.tif states its spacing, .*y.tif does not"):
        run(tmp_path, "sound")


def test_monais_surface_dice_of_nothing_is_undefined() -> None:
    empty = np.zeros((5, 5, 5), np.uint8)
    wanted = tuple(metric for metric in CONVENTIONS["monai"].metrics if metric.name == "NSD")
    found = values_of(CasePair(empty, empty, (1, 1, 1)), "a", (1,), tuple(replace(metric) for metric in wanted))
    assert math.isnan(found["NSD"])
