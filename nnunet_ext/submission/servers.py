"""The challenges, one entry each (specification datasets, section 5)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from nnunet_ext.dataset_conversion.cases import SPLIT_FILES
from nnunet_ext.dataset_conversion.msd_tasks import TASKS
from nnunet_ext.errors import UserError
from nnunet_ext.submission.challenges import Challenge, Section

if TYPE_CHECKING:
    from nnunet_ext.submission.raw_data import RawCase


def _values(*numbers: int) -> frozenset[int]:
    return frozenset(numbers)


def _up_to(last: int) -> frozenset[int]:
    return frozenset(range(last + 1))


def _numbered(pattern: str, numbers: range) -> tuple[dict[str, Any], ...]:
    return tuple({"id": pattern.format(number), "num": number} for number in numbers)


def _any_case(case: RawCase) -> bool:
    """Any case may be one of the official: the names decide."""
    return True


_AMOS_CT: tuple[str, ...] = tuple(json.loads((SPLIT_FILES / "amos_official.json").read_text("utf-8"))["ct_val"])
"""AMOS' validation cases, whatever part they have in a data set; their labels are public by now."""
_AMOS_OFFICIAL = tuple({"id": case, "num": int(case[-4:])} for case in _AMOS_CT)


def _amos_validation(case: RawCase) -> bool:
    """The CT by their ids, the MR as conversion found them."""
    return case.id in _AMOS_CT or case.details.get("official") == "val"


_SYNAPSE_QUEUE = "the challenge's evaluation queue on synapse.org; one zip"

BTCV = Challenge(
    key="btcv",
    title="BTCV, abdomen (Multi-Atlas Labeling Beyond the Cranial Vault)",
    template="label{num:04d}.nii.gz",
    sections=(Section("", _up_to(13), count=20, official=_numbered("img{:04d}", range(61, 81)), takes=_any_case),),
    upload=f"{_SYNAPSE_QUEUE}. Where the board wants the images' names: --name-template 'img{{num:04d}}.nii.gz'.",
    datasets=("btcv", "synapse"),
    alternative="img{num:04d}.nii.gz",
    aliases=("synapse",),
)
ACDC = Challenge(
    key="acdc",
    title="ACDC, cine MR (Creatis)",
    template="{patient}_{phase}.nii.gz",
    sections=(
        Section(
            "",
            _up_to(3),
            count=100,
            official=tuple(
                {"patient": f"patient{number}", "phase": phase} for number in range(101, 151) for phase in ("ED", "ES")
            ),
            takes=lambda case: case.part == "test",
        ),
    ),
    upload="the challenge's page at Creatis (Human Heart Project); one zip.",
    datasets=("acdc",),
)
BRATS2020 = Challenge(
    key="brats2020",
    title="BraTS 2020, validation",
    template="{id}.nii.gz",
    sections=(
        Section(
            "",
            _values(0, 1, 2, 4),
            count=125,
            official=_numbered("BraTS20_Validation_{:03d}", range(1, 126)),
            takes=_any_case,
        ),
    ),
    upload="CBICA's Image Processing Portal: the folder's files, or the zip.",
    datasets=("brats2020",),
    shape=(240, 240, 155),
)
BRATS2021 = Challenge(
    key="brats2021",
    title="BraTS 2021, validation",
    template="{id}.nii.gz",
    sections=(Section("", _values(0, 1, 2, 4), count=219, pattern=r"BraTS2021_\d{5}"),),
    upload=f"{_SYNAPSE_QUEUE}.",
    datasets=("brats2021",),
    shape=(240, 240, 155),
)
_GLI = r"BraTS-GLI-\d{5}-\d{3}"
BRATS2023 = Challenge(
    key="brats2023gli",
    title="BraTS 2023 adult glioma, validation",
    template="{id}.nii.gz",
    sections=(Section("", _up_to(3), count=219, pattern=_GLI),),
    upload=f"{_SYNAPSE_QUEUE}. Missing cases count as Dice 0. The final phase takes an MLCube, which is not made here.",
    datasets=("brats2023gli",),
    shape=(240, 240, 155),
)
BRATS2024 = Challenge(
    key="brats2024gli",
    title="BraTS 2024 adult glioma after treatment, validation",
    template="{id}.nii.gz",
    sections=(Section("", _up_to(4), stated=188, pattern=_GLI),),
    upload=f"{_SYNAPSE_QUEUE}. Missing cases count as Dice 0. The final phase takes an MLCube, which is not made here.",
    datasets=("brats2024gli",),
    shape=(182, 218, 182),
)
LITS = Challenge(
    key="lits",
    title="LiTS, liver and its tumours (CodaLab 17094)",
    template="test-segmentation-{num}.nii",
    sections=(
        Section(
            "",
            _up_to(2),
            count=70,
            official=_numbered("test_{}", range(70)),
            takes=lambda case: case.part == "test",
        ),
    ),
    upload="CodaLab competition 17094; the zip, with the uncompressed files at its root and nothing else in it.",
    datasets=("lits",),
    dtypes=("uint8", "int8"),
)
AMOS_CT = Challenge(
    key="amos_ct",
    title="AMOS22 task 1 (CT), validation phase",
    template="{id}.nii.gz",
    sections=(Section("results", _up_to(15), count=100, official=_AMOS_OFFICIAL, takes=_any_case),),
    upload="amos22.grand-challenge.org, validation phase; the zip. One file missing or too many makes it invalid. The "
    "test phase takes a container: --container.",
    datasets=("amos_ct", "amos_ctmr"),
    container=True,
)
AMOS_CTMR = Challenge(
    key="amos_ctmr",
    title="AMOS22 task 2 (CT and MR), validation phase",
    template="{id}.nii.gz",
    sections=(
        Section(
            "results",
            _up_to(15),
            count=120,
            official=_AMOS_OFFICIAL,
            pattern=r"amos_(05\d\d|0600)",  # MR: 20 of those from 507 on
            takes=_amos_validation,
        ),
    ),
    upload=AMOS_CT.upload,
    datasets=("amos_ctmr",),
    container=True,
)
FLARE22 = Challenge(
    key="flare22",
    title="FLARE22, validation",
    template="{id}.nii.gz",
    sections=(
        Section(
            "",
            _up_to(13),
            count=50,
            official=_numbered("FLARETs_{:04d}", range(1, 51)),
            takes=_any_case,
        ),
    ),
    upload="flare22.grand-challenge.org, validation board; one zip. The test phase takes a container: --container.",
    datasets=("flare22",),
    container=True,
)
MSD = Challenge(
    key="msd",
    title="MSD, Medical Segmentation Decathlon: all ten tasks in one zip",
    template="{id}.nii.gz",
    sections=tuple(
        Section(task.folder, _up_to(len(task.labels)), count=task.test, pattern=rf"{task.prefix}_\d+") for task in TASKS
    ),
    upload="decathlon-10.grand-challenge.org; one zip. All ten task folders must be in it.",
    datasets=("msd",),
)

CHALLENGES: dict[str, Challenge] = {
    challenge.key: challenge
    for challenge in (
        BTCV,
        ACDC,
        BRATS2020,
        BRATS2021,
        BRATS2023,
        BRATS2024,
        LITS,
        AMOS_CT,
        AMOS_CTMR,
        FLARE22,
        MSD,
    )
}
"""Key -> challenge."""


def names() -> dict[str, str]:
    """What a user may call each challenge -> its key."""
    return {name: entry.key for entry in CHALLENGES.values() for name in (entry.key, *entry.aliases)}


def challenge_named(name: str) -> Challenge:
    """A challenge by its key or another of its names.

    Raises:
        UserError: there is none.
    """
    known = names()
    if name.lower() not in known:
        raise UserError(f"there is no challenge called {name!r}; there are: {', '.join(known)}")
    return CHALLENGES[known[name.lower()]]
