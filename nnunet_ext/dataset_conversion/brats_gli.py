"""BraTS 2023 and 2024, adult glioma: several time points a patient, which no split separates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from nnunet_ext.dataset_conversion.brats import BraTS

_FIRST_AFTER_TREATMENT = 100
"""Time points of the 2024 release begin here; those of 2023 are 000 and 001."""


class _GLI(BraTS):
    suffixes = ("-t1n", "-t1c", "-t2w", "-t2f")
    segmentation = "-seg"
    after_treatment: ClassVar[bool]

    def group(self, case_id: str) -> str:
        """The patient: all but the time point."""
        return case_id.rpartition("-")[0]

    def details(self, case_id: str) -> dict[str, Any]:
        """Patient and time point."""
        return {"patient": self.group(case_id), "time_point": case_id.rpartition("-")[2]}

    def download_notices(self, cases: Sequence[str]) -> tuple[str, ...]:
        """Cases whose time points are the other year's."""
        other = [
            case
            for case in cases
            if (int(case.rpartition("-")[2]) >= _FIRST_AFTER_TREATMENT) is not self.after_treatment
        ]
        if not other:
            return ()
        year, key = ("2023", "brats2023gli") if self.after_treatment else ("2024", "brats2024gli")
        whole = "All" if len(other) == len(cases) else f"{len(other)} of {len(cases)}"
        return (
            f"{whole} cases (such as {other[0]}) have time points of BraTS {year}, where labels mean something else: "
            f"convert that release by itself with `nnunet-ext convert {key}`.",
        )


class BraTS2023GLI(_GLI):
    """ASNR-MICCAI BraTS 2023, adult glioma (pre-operative)."""

    key = "brats2023gli"
    number = 823
    name = "BraTS2023GLI"
    summary = "BraTS 2023 GLI: MR of gliomas, 4 sequences, 3 tumour regions; 1251 training and 219 validation cases"
    get_it = (
        "https://www.synapse.org/brats2023 (Synapse syn51156910, after registration), under the challenge's terms of "
        "use; a publication names the papers listed there."
    )
    looks_like = (
        "ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData/BraTS-GLI-00000-000/ with BraTS-GLI-00000-000-t1n, -t1c, "
        "-t2w, -t2f and -seg (.nii.gz), and so on; ASNR-MICCAI-BraTS2023-GLI-Challenge-ValidationData/ likewise "
        "without -seg."
    )
    expected: ClassVar[Mapping[str, int]] = {"training": 1251, "test": 219}
    after_treatment = False
    label_map: ClassVar[Mapping[int, int]] = {0: 0, 2: 1, 1: 2, 3: 3}
    value_hints: ClassVar[Mapping[int, str]] = {
        4: "BraTS 2023 has no label 4: it is the enhancing tumour of releases until 2021 (brats2020, brats2021) and "
        "the resection cavity of 2024 (brats2024gli)."
    }
    about: ClassVar[Mapping[str, str]] = {
        "licence": "terms of use of BraTS 2023",
        "reference": "https://www.synapse.org/brats2023",
        "release": "2023",
        "description": "Pre-operative gliomas; 1 edema, 2 necrosis, 3 enhancing tumour (in the download 2, 1, 3)",
    }


class BraTS2024GLI(_GLI):
    """BraTS 2024, adult glioma after treatment: with the resection cavity."""

    key = "brats2024gli"
    number = 226
    name = "BraTS2024GLI"
    summary = "BraTS 2024 GLI: MR of gliomas after treatment, 4 sequences, 3 tumour regions and the resection cavity"
    get_it = (
        "https://www.synapse.org/brats2024 (Synapse syn53708249, after registration), under the challenge's terms of "
        "use; a publication names the papers listed there."
    )
    looks_like = (
        "training_data1_v2/BraTS-GLI-02063-100/ with BraTS-GLI-02063-100-t1n, -t1c, -t2w, -t2f and -seg (.nii.gz), and "
        "so on; training_data_additional/ likewise (name both, or the folder above); validation_data/ likewise without "
        "-seg."
    )
    after_treatment = True
    label_map = None
    plain: ClassVar[Mapping[str, int | tuple[int, ...]]] = {"background": 0, "NETC": 1, "SNFH": 2, "ET": 3, "RC": 4}
    nested: ClassVar[Mapping[str, int | tuple[int, ...]]] = {
        "background": 0,
        "whole tumor": (1, 2, 3),
        "tumor core": (1, 3),
        "enhancing tumor": 3,
        "resection cavity": 4,
    }
    order = (2, 1, 3, 4)
    about: ClassVar[Mapping[str, str]] = {
        "licence": "terms of use of BraTS 2024",
        "reference": "https://www.synapse.org/brats2024",
        "release": "2024",
        "description": "Gliomas after treatment; 1 non-enhancing tumour core, 2 surrounding FLAIR hyperintensity, "
        "3 enhancing tissue, 4 resection cavity, as in the download",
    }
