"""What a conversion writes once all cases are there: dataset.json, folds, a list of unlabelled images; last checks."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from nnunet_ext import __version__
from nnunet_ext.dataset_conversion.cases import Layout
from nnunet_ext.dataset_conversion.partition import Partition, read_folds
from nnunet_ext.dataset_conversion.state import files_of, write_json
from nnunet_ext.dataset_conversion.target import nnunet_folder, trained_folds
from nnunet_ext.errors import UserError


def dataset_json(layout: Layout, training: int, name: str) -> dict[str, Any]:
    """nnU-Net's description of a data set.

    Args:
        layout: of the data set.
        training: number of training cases.
        name: of the data set, without its id.
    """
    labels = {key: list(value) if isinstance(value, tuple) else value for key, value in layout.labels.items()}
    content: dict[str, Any] = {
        "channel_names": {str(number): channel for number, channel in enumerate(layout.channel_names)},
        "labels": labels,
        "numTraining": training,
        "file_ending": layout.file_ending,
        "name": name,
        "description": layout.description,
        "reference": layout.reference,
        "licence": layout.licence,
        "release": layout.release,
        "converted_by": f"nnunet_ext {__version__}",
    }
    if layout.reader is not None:
        content["overwrite_image_reader_writer"] = layout.reader
    if layout.regions_class_order is not None:
        content["regions_class_order"] = list(layout.regions_class_order)
    return {key: value for key, value in content.items() if value != ""}


def write_data_set(
    folder: Path,
    layout: Layout,
    done: Mapping[str, Mapping[str, Any]],
    training: int,
    in_place: bool,
    notices: list[str],
) -> dict[str, Any]:
    """Write dataset.json, and unlabelled.json where there are unlabelled images; returns dataset.json's content.

    A data set that was checked in place keeps its own dataset.json as far as nnU-Net's entries are as they should be;
    an earlier one is kept beside it, which `notices` then says.

    Args:
        folder: of the data set.
        layout: what it is to be.
        done: its cases.
        training: how many training cases nnU-Net will find.
        in_place: see above.
        notices: is added to.
    """
    path = folder / "dataset.json"
    content = dataset_json(layout, training, folder.name.split("_", 1)[1])
    for name in () if in_place else ("imagesTr", "labelsTr"):
        (folder / name).mkdir(exist_ok=True)
    if in_place and path.is_file():
        content = _in_place(path, content, notices)
    else:
        write_json(path, content)
    unlabelled = [
        {"case": case, "images": [file["file"] for file in entry["images"]], "geometry": entry["geometry"]["written"]}
        for case, entry in done.items()
        if entry["part"] == "unlabelled"
    ]
    if unlabelled:
        write_json(folder / "unlabelled.json", unlabelled)
    else:
        (folder / "unlabelled.json").unlink(missing_ok=True)
    return content


_READ = ("channel_names", "labels", "regions_class_order", "overwrite_image_reader_writer")
_NNUNETS = ("channel_names", "labels", "regions_class_order", "numTraining", "file_ending")


def _in_place(path: Path, wanted: dict[str, Any], notices: list[str]) -> dict[str, Any]:
    """Put right what nnU-Net reads of a dataset.json, if anything is wrong with it; returns its content."""
    present: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    wrong = [key for key in _NNUNETS if present.get(key) != wanted.get(key)]
    if not wrong:
        return present
    earlier = path.with_name("dataset_before_conversion.json")
    if not earlier.exists():
        write_json(earlier, present)
    content = {key: value for key, value in present.items() if key not in wrong}
    content |= {key: wanted[key] for key in wrong if key in wanted}
    write_json(path, content)
    notices.append(f"{path}: {', '.join(wrong)} put right; the earlier one is {earlier.name}")
    return content


@dataclass(frozen=True)
class WrittenSplits:
    """What conversion.json says of the folds, and what the user should know."""

    record: dict[str, Any]
    notices: tuple[str, ...] = ()


def write_splits(name: str, partition: Partition, earlier: Mapping[str, Any], force: bool) -> WrittenSplits:
    """Write splits_final.json into the data set's preprocessed folder, where nnU-Net's training looks for it.

    Args:
        name: of the data set.
        partition: the folds; none: nothing is written.
        earlier: the conversion.json of the last run.
        force: folds that others made are replaced; they are kept beside.
    """
    if not partition.folds:
        earlier_sum = {key: value for key, value in earlier.get("splits", {}).items() if key == "sha256"}
        return WrittenSplits({"names": list(partition.names), "written": False, **earlier_sum}, _left_over(name))
    path, folds = _splits_path(name), [dict(fold) for fold in partition.folds]
    record = {"names": list(partition.names), "sources": list(partition.sources), "sha256": _sum(folds)}
    present = read_folds(path) if path.exists() else None
    if present == folds:
        return WrittenSplits({**record, "written": True})
    notices = []
    if path.exists() and not _is_ours(present, earlier):
        if not force:
            notice = f"{path} was made by others and has other folds; it was left. --force replaces it."
            return WrittenSplits({**record, "written": False}, (notice,))
        kept_as = path.with_name("splits_before_conversion.json")
        shutil.copyfile(path, kept_as)
        notices.append(f"{path} was replaced; the folds of others are kept in {kept_as.name}")
    write_json(path, folds)
    trained = trained_folds(name) if present is not None else []
    notices += [
        f"the folds changed, but {len(trained)} folds were trained on the earlier ones ({folder.parent.name}): their "
        "validation cases may now be training cases."
        for folder in trained[:1]
    ]
    return WrittenSplits({**record, "written": True}, tuple(notices))


def check_splits(name: str, earlier: Mapping[str, Any], asked_for: bool, force: bool) -> None:
    """Find out before the work whether the folds can be written.

    Raises:
        UserError: there is no folder for them; or they were asked for, but others' folds are there.
    """
    path = _splits_path(name)
    if path.parent.parent.exists() and not path.parent.parent.is_dir():
        raise UserError(f"nnUNet_preprocessed is {path.parent.parent}, which is no folder.")
    if asked_for and not force and path.exists() and not _is_ours(read_folds(path), earlier):
        raise UserError(
            f"{path} was made by others. --force replaces it (a copy is kept); without --split it is left as it is."
        )


def _splits_path(name: str) -> Path:
    return nnunet_folder("nnUNet_preprocessed") / name / "splits_final.json"


def _is_ours(folds: Any, earlier: Mapping[str, Any]) -> bool:
    return folds is not None and _sum(folds) == earlier.get("splits", {}).get("sha256")


def _left_over(name: str) -> tuple[str, ...]:
    """What to say where no folds are written, but some are there."""
    folder = os.environ.get("nnUNet_preprocessed")
    path = Path(folder, name, "splits_final.json") if folder else None
    if path is None or not path.exists():
        return ()
    return (f"{path} is there from before and was left: nnU-Net goes by it. Remove it if you don't want that.",)


def _sum(folds: Any) -> str:
    return hashlib.sha256(json.dumps(folds, sort_keys=True).encode()).hexdigest()


def label_table(done: Mapping[str, Mapping[str, Any]], layout: Layout) -> dict[str, tuple[int, int]]:
    """Name of each label or region -> (labelled cases that have it, voxels of all)."""
    counted = [entry["label"]["values"] for entry in done.values() if entry["label"] and "values" in entry["label"]]
    table = {}
    for name, value in layout.labels.items():
        values = value if isinstance(value, tuple) else (value,)
        if counted and values != (0,):
            voxels = [sum(values_of.get(str(number), 0) for number in values) for values_of in counted]
            table[name] = (sum(count > 0 for count in voxels), sum(voxels))
    return table


def repeated_content(done: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Images of different cases that are the same file."""
    cases: dict[str, list[str]] = {}
    for case, entry in done.items():
        first = entry["images"][0]
        content = f"{first['size']} {first.get('sha256') or first.get('sha256_of_first_64_kib')}"
        cases.setdefault(content, []).append(case)
    return [f"{' and '.join(same)} have the same image: one patient twice?" for same in cases.values() if len(same) > 1]


def stale_preprocessing(
    name: str, earlier: Mapping[str, Any], done: Mapping[str, Mapping[str, Any]], layout: Layout
) -> list[str]:
    """Say so if nnU-Net has preprocessed the data set and its cases or its labels have changed since."""
    folder = os.environ.get("nnUNet_preprocessed")
    if not earlier or not folder or not Path(folder, name, "dataset_fingerprint.json").is_file():
        return []
    wanted = dataset_json(layout, 0, name)
    described = [key for key in _READ if earlier.get("dataset_json", {}).get(key) != wanted.get(key)]
    if described:
        return [
            f"{', '.join(described)} of dataset.json changed since {Path(folder, name)} was made: run "
            "nnUNetv2_plan_and_preprocess again."
        ]
    before, after = ({case: _content(entry) for case, entry in cases.items()} for cases in (earlier["cases"], done))
    if before == after:
        return []
    changed = sorted(case for case in before.keys() | after.keys() if before.get(case) != after.get(case))
    return [
        f"{len(changed)} cases changed since {Path(folder, name)} was made ({changed[0]}, ...): run "
        "nnUNetv2_plan_and_preprocess again."
    ]


def _content(entry: Mapping[str, Any]) -> list[Any]:
    return [entry["part"]] + [
        [file["file"], file.get("sha256") or file.get("sha256_of_first_64_kib"), file["changes"]]
        for file in files_of(entry)
    ]


def versions() -> dict[str, str]:
    """Of this package and of those that touch the files."""
    found = {"nnunet_ext": __version__}
    for package in ("nnunetv2", "nibabel", "numpy", "SimpleITK"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found


def verify(folder: Path, processes: int) -> str | None:
    """Run nnU-Net's own verify_dataset_integrity; returns what it is not content with, or None."""
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    try:
        verify_dataset_integrity(str(folder), processes)
    except (AssertionError, RuntimeError, FileNotFoundError, ValueError) as error:
        return str(error) or type(error).__name__
    return None
