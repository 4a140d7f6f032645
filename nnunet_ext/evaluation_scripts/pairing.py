"""References and predictions, paired by case id: from flat folders, nnU-Net's validation folders and trained models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_ext.dataset_conversion.sources import ending_of
from nnunet_ext.errors import UserError
from nnunet_ext.evaluation_scripts.label_maps import is_label_map

_SHOWN = 8


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
        cases: evaluate these; None: those with a reference; of a trained model, its validation cases.

    Raises:
        UserError: an empty folder, a case predicted twice, or no case in both.
    """
    known = label_maps(references, "references")
    found: dict[str, Path] = {}
    validation = False
    for place in predictions:
        folders = validation_folders(place)
        validation |= folders != [place]
        for folder in folders:
            for case, path in label_maps(folder, "predictions").items():
                if case in found:
                    raise UserError(f"{case} is predicted twice: {found[case]} and {path}. Evaluate one at a time.")
                found[case] = path
    if cases is not None:
        wanted = set(cases)
        absent = sorted(wanted - set(known))
        if absent:
            raise UserError(f"no reference in {references} for {shortened(absent)}")
    else:
        wanted = set(known) & set(found) if validation else set(known)
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
        UserError: there is no such folder, or the model has not been validated.
    """
    if not place.is_dir():
        raise UserError(f"{place}: no such folder of predictions")
    if (place / "validation").is_dir():
        return [place / "validation"]
    folds = sorted(place.glob("fold_*"))
    found = [fold / "validation" for fold in folds if (fold / "validation").is_dir()]
    if folds and not found:
        raise UserError(f"{place}: its folds have no validation folders: run nnUNetv2_train ... --val")
    return found or [place]


def label_maps(folder: Path, what: str) -> dict[str, Path]:
    """Case id -> file of a folder.

    Raises:
        UserError: no folder, no label map in it, or two for one case.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of {what}")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
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
