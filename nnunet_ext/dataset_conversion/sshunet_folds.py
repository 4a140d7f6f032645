"""SSH-UNet's use of a published split: its training and validation list, or k folds of the former (`--nfolds`)."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from nnunet_ext.dataset_conversion.cases import SPLIT_FILES, Split


def sshunet_folds(training: Sequence[str], folds: int = 5) -> tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]:
    """Split a list as SSH-UNet does: shuffle the indices with seed 0; fold k validates on every `folds`-th from k on.

    Args:
        training: case ids in the order of the published list, which decides who goes where.
        folds: how many.

    Returns:
        Per fold the sorted training and validation cases.
    """
    order = np.arange(len(training))
    np.random.RandomState(0).shuffle(order)
    made = []
    for fold in range(folds):
        held_out = set(order[fold::folds].tolist())
        parts = [
            tuple(sorted(case for index, case in enumerate(training) if (index in held_out) is wanted))
            for wanted in (False, True)
        ]
        made.append((parts[0], parts[1]))
    return tuple(made)


def sshunet_lists(published: str) -> Split:
    """SSH-UNet's training and validation list. Its test list, of cases whose labels are withheld, needs no split.

    Args:
        published: name of the file in `splits/` with "train" and "val".
    """
    lists = _read(published)
    return Split(
        published,
        ((tuple(lists["train"]), tuple(lists["val"])),),
        source=f"SSH-UNet: {len(lists['train'])} cases for training, {len(lists['val'])} for validation",
    )


def sshunet_5fold(published: str) -> Split:
    """SSH-UNet's five folds of a published split's training list; its validation cases are held out for the test.

    Args:
        published: name of the file in `splits/` with "train" and "val".
    """
    lists = _read(published)
    return Split(
        "sshunet_5fold",
        sshunet_folds(lists["train"]),
        test=tuple(sorted(lists["val"])),
        source=f"SSH-UNet's --nfolds 5 over the training list of {published}: indices shuffled with seed 0, every "
        f"fifth from k on; the {len(lists['val'])} validation cases of the list are in no fold",
    )


def _read(published: str) -> dict[str, list[str]]:
    content: dict[str, list[str]] = json.loads((SPLIT_FILES / f"{published}.json").read_text())
    return content
