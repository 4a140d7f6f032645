"""``nnunet-ext plan``: nnU-Net's own planning and preprocessing, with our names and clear sentences for faults."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nnunet_ext import lookup, names
from nnunet_ext.errors import NameNotFoundError, UnsupportedNnunetError, UserError
from nnunet_ext.raw_files import incomplete_files, unreadable_files
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

    for folder in _dataset_folders(wanted.d):
        _raise_for(incomplete_files(folder), "{} of the data set can't be read whole")
    try:
        with _argv("nnunet-ext plan", argv):
            plan_and_preprocess_entry()
    except (NameNotFoundError, UnsupportedNnunetError, UserError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise  # the command line has a sentence for it
        for folder in _dataset_folders(wanted.d):
            _raise_for(unreadable_files(folder), "planning failed, and {} of the data set can't be read", error)
        raise


def require_folder(variable: str) -> Path:
    """The folder that one of nnU-Net's environment variables names.

    Raises:
        UserError: the variable is not set, or is no folder.
    """
    folder = named_folder(variable)
    if not folder.is_dir():
        raise UserError(
            f"the environment variable {variable} names {folder}, which is no folder: make it, or correct it"
        )
    return folder


def named_folder(variable: str) -> Path:
    """The folder that one of nnU-Net's environment variables names, which need not be there yet.

    Raises:
        UserError: the variable is not set.
    """
    value = os.environ.get(variable)
    if not value:
        raise UserError(
            f"the environment variable {variable} is not set: nnU-Net keeps its files in the folder that it names; "
            f"set it, for example export {variable}=/path/to/{variable}"
        )
    return Path(value)


def _dataset_folders(dataset_ids: Sequence[int]) -> list[Path]:
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

    return [require_folder("nnUNet_raw") / maybe_convert_to_dataset_name(number) for number in dataset_ids]


def _raise_for(bad: Sequence[tuple[str, str]], problem: str, cause: BaseException | None = None) -> None:
    if bad:
        shown = "".join(f"\n  {path}: {reason}" for path, reason in bad[:20])
        more = f"\n  and {len(bad) - 20} more" if len(bad) > 20 else ""
        count = "1 file" if len(bad) == 1 else f"{len(bad)} files"
        raise UserError(f"{problem.format(count)}; replace or remove these cases:{shown}{more}") from cause


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
