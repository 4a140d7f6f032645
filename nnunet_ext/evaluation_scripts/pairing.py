"""References and predictions, paired by case id: from flat folders, nnU-Net's validation folders and trained models."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_ext.dataset_conversion.sources import ending_of
from nnunet_ext.errors import UserError
from nnunet_ext.evaluation_scripts.label_maps import is_label_map

_SHOWN = 8
_PLOT = "progress.png"


@dataclass(frozen=True)
class Pairs:
    """What is evaluated.

    Attributes:
        references: case id -> file.
        predictions: case id -> file; of the same ids or fewer.
        extra: ids of predictions without a reference; they are not evaluated.
    """

    references: Mapping[str, Path]
    predictions: Mapping[str, Path]
    extra: tuple[str, ...] = ()

    @property
    def missing(self) -> list[str]:
        """Ids without a prediction."""
        return sorted(set(self.references) - set(self.predictions))


def find_pairs(references: Path, predictions: Sequence[Path], cases: Iterable[str] | None = None) -> Pairs:
    """Pair by case id.

    Args:
        references: folder of label maps.
        predictions: folders of label maps; or of a fold or a trained model, whose validation cases are taken. All of
            them together; each case once.
        cases: evaluate these; None: those with a reference; of a trained model, its validation cases: those of
            splits_final.json where it lies beside the references, else those that were predicted.

    Raises:
        UserError: an empty folder, a case predicted twice, or no case in both.
    """
    known = label_maps(references, "references")
    found: dict[str, Path] = {}
    validated: set[str] | None = None
    for place in predictions:
        for folder in validation_folders(place):
            here = label_maps(folder, "predictions")
            for case, path in here.items():
                if case in found:
                    raise UserError(f"{case} is predicted twice: {found[case]} and {path}. Evaluate one at a time.")
                found[case] = path
            if _is_validation(folder):
                validated = (validated or set()) | set(here) | _split_of(folder, references, set(here))
    if cases is not None:
        wanted = set(cases)
        absent = sorted(wanted - set(known))
        if absent:
            raise UserError(f"no reference in {references} for {shortened(absent)}")
    else:
        wanted = set(known) if validated is None else set(known) & (validated | set(found))
    pairs = {case: path for case, path in found.items() if case in wanted}
    if not pairs:
        raise UserError(
            f"no case is in both folders: {len(known)} references in {references} ({shortened(sorted(known))}), "
            f"{len(found)} predictions ({shortened(sorted(found))})."
        )
    extra = tuple(sorted(set(found) - set(known)))
    return Pairs({case: known[case] for case in sorted(wanted)}, pairs, extra)


def validation_folders(place: Path) -> list[Path]:
    """The validation folders of a fold (`fold_0`) or of a trained model; any other folder stands for itself.

    Raises:
        UserError: there is no such folder, the model has not been validated, or it is in doubt which label maps are
            meant: there are some in the folder and in a validation folder below.
    """
    if not place.is_dir():
        raise UserError(f"{place}: no such folder of predictions")
    folds = [path for path in sorted(place.glob("fold_*")) if path.is_dir()]
    below = [place] if (place / "validation").is_dir() else folds
    found = [fold / "validation" for fold in below if (fold / "validation").is_dir()]
    own = None if _is_trained_fold(place) else _own_label_map(place)
    if own is not None and found:
        raise UserError(
            f"{place} holds label maps of its own, such as {own.name}, and {found[0]} is there, too: evaluate one of "
            f"them. Name {found[0]}, or move it, or what is beside it, elsewhere."
        )
    if folds and not found and own is None:
        raise UserError(f"{place}: its folds have no validation folders: run nnUNetv2_train ... --val")
    return found or [place]


def _is_trained_fold(folder: Path) -> bool:
    """Whether a training wrote it: its pictures (progress.png) are no label maps."""
    return (folder / "debug.json").is_file() or any(folder.glob("checkpoint_*.pth"))


def _own_label_map(folder: Path) -> Path | None:
    """One that lies in the folder itself; nnU-Net's plot of a training is none."""
    return next((path for path in sorted(folder.iterdir()) if is_label_map(path) and path.name != _PLOT), None)


def _is_validation(folder: Path) -> bool:
    """Whether nnU-Net wrote it after a training: it holds the cases of a fold, not of a data set."""
    folder = folder.absolute()
    return folder.name == "validation" and folder.parent.name.startswith("fold_")


def _split_of(folder: Path, references: Path, predicted: set[str]) -> set[str]:
    """The validation cases of a fold, by the splits_final.json above nnU-Net's gt_segmentations.

    Nothing where it is of other folds: predictions would be among its training cases.
    """
    number = folder.absolute().parent.name.removeprefix("fold_")
    splits = references.absolute().parent / "splits_final.json"
    try:
        cases = {str(case) for case in json.loads(splits.read_text(encoding="utf-8"))[int(number)]["val"]}
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return set()
    return cases if predicted <= cases else set()


def label_maps(folder: Path, what: str) -> dict[str, Path]:
    """Case id -> file of a folder.

    Raises:
        UserError: no folder, no label map in it, or two for one case.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of {what}")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.is_symlink() and not path.exists():
            raise UserError(f"{path}: a link to a file that is not there any more ({path.readlink()})")
        if is_label_map(path):
            case = path.name[: -len(ending_of(path.name))]
            if case in found:
                raise UserError(f"{folder}: two label maps for {case}: {found[case].name} and {path.name}")
            found[case] = path
    if not found:
        raise UserError(f"{folder}: no label maps ({what}) there")
    return found


def shortened(names: Sequence[str]) -> str:
    """The first few, and how many more."""
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
