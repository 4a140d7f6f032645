"""SSH-UNet on AMOS: no published number could be had; the convention and the cases are known."""

from __future__ import annotations

from nnunet_ext.dataset_conversion.amos import ORGANS
from nnunet_ext.evaluation_scripts.papers.numbering import amos_with_background
from nnunet_ext.evaluation_scripts.papers.paper import Column, Paper, Row

_NAMES = (
    *("bg", "spl", "rkid", "lkid", "gall", "eso", "liver", "sto", "aorta", "IVC", "panc", "rad", "lad", "duo"),
    *("bladder", "prost/ut"),
)
_BY_ORGAN = tuple(Column(name, (organ,)) for name, organ in zip(_NAMES, ORGANS, strict=True))

PAPER = Paper(
    key="sshunet-amos",
    title="SSH-UNet on AMOS 2022 (CT), 15 organs and the background",
    source="C. I. Ugwu, S. Casarin, O. Lanz, SSH-UNet (arXiv:2307.12853); no numbers could be had (specification "
    "SSH-UNet, section 4.6)",
    convention="sshunet",
    structures=amos_with_background,
    columns=(*_BY_ORGAN, Column("mean of 16", ORGANS), Column("15 organs", ORGANS[1:])),
    rows=(Row("SSH-UNet", (None,) * (len(ORGANS) + 2)),),
    method="SSH-UNet",
    cases="the 100 validation CTs of the authors' list, which are the challenge's",
    split=("amos_sshunet", "val"),
    caveats=(
        "The published code includes the BACKGROUND in its mean, and keeps the largest component of every class.",
        "Which cases the paper's table is about is not known; those of the authors' validation list are taken.",
    ),
    withheld=("All: AMOS results are not in the authors' repository, and the paper's tables were not at hand.",),
    percent=False,
    digits=4,
)
