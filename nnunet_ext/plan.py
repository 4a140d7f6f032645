"""``nnunet-ext plan``: nnU-Net's own planning and preprocessing, with our names and clear sentences for faults."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunet_ext import lookup, names
from nnunet_ext.errors import NameNotFoundError, UnsupportedNnunetError, UserError
from nnunet_ext.versions import require_tested_nnunet


def plan(argv: Sequence[str]) -> None:
    """Run ``nnUNetv2_plan_and_preprocess`` in this process, whether or not Python reads our start-up file.

    Worker processes need nothing from us: they look up what nnU-Net has itself.

    Args:
        argv: the flags of the stock command.

    Raises:
        UserError: a folder's variable is missing, the planner's name is wrong, or an image can't be read.
    """
    wanted = _wanted(argv)
    if not {"-h", "--help"} & set(argv):
        for variable in ("nnUNet_raw", "nnUNet_preprocessed"):
            require_folder(variable)
    require_tested_nnunet()
    try:
        names.parse_planner(wanted.pl)
    except names.UnknownNameError as error:
        raise UserError(str(error)) from None
    lookup.install()
    from nnunetv2.experiment_planning.plan_and_preprocess_entrypoints import plan_and_preprocess_entry

    try:
        with _argv("nnunet-ext plan", argv):
            plan_and_preprocess_entry()
    except (NameNotFoundError, UnsupportedNnunetError, UserError):
        raise
    except Exception as error:
        raise_if_unreadable(wanted.d, error)
        raise


def require_folder(variable: str) -> Path:
    """The folder that one of nnU-Net's environment variables names.

    Raises:
        UserError: the variable is not set, or is no folder.
    """
    value = os.environ.get(variable)
    if not value:
        raise UserError(
            f"the environment variable {variable} is not set: nnU-Net keeps its files in the folder that it names; "
            f"set it, for example export {variable}=/path/to/{variable}"
        )
    if not Path(value).is_dir():
        raise UserError(
            f"the environment variable {variable} names {value}, which is no folder: make it, or correct it"
        )
    return Path(value)


def raise_if_unreadable(dataset_ids: Sequence[int], error: BaseException) -> None:
    """Where planning failed, look at every training file of the data sets, and name those that can't be read.

    Raises:
        UserError: at least one can't be read.
    """
    bad = [found for dataset_id in dataset_ids for found in unreadable_files(dataset_id)]
    if bad:
        shown = "".join(f"\n  {path}: {reason}" for path, reason in bad[:20])
        more = f"\n  and {len(bad) - 20} more" if len(bad) > 20 else ""
        count = "1 file" if len(bad) == 1 else f"{len(bad)} files"
        raise UserError(
            f"planning failed, and {count} of the data set can't be read; replace or remove these cases:{shown}{more}"
        ) from error


def unreadable_files(dataset_id: int) -> list[tuple[str, str]]:
    """The training images and labels of a data set that nnU-Net's reader can't read, each with the reason."""
    from batchgenerators.utilities.file_and_folder_operations import load_json
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    folder = require_folder("nnUNet_raw") / maybe_convert_to_dataset_name(dataset_id)
    dataset_json = load_json(str(folder / "dataset.json"))
    cases = get_filenames_of_train_images_and_targets(str(folder), dataset_json)
    images = [path for case in cases.values() for path in case["images"]]
    labels = [case["label"] for case in cases.values()]
    reader = _reader(dataset_json, images)
    bad = []
    for path, read in [*((p, reader.read_images) for p in images), *((p, reader.read_seg) for p in labels)]:
        try:
            read([path] if path in images else path)
        except Exception as error:
            bad.append((path, _first_line(error)))
    return bad


def _reader(dataset_json: dict[str, Any], images: Sequence[str]) -> Any:
    """The reader that nnU-Net would take: as stated, else the first one that reads an image of the set."""
    from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES, recursive_find_reader_writer_by_name

    stated = dataset_json.get("overwrite_image_reader_writer")
    if stated and stated != "None":
        return recursive_find_reader_writer_by_name(stated)()
    ending = dataset_json["file_ending"].lower()
    fitting = [reader() for reader in LIST_OF_IO_CLASSES if ending in reader.supported_file_endings]
    for reader in fitting:
        for image in images:
            try:
                reader.read_images([image])
            except Exception:
                continue
            return reader
    if not fitting:
        raise UserError(f"nnU-Net has no reader for files that end with {ending!r} (file_ending in dataset.json)")
    return fitting[0]


def _first_line(error: Exception) -> str:
    """What is wrong, in one line; ITK hides it in the last line of a long message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _wanted(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-d", nargs="+", type=int, default=[])
    parser.add_argument("-pl", default="ExperimentPlanner")
    return parser.parse_known_args(argv)[0]


@contextmanager
def _argv(program: str, arguments: Sequence[str]) -> Iterator[None]:
    before = sys.argv
    sys.argv = [program, *arguments]
    try:
        yield
    finally:
        sys.argv = before
