"""The label maps in a folder of predictions, past what nnU-Net puts beside them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from nnunet_ext.errors import UserError
from nnunet_ext.submission.challenges import NIFTI_ENDINGS
from nnunet_ext.submission.problems import Problem

BESIDE = (
    "dataset.json",
    "dataset_fingerprint.json",
    "plans.json",
    "predict_from_raw_data_args.json",
    "postprocessing.json",
    "summary.json",
)
"""Files that nnU-Net writes beside predictions."""
BESIDE_ENDINGS = (".npz", ".pkl", ".b2nd")


@dataclass
class Predictions:
    """What lies in a folder.

    Attributes:
        folder: which.
        files: case id -> label map.
        problems: files that are neither a label map nor nnU-Net's.
        notices: folders and hidden files, which were passed over.
    """

    folder: Path
    files: dict[str, Path] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


def find_predictions(folder: Path | str) -> Predictions:
    """List a folder of predictions.

    Raises:
        UserError: it is none, or cannot be read.
    """
    found = Predictions(Path(folder).expanduser().absolute())
    try:
        entries = sorted(found.folder.iterdir())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{found.folder} is no folder; give the folder that nnUNetv2_predict wrote to (-o)") from error
    except OSError as error:
        raise UserError(f"{found.folder} cannot be read: {error.strerror}") from error
    for path in entries:
        ending = next((ending for ending in NIFTI_ENDINGS if path.name.endswith(ending)), None)
        if path.name.startswith("."):
            found.notices.append(f"{path}: hidden: passed over")
        elif path.is_dir():
            found.notices.append(f"{path}: a folder: not searched")
        elif ending is not None:
            _add(found, path, path.name.removesuffix(ending))
        elif path.name not in BESIDE and not path.name.endswith(BESIDE_ENDINGS):
            text = "neither a label map (.nii.gz or .nii) nor a file that nnU-Net writes beside them: move it away"
            found.problems.append(Problem("extra", str(path), text))
    return found


def _add(found: Predictions, path: Path, case: str) -> None:
    if case in found.files:
        text = f"{found.files[case].name} is there, too: move away the one that is not meant"
        found.problems.append(Problem("extra", str(path), text))
    else:
        found.files[case] = path
