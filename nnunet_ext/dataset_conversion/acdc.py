"""ACDC: end-diastolic and end-systolic frames of cine MR, with the phases that Info.cfg states."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import ClassVar

import numpy as np

from nnunet_ext.dataset_conversion.base import Converter, one_file_each
from nnunet_ext.dataset_conversion.cases import Case, Fault, Found, Layout, Part, Rules, Split
from nnunet_ext.dataset_conversion.sources import Download, SourceFile

_FRAME = re.compile(r"(?P<id>(?P<patient>patient\d{3})_frame(?P<frame>\d+))(?P<label>_gt)?\.nii(\.gz)?")
_INFO = re.compile(r"(?P<patient>patient\d{3})/info\.cfg")
_LINE = re.compile(r"^\s*(\w+)\s*:\s*(.*?)\s*$", re.MULTILINE)
_FIRST_TEST_PATIENT = 101


@dataclass(frozen=True)
class _Info:
    """What a patient's Info.cfg says.

    Attributes:
        phases: "ED" and "ES" -> number of the frame.
        group: of the diagnosis, such as "DCM"; the first release withholds it of test patients.
        file: where it stands.
    """

    phases: Mapping[str, int]
    group: str | None
    file: SourceFile


class ACDC(Converter):
    """Automated Cardiac Diagnosis Challenge (MICCAI 2017)."""

    key = "acdc"
    number = 27
    name = "ACDC"
    summary = "ACDC cine MR of the heart, 3 structures; end-diastolic and end-systolic frames of 100 + 50 patients"
    get_it = (
        "https://www.creatis.insa-lyon.fr/Challenge/acdc/ (Human Heart Project of Creatis, after registration). "
        "CC BY-NC-SA 4.0."
    )
    looks_like = (
        "ACDC/database/training/patient001/ with Info.cfg, patient001_frame01.nii.gz and patient001_frame01_gt.nii.gz, "
        "and so on to patient100; testing/patient101 to patient150 likewise (testing/testing and one folder of all "
        "patients are known as well, _gt files of test patients may be absent)."
    )
    published_splits = ("acdc_nnformer", "unetrpp_acdc")
    expected: ClassVar[Mapping[str, int]] = {"training": 200, "test": 100}

    def find(self, download: Download) -> Found:
        """Find the frames; their phases are those of Info.cfg, never taken from the frames' order.

        Raises:
            UserError: there is no frame of a patient.
        """
        images: list[tuple[str, SourceFile]] = []
        labels: list[tuple[str, SourceFile]] = []
        for file, match in download.matching(_FRAME):
            (labels if match["label"] else images).append((match["id"].lower(), file))
        if not images:
            raise self.nothing_found(download)
        image_of, image_faults = one_file_each(images, "image")
        label_of, label_faults = one_file_each(labels, "label")
        infos = _read_infos(download)
        faults = {fault.case: fault for fault in (*label_faults, *image_faults)}
        cases = []
        for case_id, file in image_of.items():
            made = _case(case_id, file, label_of.get(case_id), infos.get(case_id[:10]))
            if isinstance(made, Case) and case_id not in faults:
                cases.append(made)
            elif isinstance(made, Fault):
                faults.setdefault(case_id, made)
        with_image = {case for case, _ in images}
        for fault in (*_orphans(label_of, with_image), *_absent(infos, with_image)):
            faults.setdefault(fault.case, fault)
        return Found(tuple(cases), tuple(faults[case] for case in sorted(faults)), _notices(cases, infos))

    def layout(self, found: Found) -> Layout:
        """Right ventricle, myocardium, left ventricle, called as in nnU-Net's own Dataset027_ACDC."""
        return Layout(
            channel_names=("cineMRI",),
            labels={"background": 0, "RV": 1, "MLV": 2, "LVC": 3},
            licence="CC BY-NC-SA 4.0",
            reference="https://www.creatis.insa-lyon.fr/Challenge/acdc/, https://doi.org/10.1109/TMI.2018.2837502",
            release="2017",
            description="End-diastolic and end-systolic frames; labels: right ventricle's cavity, myocardium, left "
            "ventricle's cavity",
        )

    def rules(self, found: Found) -> Rules:
        """Every labelled frame shows all structures."""
        return Rules(empty="error")

    def own_splits(self, cases: Sequence[Case]) -> dict[str, Callable[[], Split]]:
        """``nnunet``: the five folds that nnU-Net's own Dataset027_ACDC makes."""
        return {"nnunet": lambda: nnunet_split(cases)}


def nnunet_split(cases: Sequence[Case]) -> Split:
    """Five folds over shuffled patients: fold k validates on every fifth patient from the k-th on.

    Args:
        cases: those with a label.
    """
    patients = np.array(sorted({case.group for case in cases}))
    np.random.RandomState(1234).shuffle(patients)
    ordered = sorted(cases, key=lambda case: case.id)
    folds = []
    for fold in range(5):
        held_out = set(patients[fold::5].tolist())
        train = tuple(case.id for case in ordered if case.group not in held_out)
        folds.append((train, tuple(case.id for case in ordered if case.group in held_out)))
    return Split(
        "nnunet",
        tuple(folds),
        source="nnunetv2.dataset_conversion.Dataset027_ACDC: RandomState(1234), folds of shuffled patients",
    )


def _read_infos(download: Download) -> dict[str, _Info]:
    """Patient -> what its Info.cfg says; patients whose file lacks the frames are absent."""
    infos: dict[str, _Info] = {}
    for file, match in download.matching(_INFO):
        entries = {name.upper(): value for name, value in _LINE.findall(file.text())}
        phases = {phase: int(entries[phase]) for phase in ("ED", "ES") if entries.get(phase, "").isdigit()}
        if phases:
            infos.setdefault(match["patient"].lower(), _Info(phases, entries.get("GROUP") or None, file))
    return infos


def _case(case_id: str, image: SourceFile, label: SourceFile | None, info: _Info | None) -> Case | Fault:
    patient, frame = case_id[:10], int(case_id.rpartition("frame")[2])
    part = _part(image, int(patient[7:]))
    if label is None and part == "training":
        return Fault(
            case_id,
            f"no label for frame {frame} (expected {case_id}_gt{image.ending} beside {image.where}). Is the training "
            "folder of the download complete?",
        )
    phases = [phase for phase, number in info.phases.items() if number == frame] if info else []
    notices: tuple[str, ...] = ()
    if info is None:
        notices = (f"no Info.cfg with ED and ES beside {image.where}: the phase of this frame is not known.",)
    elif not phases:
        named = ", ".join(f"{phase} is {number}" for phase, number in info.phases.items())
        notices = (f"frame {frame} is no phase of {info.file.where} ({named}).",)
    details = {"phase": phases[0] if phases else None, "patient_group": info.group if info else None, "frame": frame}
    return Case(case_id, part, (image,), label, patient, details, notices)


def _part(image: SourceFile, number: int) -> Part:
    """The folder decides, and where it tells nothing the patient's number."""
    for folder in reversed(PurePosixPath(image.name.lower()).parts[:-1]):
        if folder.startswith("train"):
            return "training"
        if folder.startswith("test"):
            return "test"
    return "test" if number >= _FIRST_TEST_PATIENT else "training"


def _orphans(labels: Mapping[str, SourceFile], images: set[str]) -> list[Fault]:
    return [
        Fault(case, f"the label {file.where} has no image: the download is incomplete.")
        for case, file in labels.items()
        if case not in images
    ]


def _absent(infos: Mapping[str, _Info], images: set[str]) -> list[Fault]:
    """Frames that Info.cfg names and that have no image."""
    there = {(case[:10], int(case.rpartition("frame")[2])) for case in images}
    return [
        Fault(
            f"{patient}_frame{frame:02d}",
            f"no image of the {phase} frame that {info.file.where} names: the download is incomplete.",
        )
        for patient, info in infos.items()
        for phase, frame in info.phases.items()
        if (patient, frame) not in there
    ]


def _notices(cases: Sequence[Case], infos: Mapping[str, _Info]) -> tuple[str, ...]:
    patients = sorted({case.group for case in cases if case.group in infos and _is_reversed(infos[case.group].phases)})
    if not patients:
        return ()
    return (f"{', '.join(patients)}: the ES frame comes before the ED frame (phases are taken from Info.cfg).",)


def _is_reversed(phases: Mapping[str, int]) -> bool:
    return "ED" in phases and "ES" in phases and phases["ES"] < phases["ED"]
