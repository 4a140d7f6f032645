"""A small data set of two channels with a label map, to test what conversion does for every data set."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from trees import volumes

from nnunet_ext.dataset_conversion.base import Converter, one_file_each, pair
from nnunet_ext.dataset_conversion.cases import Case, Found, Layout, Rules
from nnunet_ext.dataset_conversion.sources import Download

LABEL_MAP = {0: 0, 1: 2, 2: 1, 4: 3}
CHANNELS = ("T1", "T2")
SHAPE = (10, 12, 8)


class Toy(Converter):
    """Files ``ID_t1.nii.gz``, ``ID_t2.nii.gz``, ``ID_seg.nii.gz``, anywhere; a patient's cases begin alike."""

    key = "toy"
    number = 77
    name = "Toy"
    summary = "a toy"
    get_it = "nowhere."
    looks_like = "p1a_t1.nii.gz and so on."

    def __init__(self, **rules: Any) -> None:
        self._rules = rules

    @classmethod
    def from_arguments(cls, arguments: Any) -> Toy:
        """Those of the arguments that are fields of `Rules`."""
        known = {field.name for field in dataclasses.fields(Rules)}
        return cls(**{name: value for name, value in arguments.items() if name in known})

    def find(self, download: Download) -> Found:
        claims: dict[str, list[tuple[str, Any]]] = {"t1": [], "t2": [], "seg": []}
        for file, match in download.matching(r"(?P<id>p\d\w)_(?P<kind>t1|t2|seg)\.nii(\.gz)?"):
            claims[match["kind"].lower()].append((match["id"], file))
        found, faults = {}, []
        for kind, files in claims.items():
            found[kind], double = one_file_each(files, kind)
            faults += double
        images = {case: [found["t1"].get(case), found["t2"].get(case)] for case in sorted({*found["t1"], *found["t2"]})}
        complete, lacking = pair(images, found["seg"], channels=CHANNELS)
        bad = {fault.case for fault in faults}
        cases = tuple(
            Case(case, "training" if label else "test", files, label, group=case[:2])
            for case, (files, label) in complete.items()
            if case not in bad
        )
        return Found(cases, (*faults, *(fault for fault in lacking if fault.case not in bad)))

    def layout(self, found: Found) -> Layout:
        return Layout(CHANNELS, {"background": 0, "one": 1, "two": 2, "three": 3}, licence="none")

    def rules(self, found: Found) -> Rules:
        return Rules(**{"label_map": LABEL_MAP, "channels": 2, **self._rules})


def build(root: Path, cases: tuple[str, ...] = ("p1a", "p1b", "p2a", "p3a", "p4a", "p5a")) -> dict[str, np.ndarray]:
    """Write the download; returns each case's labels in its own values."""
    truth = {}
    for number, case in enumerate(cases):
        transform = volumes.affine(seed=number)
        for channel in range(2):
            image = volumes.image(10 * number + channel, SHAPE)
            volumes.save(root / case / f"{case}_t{channel + 1}.nii.gz", image, transform)
        truth[case] = volumes.labels(number, (1, 2, 4), SHAPE)
        volumes.save(root / case / f"{case}_seg.nii.gz", truth[case], transform)
    return truth


def mapped(labels: np.ndarray) -> np.ndarray:
    """The labels in the data set's values."""
    made = np.zeros_like(labels)
    for old, new in LABEL_MAP.items():
        made[labels == old] = new
    return made
