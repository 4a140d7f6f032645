"""BraTS 2020: also the copies with uncompressed files, in which one segmentation is misnamed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from nnunet_ext.dataset_conversion.brats import BraTS

FOUR_IS_ENHANCING: dict[int, int] = {0: 0, 2: 1, 1: 2, 4: 3}
"""The releases until 2021: 1 necrosis, 2 edema, 4 enhancing tumour."""
NO_THREE: dict[int, str] = {
    3: "Releases until 2021 have no label 3: enhancing tumour is 4. These files are of BraTS 2023 or later, or were "
    "remapped before: take the labels of the original download."
}


class BraTS2020(BraTS):
    """Brain Tumor Segmentation challenge 2020."""

    key = "brats2020"
    number = 820
    name = "BraTS2020"
    summary = "BraTS 2020: MR of gliomas, 4 sequences, 3 tumour regions; 369 training and 125 validation cases"
    get_it = (
        "https://www.med.upenn.edu/cbica/brats2020/data.html (portal of CBICA, after registration), under the "
        "challenge's terms of use; a publication names the papers listed there."
    )
    looks_like = (
        "MICCAI_BraTS2020_TrainingData/BraTS20_Training_001/ with BraTS20_Training_001_flair, _t1, _t1ce, _t2 and _seg "
        "(.nii.gz or .nii), and so on to 369; MICCAI_BraTS2020_ValidationData/BraTS20_Validation_001/ likewise without "
        "_seg."
    )
    published_splits = ("brats2020_ossnet",)
    expected: ClassVar[Mapping[str, int]] = {"training": 369, "test": 125}
    suffixes = ("_t1", "_t1ce", "_t2", "_flair")
    segmentation = "_seg"
    label_map = FOUR_IS_ENHANCING
    value_hints = NO_THREE
    about: ClassVar[Mapping[str, str]] = {
        "licence": "terms of use of BraTS 2020",
        "reference": "https://www.med.upenn.edu/cbica/brats2020/",
        "release": "2020",
        "description": "Pre-operative gliomas; 1 edema, 2 necrosis and non-enhancing tumour, 3 enhancing tumour "
        "(in the download 2, 1, 4)",
    }
