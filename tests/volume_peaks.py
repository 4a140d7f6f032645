"""Peak memory of `predict-volume`'s steps, as JSON: to be run in a process of its own, where nothing else allocates.

python tests/volume_peaks.py FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import measure
import nibabel
import numpy as np
import point_model
import SimpleITK
import torch
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunet_ext.architectures.blocks.point_grid import PointGrid
from nnunet_ext.inference import label_volume
from nnunet_ext.inference.label_volume import LabelVolume, save, write_nifti
from nnunet_ext.inference.predict_volume import decode_labels
from nnunet_ext.inference.volume_field import CaseField

EDGES = (40, 72, 160)  # the first only loads what is needed
REORDERED = (8, 288)
SLAB = 1 << 21


def decoding(folder: Path) -> list[int]:
    """Bytes for outputs of `EDGES` voxels an edge."""
    given = SimpleITK.GetImageFromArray(point_model.noise(1, *point_model.PATCH)[0].numpy())
    SimpleITK.WriteImage(given, str(folder / "a.nii.gz"))
    properties = SimpleITKIO().read_images([str(folder / "a.nii.gz")])[1]
    predictor = point_model.predictor(point_model.TinyPoints(1, 3).eval())
    data = point_model.noise(1, *point_model.PATCH)
    field = CaseField(predictor, data, {**point_model.properties(point_model.PATCH), **properties})
    peaks = []
    for edge in EDGES:
        grid = PointGrid.resized(field.shape, (edge,) * 3)
        with measure.extra_peak() as peak:
            volume = LabelVolume(folder / "labels", grid.shape, 2)
            decode_labels(field, grid, volume)
            save(volume, folder / "out.nii.gz", grid, properties, None)
        peaks.append(peak["peak"])
    return peaks


def reordering(folder: Path) -> list[int]:
    """Bytes for writing labels of `REORDERED` voxels an edge with other axes, in slabs of `SLAB` bytes."""
    label_volume._SLAB = SLAB
    orientation = nibabel.orientations.axcodes2ornt("SAR")
    peaks = []
    for edge in REORDERED:
        with measure.extra_peak() as peak:
            write_nifti(LabelVolume(folder / "labels", (edge,) * 3, 1), folder / "a.nii", np.eye(4), orientation)
        peaks.append(peak["peak"])
    return peaks


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    sys.stdout.write(json.dumps({"decoding": decoding(place), "reordering": reordering(place)}))
