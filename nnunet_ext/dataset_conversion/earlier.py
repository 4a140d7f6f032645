"""What becomes of the cases of earlier runs: ready, edited by hand, of another download, or damaged since."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunet_ext.dataset_conversion import volumes
from nnunet_ext.dataset_conversion.cases import FOLDERS, Fault, Layout
from nnunet_ext.dataset_conversion.label_values import LabelValues
from nnunet_ext.dataset_conversion.options import Report
from nnunet_ext.dataset_conversion.partition import shortened
from nnunet_ext.dataset_conversion.sources import SourceFile
from nnunet_ext.dataset_conversion.state import ASIDE, State, content_of, files_of
from nnunet_ext.dataset_conversion.work import NIFTI, Job
from nnunet_ext.errors import UserError

Entry = dict[str, Any]


def names_of_job(job: Job) -> list[str]:
    """The files that a case becomes, from the data set's folder."""
    images, labels = FOLDERS[job.case.part]
    names = [f"{images}/{job.case.id}_{channel:04d}{job.ending}" for channel in range(job.rules.channels)]
    return names if job.case.label is None else [*names, f"{labels}/{job.case.id}{job.ending}"]


class Earlier:
    """The cases that lie in the data set's folder already, beside those of this download."""

    def __init__(self, state: State, jobs: Sequence[Job], layout: Layout, force: bool, in_place: bool) -> None:
        """Take a run's jobs and what earlier runs left; nothing is changed yet."""
        self._state, self._jobs, self._layout, self._force, self._in_place = state, jobs, layout, force, in_place
        self._done: dict[str, Entry] = {}

    def finished(self, report: Report) -> dict[str, Entry]:
        """The cases that are done: from the same files by the same rules; also those whose label was edited since."""
        for job in () if self._force else self._jobs:
            entry = self._state.finished(job) or self._edited(job, report)
            if entry is not None:
                self._done[job.case.id] = entry
        report.skipped = len(self._done)
        return dict(self._done)

    def to_do(self, report: Report) -> list[Job]:
        """The other cases, but those whose place is taken by a file that no conversion wrote: these are faults."""
        left = []
        for job in self._jobs:
            if job.case.id in self._done:
                continue
            foreign = [] if self._in_place else self._foreign(job)
            if foreign:
                reason = (
                    f"{foreign[0]} is there, and no conversion wrote it: move it away, or choose another id with -d."
                )
                report.faults.append(Fault(job.case.id, reason))
            else:
                left.append(job)
        return left

    def make_room(self, jobs: Sequence[Job], report: Report) -> None:
        """Move files of these cases aside that were changed since they were made; they would be overwritten."""
        for job in jobs:
            entry = self._state.done.get(job.case.id)
            for file in files_of(entry) if entry else ():
                changed = file["action"] in ("write", "copy") and not self._state.intact(file)
                for name in self._state.put_aside([file["file"]], self._force) if changed else ():
                    report.notices.append(f"{name} was changed since it was made: moved to {ASIDE}, and made again")

    def keep_good_ones(self, done: dict[str, Entry], report: Report) -> None:
        """Add cases of other downloads, and earlier copies of cases that are bad now, where all their files are there.

        Raises:
            UserError: they were converted by other rules, so that the two can't lie in one data set.
        """
        if self._force or self._in_place:
            return
        bad = {fault.case for fault in report.faults}
        others = {
            case: entry
            for case, entry in self._state.done.items()
            if case not in done and self._is_whole(entry, links_are_good=case not in bad)
        }
        if not others:
            return
        content = content_of(self._jobs[0])
        if any(entry.get("content") != content for entry in others.values()):
            raise UserError(
                f"{self._state.folder} has {len(others)} cases of an earlier conversion with other labels or channels "
                f"({shortened(sorted(others))}): choose another id with -d, or drop them with --force."
            )
        done.update(others)
        report.notices.append(
            f"{len(others)} cases of an earlier conversion stay in the data set: {shortened(sorted(others))}. --force "
            "drops them."
        )

    def _is_whole(self, entry: Entry, links_are_good: bool) -> bool:
        """Whether a case can stay: all its files are as they were made, and none leads to what is bad now."""
        made = files_of(entry)
        return all(self._state.intact(file) and (links_are_good or file["action"] != "link") for file in made)

    def _foreign(self, job: Job) -> list[Path]:
        """Files in a case's place that no conversion claims."""
        paths = [(name, self._state.folder / name) for name in names_of_job(job)]
        return [path for name, path in paths if (path.exists() or path.is_symlink()) and not self._state.claims(name)]

    def _edited(self, job: Job, report: Report) -> Entry | None:
        """A finished case of which the label alone was changed since, by hand, to one that is good, too."""
        entry = self._state.done.get(job.case.id)
        if entry is None or not entry["label"] or entry["label"]["action"] == "link" or job.ending not in NIFTI:
            return None
        if not self._state.same(job, entry) or not all(self._state.intact(file) for file in entry["images"]):
            return None
        path = self._state.folder / entry["label"]["file"]
        counts = _counts_of(path, tuple(entry["geometry"]["written"]["shape"]), self._layout)
        if counts is None:
            return None
        entry["label"] = {**entry["label"], "values": counts, "changes": [*entry["label"]["changes"], "edited since"]}
        report.notices.append(f"{path.name} was edited since it was made: kept. --force makes it again.")
        return self._state.add(job, entry)


def _counts_of(path: Path, shape: tuple[int, ...], layout: Layout) -> dict[str, int] | None:
    """Voxels of each label of a file; None if it is no good label map of this shape."""
    if not path.is_file():
        return None
    stat = path.stat()
    file = SourceFile(path.name, path, None, stat.st_size, stat.st_mtime_ns)
    try:
        volume = volumes.read_volume(file, file.read())
        found = LabelValues(volume.values(), path.name)
    except (volumes.UnusableError, UserError):
        return None
    if volume.stored.shape != shape or not set(found.counts) <= layout.values():
        return None
    return {str(value): count for value, count in found.counts.items()}
