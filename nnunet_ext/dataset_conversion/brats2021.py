"""BraTS 2021: 1251 cases; copies of its archive hold two more archives of single cases, which are passed over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from nnunet_ext.dataset_conversion.brats import BraTS
from nnunet_ext.dataset_conversion.brats2020 import FOUR_IS_ENHANCING, NO_THREE


class BraTS2021(BraTS):
    """RSNA-ASNR-MICCAI Brain Tumor Segmentation challenge 2021, task 1."""

    key = "brats2021"
    number = 137
    name = "BraTS2021"
    summary = "BraTS 2021: MR of gliomas, 4 sequences, 3 tumour regions; 1251 training and 219 validation cases"
    get_it = (
        "https://www.synapse.org/brats2021 (Synapse syn25829067, after registration), under the challenge's terms of "
        "use; a publication names the papers listed there."
    )
    looks_like = (
        "BraTS2021_Training_Data/BraTS2021_00000/ with BraTS2021_00000_flair, _t1, _t1ce, _t2 and _seg (.nii.gz), and "
        "so on to 01666 with gaps; BraTS2021_ValidationData/BraTS2021_00001/ likewise without _seg. "
        "The tar file as it was downloaded will do."
    )
    skip = r"BraTS2021_\d{5}\.(tar|tar\.gz|tgz|zip)"
    expected: ClassVar[Mapping[str, int]] = {"training": 1251, "test": 219}
    suffixes = ("_t1", "_t1ce", "_t2", "_flair")
    segmentation = "_seg"
    label_map = FOUR_IS_ENHANCING
    value_hints = NO_THREE
    about: ClassVar[Mapping[str, str]] = {
        "licence": "terms of use of BraTS 2021",
        "reference": "https://www.synapse.org/brats2021, https://arxiv.org/abs/2107.02314",
        "release": "2021",
        "description": "Pre-operative gliomas; 1 edema, 2 necrosis and non-enhancing tumour, 3 enhancing tumour "
        "(in the download 2, 1, 4)",
    }
