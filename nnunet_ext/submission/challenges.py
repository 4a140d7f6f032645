"""What a challenge's server takes, as plain data; `servers.py` has the challenges themselves."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from string import Formatter
from typing import TYPE_CHECKING, Any

from nnunet_ext.errors import UserError

if TYPE_CHECKING:
    from nnunet_ext.submission.raw_data import RawCase

_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
NIFTI_ENDINGS = (".nii.gz", ".nii")


def always(case: RawCase) -> bool:
    """Takes the test cases that have no published label: those that a server scores."""
    return case.part == "test" and not case.labelled


@dataclass(frozen=True)
class Section:
    """The files of one folder of a submission; all but MSD's have one.

    Attributes:
        folder: "" for the root.
        values: that a label map may have.
        count: how many files there must be; None: not known for certain.
        stated: how many there should be where that is not certain, for a notice.
        official: what tells each case of the challenge that is known; fields as in `Challenge.template`.
        pattern: regular expression of the ids of cases beyond these; "": there are none.
        takes: whether a case of the raw data set is one of the challenge's.
    """

    folder: str
    values: frozenset[int]
    count: int | None = None
    stated: int | None = None
    official: tuple[Mapping[str, Any], ...] = ()
    pattern: str = ""
    takes: Callable[[RawCase], bool] = always


@dataclass(frozen=True)
class Challenge:
    """What a server takes.

    Attributes:
        key: its name on the command line.
        title: for people.
        template: a file's name; fields are those of `name_fields`.
        alternative: another template that some say the server wants; "": none.
        sections: the folders.
        upload: where and how to upload; one or two sentences.
        datasets: keys of converters whose data sets fit.
        dtypes: stored types that the server reads; the first is what is written.
        shape: of every volume (x, y, z), where all have the same.
        container: the challenge also takes a container, see `container.py`.
        aliases: other names on the command line.
    """

    key: str
    title: str
    template: str
    sections: tuple[Section, ...]
    upload: str
    datasets: tuple[str, ...]
    alternative: str = ""
    dtypes: tuple[str, ...] = ("uint8",)
    shape: tuple[int, int, int] | None = None
    container: bool = False
    aliases: tuple[str, ...] = ()

    @property
    def ending(self) -> str:
        """.nii.gz or .nii."""
        return next(ending for ending in NIFTI_ENDINGS if self.template.endswith(ending))

    def file_name(self, fields: Mapping[str, Any], template: str | None = None) -> str:
        """The name of a case's file.

        Args:
            fields: see `template`.
            template: in place of the challenge's.

        Raises:
            UserError: the template asks for a field that the case lacks, or makes a name that no server takes.
        """
        wanted = template or self.template
        try:
            name = wanted.format(**fields)
        except KeyError as error:
            raise UserError(
                f"{fields.get('id', 'the case')} has no {error.args[0]!r}, which the file name {wanted} needs; its "
                f"fields are {', '.join(sorted(fields))} (of the case's id, and its details in conversion.json)."
            ) from error
        except (ValueError, IndexError, AttributeError, TypeError) as error:
            raise UserError(
                f"--name-template {wanted!r} cannot be filled in ({error}); an example: label{{num:04d}}.nii.gz"
            ) from error
        if not _SAFE.fullmatch(name) or not name.endswith(self.ending):
            raise UserError(
                f"{wanted!r} makes the file name {name!r}: {self.key} takes names of letters, digits and ._- that end "
                f"with {self.ending}"
            )
        return name

    def official_names(self, section: Section, template: str | None = None) -> tuple[str, ...]:
        """The names of a section's known cases, without any data set.

        Raises:
            UserError: the template needs more than is known of them.
        """
        known = {name for fields in section.official[:1] for name in fields}
        unknown = sorted(set(_fields(template or self.template)) - known) if known else []
        if unknown:
            raise UserError(
                f"--name-template {template}: without --raw, only {', '.join(sorted(known))} of {self.key}'s cases are "
                f"known, not {', '.join(unknown)}: give --raw, too"
            )
        return tuple(self.file_name(fields, template) for fields in section.official)

    def name_pattern(self, section: Section, template: str | None = None) -> str:
        """Regular expression of the names of cases beyond the known; "": there are none."""
        if not section.pattern:
            return ""
        known = {"id": f"(?:{section.pattern})", "num": r"\d+"}
        parts = []
        for text, field, _, _ in _parsed(template or self.template):
            parts.append(re.escape(text))
            parts += [] if field is None else [known.get(field, r"[A-Za-z0-9._-]+")]
        return "".join(parts)


def _parsed(template: str) -> list[tuple[str, str | None, str | None, str | None]]:
    try:
        return list(Formatter().parse(template))
    except ValueError as error:
        raise UserError(f"--name-template {template!r} cannot be filled in ({error})") from error


def _fields(template: str) -> list[str]:
    return [field for _, field, _, _ in _parsed(template) if field]


def name_fields(case: RawCase) -> dict[str, Any]:
    """What a file's name can be made of.

    `id` (the case's), `num` (the number at its end), `patient`, and the case's details in conversion.json, such as
    `phase`, in capitals.
    """
    fields: dict[str, Any] = {
        name: value for name, value in case.details.items() if isinstance(value, str | int | float)
    }
    number = re.search(r"(\d+)\D*$", case.id)
    fields.update(id=case.id, patient=case.group or case.id)
    if number:
        fields["num"] = int(number[1])
    if isinstance(fields.get("phase"), str):
        fields["phase"] = fields["phase"].upper()
    return fields
