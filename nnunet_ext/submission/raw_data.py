"""What a converted data set (its conversion.json) tells the submission: cases, original geometry, label map."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_ext.errors import UserError

FILE = "conversion.json"
FORMAT = 1


@dataclass(frozen=True)
class Geometry:
    """Where the voxels of a NIfTI image lie, with all that its header says of it.

    Attributes:
        shape: (x, y, z).
        affine: voxel indices to millimetres, RAS, as nibabel resolves it; None: the file says nothing of it.
        header: `qform_code`, `sform_code`, `xyzt_units`, `pixdim`, `quaternion` and `srow` as they are stored.
    """

    shape: tuple[int, int, int]
    affine: tuple[tuple[float, ...], ...] | None
    header: Mapping[str, Any]


@dataclass(frozen=True)
class RawCase:
    """One case of a raw data set.

    Attributes:
        id: nnU-Net's case identifier.
        part: "training", "test" or "unlabelled".
        group: patient.
        details: what the converter kept.
        labelled: it has a reference segmentation.
        original: of the image in the download.
        written: of the image that nnU-Net reads, and so of its predictions.
    """

    id: str
    part: str
    group: str
    details: Mapping[str, Any]
    labelled: bool
    original: Geometry
    written: Geometry


@dataclass(frozen=True)
class RawData:
    """A raw data set that `nnunet-ext convert` made.

    Attributes:
        folder: where it is.
        name: DatasetXXX_NAME.
        dataset: the converter's key.
        label_map: value in the download -> value in the data set; None: they are the same.
        labels: value in the data set -> its name; values that only occur in regions have none.
        values: that a prediction may have; nnU-Net never predicts the ignore label.
        cases: by id.
    """

    folder: Path
    name: str
    dataset: str
    label_map: Mapping[int, int] | None
    labels: Mapping[int, str]
    values: frozenset[int]
    cases: Mapping[str, RawCase]


def find_raw(text: str | Path) -> Path:
    """The folder of a raw data set.

    Args:
        text: a path, or a data set's name or number in nnUNet_raw.

    Raises:
        UserError: there is none, or several have this number.
    """
    path = Path(text).expanduser()
    if (path / FILE).is_file():
        return path.absolute()
    root = os.environ.get("nnUNet_raw")
    if root and re.fullmatch(r"\d+", str(text)):
        found = sorted(path for path in Path(root).glob(f"Dataset{int(str(text)):03d}_*") if path.is_dir())
        if len(found) > 1:
            raise UserError(f"several data sets have the number {text}: {', '.join(map(str, found))}; give one's path")
        if found:
            return found[0]
    if root and (Path(root) / str(text)).is_dir():
        return Path(root) / str(text)
    if path.is_dir():
        return path.absolute()
    where = f"in nnUNet_raw ({root})" if root else "in nnUNet_raw, which is not set"
    raise UserError(f"no data set {str(text)!r}: it is neither a folder nor a data set's name or number {where}.")


def read_raw(text: str | Path) -> RawData:
    """What conversion.json says of a data set.

    Args:
        text: see `find_raw`.

    Raises:
        UserError: there is no such data set, or `nnunet-ext convert` did not make it.
    """
    folder = find_raw(text)
    path = folder / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} has no {FILE}, which says what the cases' files were called and where their voxels lay: make "
            "the data set by `nnunet-ext convert` from the challenge's download."
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): convert the download again.") from error
    try:
        return _parsed(folder, content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} is not what this version of nnunet_ext writes ({type(error).__name__}: {error}): convert the "
            "download again."
        ) from error


def _parsed(folder: Path, content: Mapping[str, Any]) -> RawData:
    if content["format"] != FORMAT:
        raise ValueError(f"format {content['format']}, not {FORMAT}")
    label_map = content.get("label_map")
    labels = {
        name: tuple(value) if isinstance(value, list) else (value,)
        for name, value in content["dataset_json"]["labels"].items()
        if name != "ignore"
    }
    return RawData(
        folder=folder,
        name=str(content["name"]),
        dataset=str(content["dataset"]),
        label_map=None if label_map is None else {int(key): int(value) for key, value in label_map.items()},
        labels={int(values[0]): name for name, values in labels.items() if len(values) == 1},
        values=frozenset(int(value) for values in labels.values() for value in values) | {0},
        cases={name: _case(name, case) for name, case in content["cases"].items()},
    )


def _case(name: str, case: Mapping[str, Any]) -> RawCase:
    return RawCase(
        id=name,
        part=case["part"],
        group=case.get("group") or name,
        details=case.get("details") or {},
        labelled=case.get("label") is not None,
        original=geometry_of(case["geometry"]["original"]),
        written=geometry_of(case["geometry"]["written"]),
    )


def geometry_of(content: Mapping[str, Any]) -> Geometry:
    """Geometry as `nnunet_ext.dataset_conversion.volumes.geometry` describes it.

    Raises:
        ValueError: it is not that of a 3D image.
    """
    shape = [int(edge) for edge in content["shape"]]
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"a shape of {shape}")
    affine = content.get("affine")
    return Geometry(
        shape=(shape[0], shape[1], shape[2]),
        affine=None if affine is None else tuple(tuple(float(value) for value in row) for row in affine),
        header={
            key: content[key] for key in ("qform_code", "sform_code", "xyzt_units", "pixdim", "quaternion", "srow")
        },
    )
