"""Telling the challenge from a raw data set, or from the names of a submission's files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from nnunet_ext.errors import UserError
from nnunet_ext.submission.challenges import NIFTI_ENDINGS, Challenge
from nnunet_ext.submission.raw_data import RawData
from nnunet_ext.submission.servers import CHALLENGES

_OTHER_NAMES = {"btcv": r"(label|img)00\d\d"}


def recognised(names: Sequence[str], raws: Sequence[RawData] = ()) -> Challenge:
    """The challenge.

    Args:
        names: of the submission's files.
        raws: data sets that were converted.

    Raises:
        UserError: none fits, or several.
    """
    by_raw = [
        challenge for challenge in CHALLENGES.values() if raws and all(r.dataset in challenge.datasets for r in raws)
    ]
    if len(by_raw) == 1:
        return by_raw[0]
    stems = [_stem(name) for name in names]
    scores = {challenge.key: _fitting(challenge, stems) for challenge in by_raw or CHALLENGES.values()}
    best = max(scores.values(), default=0)
    candidates = [key for key, score in scores.items() if score == best]
    if candidates == ["amos_ct", "amos_ctmr"]:  # every name of the first fits the second
        candidates = candidates[:1] if best <= (CHALLENGES["amos_ct"].sections[0].count or 0) else candidates[1:]
    if best == 0 or len(candidates) > 1:
        found = f"{' and '.join(candidates)} have files of such names" if best else "no challenge has files such as"
        shown = ", ".join(list(names)[:3]) or "(none)"
        raise UserError(f"the challenge cannot be told: {found} ({shown}). Add --challenge ({', '.join(CHALLENGES)}).")
    return CHALLENGES[candidates[0]]


def _stem(name: str) -> str:
    base = PurePosixPath(name).name
    ending = next((ending for ending in NIFTI_ENDINGS if base.endswith(ending)), "")
    return base.removesuffix(ending) if ending else ""


def _fitting(challenge: Challenge, stems: Sequence[str]) -> int:
    """How many names the challenge could have."""
    if challenge.key in _OTHER_NAMES:
        return sum(re.fullmatch(_OTHER_NAMES[challenge.key], stem) is not None for stem in stems)
    official = {
        name.removesuffix(challenge.ending)
        for section in challenge.sections
        for name in challenge.official_names(section)
    }
    if official:
        return sum(stem in official for stem in stems)
    patterns = re.compile("|".join(f"(?:{section.pattern})" for section in challenge.sections))
    return sum(patterns.fullmatch(stem) is not None for stem in stems)
