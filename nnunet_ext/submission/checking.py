"""Checking a submission that lies there as a folder or zip, whoever made it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from nnunet_ext.errors import UserError
from nnunet_ext.submission.challenges import Challenge, Section
from nnunet_ext.submission.expected import Expected, expected_files, section_of
from nnunet_ext.submission.grids import grid_problem, is_finite
from nnunet_ext.submission.label_values import unexpected
from nnunet_ext.submission.nifti import LabelMap, UnreadableError, count_values, dimension_problem
from nnunet_ext.submission.places import Place, opened
from nnunet_ext.submission.problems import Problem, without_excused
from nnunet_ext.submission.raw_data import Geometry, RawData, read_raw
from nnunet_ext.submission.recognising import recognised
from nnunet_ext.submission.servers import challenge_named

Progress = Callable[[Iterable[Any], int], Iterable[Any]]
"""Wraps an iterable of so many cases to show how far it is."""


@dataclass
class Checked:
    """What a check found.

    Attributes:
        challenge: which was checked for.
        place: the folder or zip.
        problems: all that is wrong; empty: the server will take it.
        notices: what may matter.
        values: file -> value -> voxels, of the files that can be read.
        sizes: file -> bytes.
    """

    challenge: Challenge
    place: Path
    problems: list[Problem] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    values: dict[str, dict[int, int]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _File:
    """A file to look into: its name, what values it may have, and where its voxels must lie."""

    name: str
    values: frozenset[int]
    geometry: Geometry | None


def check(
    place: Path | str,
    challenge: str | None = None,
    raw: Sequence[str | Path] | str | Path = (),
    *,
    name_template: str | None = None,
    labels: Iterable[int] | None = None,
    allow_incomplete: bool = False,
    processes: int = 1,
    progress: Progress | None = None,
) -> Checked:
    """Check a folder or zip.

    Args:
        place: the folder that the server would unpack to, or the zip.
        challenge: a name as on the command line; None: told from the raw data set or the files' names.
        raw: the raw data set that `nnunet-ext convert` made, for its cases and their geometry; for MSD one a task.
        name_template: of the files' names, in place of the challenge's.
        labels: values that the server takes, in place of the challenge's.
        allow_incomplete: missing cases are no problem.
        processes: files at a time.
        progress: shows how far it is.

    Raises:
        UserError: there is nothing to check, or the challenge cannot be told.
    """
    raws = [read_raw(one) for one in ([raw] if isinstance(raw, str | Path) else raw)]
    with opened(place) as found:
        named = challenge_named(challenge) if challenge else recognised(found.names, raws)
        expected = [_expected(named, section, raws, name_template) for section in named.sections]
        done = check_place(
            found, named, expected, labels, allow_incomplete=allow_incomplete, processes=processes, progress=progress
        )
    done.notices += background_notices(done.values)
    return done


def background_notices(values: Mapping[str, Mapping[int, int]]) -> list[str]:
    """What an overlooked failure of a model would look like.

    Args:
        values: file -> value -> voxels.
    """
    empty = [name for name, counts in values.items() if not any(number for value, number in counts.items() if value)]
    if not empty:
        return []
    if len(empty) == len(values):
        return ["ALL LABEL MAPS ARE BACKGROUND ONLY: is that the right folder?"]
    return [f"{len(empty)} of {len(values)} label maps are background only: {', '.join(empty[:5])}"]


def _expected(challenge: Challenge, section: Section, raws: Sequence[RawData], template: str | None) -> Expected:
    fitting = [raw for raw in raws if section_of(challenge, raw) is section]
    if len(fitting) > 1:
        raise UserError(f"{' and '.join(raw.name for raw in fitting)} are the same task; give --raw once a task")
    return expected_files(challenge, section, fitting[0] if fitting else None, template)


def check_place(
    place: Place,
    challenge: Challenge,
    expected: Sequence[Expected],
    labels: Iterable[int] | None = None,
    *,
    allow_incomplete: bool = False,
    processes: int = 1,
    progress: Progress | None = None,
) -> Checked:
    """Check an open folder or zip; see `check`.

    Args:
        place: what lies there.
        challenge: which.
        expected: the files of each section.
        labels: values in place of the challenge's.
        allow_incomplete: missing cases are no problem.
        processes: files at a time.
        progress: shows how far it is.
    """
    done = Checked(challenge, place.path, list(place.problems))
    done.sizes = {name: place.size(name) for name in place.names}
    files = _sorted_out(place, challenge, expected, None if labels is None else frozenset(labels), done)
    if not files:
        done.problems.append(Problem("layout", str(place.path), f"not one file that {challenge.key} takes"))
    odd: list[str] = []
    with ThreadPoolExecutor(max(1, processes)) as pool:
        looked = pool.map(lambda file: _look(place, challenge, file), files)
        for file, (problems, values, shape) in zip(
            files, looked if progress is None else progress(looked, len(files)), strict=True
        ):
            done.problems += problems
            if values is not None:
                done.values[file.name] = values
            if file.geometry is None and challenge.shape and shape not in (None, challenge.shape):
                odd.append(f"{file.name} ({' x '.join(map(str, shape or ()))})")
    if odd:
        usual = " x ".join(map(str, challenge.shape or ()))
        done.notices.append(f"{len(odd)} files have not the challenge's {usual} voxels, such as {odd[0]}")
    done.problems = without_excused(done.problems, allow_incomplete)
    return done


def _sorted_out(
    place: Place,
    challenge: Challenge,
    expected: Sequence[Expected],
    labels: frozenset[int] | None,
    done: Checked,
) -> list[_File]:
    """Compare names; returns the files that are where they should be."""
    files: list[_File] = []
    taken: set[str] = set()
    for part in expected:
        values = labels if labels is not None else part.section.values
        here = [name for name in place.names if str(PurePosixPath(name).parent) == (part.section.folder or ".")]
        found = [name for name in here if part.fits(PurePosixPath(name).name)]
        for name in found:
            case = part.cases.get(PurePosixPath(name).name)
            files.append(_File(name, values, None if case is None else case.original))
        taken.update(found)
        done.problems += [problem for problem in part.problems if problem.kind != "missing"]
        done.problems += _missing(part, found)
        done.notices += part.notices
    done.problems += [_misplaced(name, challenge, expected) for name in place.names if name not in taken]
    return files


def _missing(part: Expected, found: Sequence[str]) -> list[Problem]:
    section = part.section
    if not found and section.folder:
        text = f"no file of {section.count or len(part.cases)} in the folder {section.folder}/"
        return [Problem("missing", f"{section.folder}/", text)]
    there = {PurePosixPath(name).name for name in found}
    problems = [Problem("missing", part.path(name), "is not there") for name in sorted(part.cases) if name not in there]
    wanted = section.count
    if not problems and wanted is not None and len(found) != wanted:
        kind = "missing" if len(found) < wanted else "extra"
        problems.append(Problem(kind, section.folder or "files", f"{len(found)}; the challenge has {wanted} cases"))
    return problems


def _misplaced(name: str, challenge: Challenge, expected: Sequence[Expected]) -> Problem:
    """What to say of a file that is none of those expected."""
    path = PurePosixPath(name)
    if any(part.startswith((".", "__MACOSX")) or part.lower() in ("thumbs.db", "desktop.ini") for part in path.parts):
        return Problem("extra", name, "hidden, or put there by the operating system: remove it")
    folders = [part.section.folder for part in expected if part.fits(path.name)]
    if folders:
        wanted = f"in {folders[0]}/" if folders[0] else "at the root"
        return Problem("layout", name, f"in the wrong folder: it must be {wanted}")
    other = {".nii": f"{path.name}.gz", ".gz": path.name.removesuffix(".gz")}.get(path.suffix, "")
    if any(part.fits(other) for part in expected):
        compressed = "compressed, .nii.gz" if challenge.ending == ".nii.gz" else "not compressed, .nii"
        return Problem("compression", name, f"must be {compressed} ({other})")
    if challenge.alternative and path.name in challenge.official_names(challenge.sections[0], challenge.alternative):
        return Problem("extra", name, f"if the board wants such names: --name-template '{challenge.alternative}'")
    example = next((n for part in expected for n in sorted(part.cases)), None) or challenge.template
    return Problem("extra", name, f"no file of this challenge, whose files have names such as {example}")


def _look(
    place: Place, challenge: Challenge, file: _File
) -> tuple[list[Problem], dict[int, int] | None, tuple[int, ...] | None]:
    """Problems, voxels of each value and shape of a file."""
    try:
        labels = place.label_map(file.name)
    except UnreadableError as error:
        return [Problem("unreadable", file.name, str(error))], None, None
    problems = _header_problems(challenge, file.name, labels)
    flat = dimension_problem(file.name, labels)
    if flat is not None:
        return [*problems, flat], None, None
    if file.geometry is not None:
        grid = grid_problem(file.name, labels.geometry(), file.geometry, "the original image")
        problems += [] if grid is None else [grid]
    elif not is_finite(labels.geometry()):
        text = "its spacing, sform or qform has numbers that are not finite, or a spacing of 0"
        problems.append(Problem("header", file.name, text))
    counts, noise = count_values(labels)
    if noise:
        problems.append(Problem("values", file.name, noise))
        return problems, None, labels.stored.shape
    wrong = unexpected(file.name, counts, file.values, challenge.key)
    return problems + ([] if wrong is None else [wrong]), counts, labels.stored.shape


def _header_problems(challenge: Challenge, name: str, labels: LabelMap) -> list[Problem]:
    problems = []
    if labels.compressed != name.endswith(".gz"):
        state = "compressed" if labels.compressed else "not compressed"
        problems.append(Problem("compression", name, f"its content is {state}, against its ending"))
    if labels.header.sizeof_hdr != 348:
        problems.append(Problem("header", name, "NIfTI-2; servers read NIfTI-1"))
    if labels.trailing:
        problems.append(Problem("header", name, "there is more after the voxels that its header states"))
    dtype = labels.header.get_data_dtype()
    if dtype.newbyteorder("=").name not in challenge.dtypes:
        problems.append(Problem("header", name, f"stored as {dtype}; must be {' or '.join(challenge.dtypes)}"))
    slope, inter = labels.scaling
    if (slope, inter) != (1.0, 0.0):
        problems.append(Problem("header", name, f"scl_slope {slope:g} and scl_inter {inter:g}; must be 1 and 0"))
    return problems
