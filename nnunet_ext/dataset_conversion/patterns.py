"""File name patterns with placeholders, such as ``imgs/{id}/{channel}.nii.gz``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nnunet_ext.dataset_conversion.raw_tree import place_name
from nnunet_ext.dataset_conversion.sources import IMAGE_ENDINGS, Download, SourceFile
from nnunet_ext.errors import UserError

CHANNEL = "channel"
_PLACEHOLDER = re.compile(r"\{(\w+)\}|(\*\*/?)|(\*)|(\?)|([^{*?]+|\{)")


@dataclass(frozen=True)
class Matched:
    """A file that fits: its case id, the text of its channel ("" without one), and the patient if the pattern tells."""

    case: str
    channel: str
    patient: str
    file: SourceFile


@dataclass(frozen=True)
class Pattern:
    """A pattern: ``{id}`` and other placeholders stand for parts of names, * for any part, ** for any folders.

    Attributes:
        text: as given.
        fields: the placeholders but ``{channel}``, in order; their texts, joined by _, are the case id.
    """

    text: str
    expression: re.Pattern[str]
    fields: tuple[str, ...]

    @property
    def has_channel(self) -> bool:
        """Whether the file names tell the channel."""
        return CHANNEL in self.expression.groupindex

    def matches(self, download: Download) -> Iterator[Matched]:
        """The image files of a download whose names end with what the pattern describes.

        The name of the download's folder may be part of the pattern.
        """
        above = f"{place_name(download)}/" if len(download.roots) == 1 else ""
        for file in download.images():
            match = self.expression.search(above + file.name)
            if match:
                texts = match.groupdict()
                case = "_".join(texts[field] for field in self.fields)
                yield Matched(case, texts.get(CHANNEL, ""), texts.get("patient", ""), file)


def compile_pattern(option: str, text: str, tokens: Sequence[str] = ()) -> Pattern:
    """Understand a pattern.

    Args:
        option: where it was given, for messages.
        text: the pattern. It need not begin at the download's root; upper and lower case are the same.
        tokens: what ``{channel}`` may be; none: anything.

    Raises:
        UserError: it has no ``{id}`` or other placeholder for the case.
    """
    parts, seen = [], []
    clean = text.replace("\\", "/").removeprefix("./").lstrip("/")
    any_ending = clean.endswith("}.*")  # of an image: the id of a.nii.gz is a
    for match in _PLACEHOLDER.finditer(clean.removesuffix(".*") if any_ending else clean):
        name, folders, star, question, literal = match.groups()
        if name in seen:
            parts.append(f"(?P={name})")
        elif name == CHANNEL:
            parts.append(f"(?P<{CHANNEL}>{'|'.join(map(re.escape, tokens)) or '[^/]+'})")
        elif name:
            parts.append(f"(?P<{name}>[^/]+)")
        elif folders:
            parts.append("(?:.*/)?" if folders.endswith("/") else ".*")
        else:
            parts.append("[^/]*" if star else "[^/]" if question else re.escape(literal))
        if name and name not in seen:
            seen.append(name)
    if any_ending:
        parts.append(f"(?:{'|'.join(map(re.escape, IMAGE_ENDINGS))})")
    fields = tuple(name for name in seen if name != CHANNEL)
    if not fields or any(name[0].isdigit() for name in seen):
        raise UserError(
            f"{option} {text!r} does not say where the case id stands; expected such as "
            "imagesTr/{id}_{channel}.nii.gz or masks/{id}.nii.gz"
        )
    try:
        return Pattern(text, re.compile(rf"(?:^|/){''.join(parts)}$", re.IGNORECASE), fields)
    except re.error as error:
        raise UserError(f"{option} {text!r} is not understood: {error}") from error
