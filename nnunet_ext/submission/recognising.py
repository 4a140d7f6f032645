"""Telling the challenge from a raw data set, or from the names of a submission's files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from nnunet_ext.errors import UserError
from nnunet_ext.submission.challenges import Challenge
from nnunet_ext.submission.raw_data import RawData
from nnunet_ext.submission.servers import CHALLENGES


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
    stems = [PurePosixPath(name).name.removesuffix(".gz").removesuffix(".nii") for name in names]
    scores = {challenge.key: _fitting(challenge, stems) for challenge in by_raw or CHALLENGES.values()}
    best = max(scores.values(), default=0)
    candidates = [key for key, score in scores.items() if score == best]
    if candidates == ["amos_ct", "amos_ctmr"]:  # not one MR
        candidates = candidates[:1]
    if best == 0 or len(candidates) > 1:
        found = f"{' and '.join(candidates)} have files of such names" if best else "no challenge has files such as"
        shown = ", ".join(list(names)[:3]) or "(none)"
        raise UserError(f"the challenge cannot be told: {found} ({shown}). Add --challenge ({', '.join(CHALLENGES)}).")
    return CHALLENGES[candidates[0]]


def _fitting(challenge: Challenge, stems: Sequence[str]) -> int:
    """How many names the challenge could have, whatever their endings."""
    names = [f"{stem}{challenge.ending}" for stem in stems]
    templates = [challenge.template, *filter(None, [challenge.alternative])]
    named = [(section, template) for section in challenge.sections for template in templates]
    official = {name for section, template in named for name in challenge.official_names(section, template)}
    patterns = [pattern for section, template in named if (pattern := challenge.name_pattern(section, template))]
    return sum(name in official or any(re.fullmatch(pattern, name) for pattern in patterns) for name in names)
