"""Convert a data set: find its cases, check and bring them to nnUNet_raw, write what nnU-Net and submission need."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from nnunet_ext.dataset_conversion import converter_class, files, partition
from nnunet_ext.dataset_conversion.base import Converter
from nnunet_ext.dataset_conversion.cases import Case, Fault, Found, Layout, Rules
from nnunet_ext.dataset_conversion.compressed import plain_tars, read_from
from nnunet_ext.dataset_conversion.earlier import Earlier, names_of_job
from nnunet_ext.dataset_conversion.options import Options, Report
from nnunet_ext.dataset_conversion.other_work import unusable_options
from nnunet_ext.dataset_conversion.outcome import (
    check_splits,
    label_table,
    repeated_content,
    stale_preprocessing,
    verify,
    versions,
    write_data_set,
    write_splits,
)
from nnunet_ext.dataset_conversion.partition import Partition
from nnunet_ext.dataset_conversion.pool import Result, results
from nnunet_ext.dataset_conversion.sources import Download, open_download
from nnunet_ext.dataset_conversion.state import ASIDE, State, files_of, locked, settings_of
from nnunet_ext.dataset_conversion.target import check_number, dataset_name, lies_within, nnunet_folder
from nnunet_ext.dataset_conversion.work import Job
from nnunet_ext.errors import UserError

REORIENTING_READER = "NibabelIOWithReorient"
Progress = Callable[[Iterator[Result], int, int], Iterable[Result]]
"""Called with the results, the number of cases and their bytes; passes the results on and shows how far it is."""


def convert(
    key: str,
    places: Sequence[Path | str],
    options: Options | None = None,
    own: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Convert a data set.

    Args:
        key: the data set's, of `CONVERTERS`.
        places: folders and archives of the download.
        options: for any data set.
        own: options of this data set, arguments of its converter.
        progress: shows how far it is.

    Raises:
        UserError: a download, an option or a target that can't be used; with `strict`, a bad case.
        OSError: there is no room on the disk. Nothing is half-written; the same call goes on.
    """
    options = options or Options()
    if options.fix_nan and options.check != "full":
        raise UserError("--fix-nan looks at all voxels, so it goes with --check full only.")
    start = time.monotonic()
    converter_of_key = converter_class(key)
    converter = converter_of_key.from_arguments(dict(own or {}))
    download = open_download(places, converter.skip)
    found = converter.find(download)
    if not found.cases and not found.faults:
        raise converter.nothing_found(download)
    found = _without_repeated_ids(found)
    task = _Task(converter, download, found, options)
    task.own = {name: str(value) for name, value in converter_of_key.own_arguments(own or {}).items()}
    report = task.prepare()
    if options.strict and (report.faults or task.unexpected):
        reasons = [*(f"{fault.case}: {fault.reason}" for fault in report.faults), *task.unexpected]
        raise UserError("\n  ".join(("--strict: nothing was converted:", *reasons)))
    if not options.dry_run:
        with locked(task.folder):
            task.work(report, progress)
    report.seconds = time.monotonic() - start
    return report


def _without_repeated_ids(found: Found) -> Found:
    """Refuse case ids that two cases claim: file systems may not tell upper from lower case."""
    seen: dict[str, Case] = {}
    twice = [case for case in found.cases if seen.setdefault(case.id.lower(), case) is not case]
    if not twice:
        return found
    gone = {case.id.lower() for case in twice}
    faults = [
        Fault(case.id, f"duplicate id: {case.images[0].where} and {seen[case.id.lower()].images[0].where}.")
        for case in twice
    ]
    kept = tuple(case for case in found.cases if case.id.lower() not in gone)
    return Found(kept, (*found.faults, *faults), found.notices)


class _Task:
    """One conversion, from what was found to what is written."""

    def __init__(self, converter: Converter, download: Download, found: Found, options: Options) -> None:
        self.converter, self.download, self.found, self.options = converter, download, found, options
        self.own: dict[str, str] = {}
        number = options.number if options.number is not None else converter.default_number(download)
        self.name = dataset_name(number, options.name or converter.default_name(download))
        self.folder = nnunet_folder("nnUNet_raw") / self.name
        check_number(number, self.name)
        self.layout, self.reorient_files = _reoriented(converter.layout(found), options)
        if options.keep_ending and self.layout.file_ending == ".nii.gz":
            self.layout = replace(self.layout, file_ending=_kept_ending(found))
        problem = unusable_options(
            self.layout.file_ending,
            reorient=self.reorient_files,
            copy_geometry=options.copy_geometry,
            fix_nan=options.fix_nan,
            reader=self.layout.reader,
        )
        if problem:
            raise UserError(problem)
        self.rules: Rules = converter.rules(found)
        self.state = State(self.folder)
        self.in_place = lies_within(
            self.folder, (file.container for case in found.cases for file in _files(case)) if found.cases else ()
        )
        self._check_folder()
        self.partition = self._partition()
        self.unexpected = self._unexpected()

    def _check_folder(self) -> None:
        """Nothing of others is overwritten."""
        if self.in_place or not self.folder.is_dir() or not any(self.folder.iterdir()):
            return
        record = self.state.record
        if not self.state.is_ours:
            raise UserError(
                f"{self.folder} exists and was not made by nnunet-ext convert, so nothing in it was touched. Choose "
                "another id with -d, or remove the folder."
            )
        if record and record.get("dataset") != self.converter.key:
            raise UserError(
                f"{self.folder} was converted as {record.get('dataset')}, not as {self.converter.key}. Choose another "
                "id with -d, or remove the folder."
            )

    def _partition(self) -> Partition:
        labelled = [case for case in self.found.cases if case.part == "training" and case.label is not None]
        if not labelled and not self.options.splits:
            return Partition((), frozenset(), (), ())
        return partition.resolve(
            self.converter,
            labelled,
            self.options.splits,
            with_cv=self.options.with_cv,
            hold_out=self.options.hold_out,
            broken={fault.case for fault in self.found.faults},
        )

    def _unexpected(self) -> list[str]:
        """How the number of cases differs from the complete release."""
        counts = _counts(case.part for case in self.found.cases)
        return [
            f"{counts.get(part, 0)} {part} cases found, the complete release has {number}"
            for part, number in self.converter.expected.items()
            if counts.get(part, 0) != number
        ]

    def cases(self) -> list[Case]:
        """All cases, those that the split tests among the test cases."""
        test = self.partition.test
        return [replace(case, part="test") if case.id in test else case for case in self.found.cases]

    def prepare(self) -> Report:
        """The report as far as it is known before anything is written."""
        report = Report(self.name, self.folder, dry_run=self.options.dry_run)
        report.counts = _counts(case.part for case in self.cases())
        report.faults = list(self.found.faults)
        report.notices = [*self.download.notices, *self.found.notices, *self.unexpected, *self.partition.notices]
        report.folds = _described(self.partition)
        if self.partition.folds:
            check_splits(self.name, self.state.record, bool(self.options.splits), self.options.force)
        return report

    def jobs(self) -> list[Job]:
        """What is to be done, one job a case."""
        options, values = self.options, self.layout.values()
        how = (options.mode, options.check, options.fix_nan, self.reorient_files, options.copy_geometry, self.in_place)
        ending, rules = self.layout.file_ending, self.rules
        name = None if rules.inspect is None else rules.inspect.__qualname__
        settings = settings_of(
            (ending, rules.label_map, rules.channels, sorted(values), self.layout.channel_names),
            (replace(rules, inspect=None), name, how, self.layout.reader),
        )
        return [
            Job(case, self.folder, ending, rules, values, *how, settings, reader=self.layout.reader)
            for case in self.cases()
        ]

    def work(self, report: Report, progress: Progress | None) -> None:
        """Convert the cases and write everything else."""
        self.state = State(self.folder)  # what another run wrote before this one had the lock
        self._check_folder()
        files.remove_unfinished(self.folder)
        jobs = self.jobs()
        earlier = Earlier(self.state, jobs, self.layout, self.options.force, self.in_place)
        done, left = earlier.finished(report), earlier.to_do(report)
        if not self.in_place:
            self.state.plan(name for job in left for name in names_of_job(job))
            earlier.make_room(left, report)
        with self._readable(left) as ready:
            stream = results(ready, self.options.processes)
            size = sum(file.size for job in left for file in _files(job.case))
            for job, result in stream if progress is None else progress(stream, len(left), size):
                if isinstance(result, Fault):
                    report.faults.append(result)
                    if self.options.strict:
                        raise UserError(f"--strict: stopped at {result.case}: {result.reason}")
                else:
                    done[job.case.id] = self.state.add(job, result)
        earlier.keep_good_ones(done, report)
        self._finish(report, {case: done[case] for case in sorted(done)})

    @contextmanager
    def _readable(self, jobs: Sequence[Job]) -> Iterator[list[Job]]:
        """The jobs with files that can be read in any order: compressed tars are decompressed for the time."""
        sources = [file for job in jobs for file in _files(job.case)]
        with tempfile.TemporaryDirectory(prefix=".tars", suffix=files.MARK, dir=self.folder) as scratch:
            tars = plain_tars(sources, Path(scratch))
            yield [_reading(job, tars) for job in jobs] if tars else list(jobs)

    def _finish(self, report: Report, done: dict[str, dict[str, Any]]) -> None:
        """Everything that needs all cases: dataset.json, the folds, conversion.json, nnU-Net's verification."""
        if not done:
            reasons = "".join(f"\n  {fault.case}: {fault.reason}" for fault in report.faults[:10])
            raise UserError(f"{self.name}: no case could be used, so no data set was made:{reasons}")
        if not self.in_place:
            moved = self.state.put_aside(self.state.unwanted(done), self.options.force)
            report.notices += [f"{name} is not in the data set any more: moved to {ASIDE}" for name in moved]
        report.counts = _counts(entry["part"] for entry in done.values())
        report.faults.sort(key=lambda fault: fault.case)
        report.actions = _counts(file["action"] for entry in done.values() for file in files_of(entry))
        report.notices += [f"{case}: {notice}" for case, entry in done.items() for notice in entry["notices"]]
        report.notices += repeated_content(done)
        report.notices += self._not_linked(done)
        report.labels = label_table(done, self.layout)
        report.notices += stale_preprocessing(self.name, self.state.record, done, self.layout)
        folds = partition.without(self.partition, {fault.case for fault in report.faults})
        report.notices += folds.notices[len(self.partition.notices) :]
        report.folds = _described(folds)
        splits = write_splits(self.name, folds, self.state.record, self.options.force)
        report.notices += splits.notices
        if splits.record.get("written") is False:
            report.folds = []
        dataset_json = write_data_set(
            self.folder, self.layout, done, self._training(done), self.in_place, report.notices
        )
        self.state.finish(self._record(report, done, dataset_json, splits.record))
        if self.options.check != "none" and report.counts.get("training"):
            report.problem = verify(self.folder, self.options.processes)

    def _not_linked(self, done: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Say so where the disk has no links and files were copied instead."""
        copied = [
            file["file"]
            for entry in done.values()
            for file in files_of(entry)
            if file["action"] == "copy" and file["member"] is None
        ]
        return (
            [f"{len(copied)} files were copied: the disk has no links"]
            if copied and self.options.mode != "copy"
            else []
        )

    def _training(self, done: Mapping[str, Mapping[str, Any]]) -> int:
        """Training cases that nnU-Net finds; in place also those that were left out, whose files are still there."""
        parts = [case.part for case in self.cases()] if self.in_place else [entry["part"] for entry in done.values()]
        return parts.count("training")

    def _record(
        self, report: Report, done: dict[str, Any], dataset_json: dict[str, Any], splits: dict[str, Any]
    ) -> dict[str, Any]:
        label_map = self.rules.label_map
        return {
            "dataset": self.converter.key,
            "name": self.name,
            "versions": versions(),
            "options": {**asdict(self.options), "own": self.own},
            "downloads": [str(root) for root in self.download.roots],
            "label_map": None if label_map is None else {str(old): new for old, new in label_map.items()},
            "dataset_json": dataset_json,
            "file_ending": self.layout.file_ending,
            "splits": splits,
            "left_out": [{"case": fault.case, "reason": fault.reason} for fault in report.faults],
            "notices": report.notices,
            "cases": done,
        }


def _reading(job: Job, tars: Mapping[Path, Path]) -> Job:
    """The job with what is read instead of compressed tars."""
    case = job.case
    label = None if case.label is None else read_from(case.label, tars)
    return replace(job, case=replace(case, images=tuple(read_from(file, tars) for file in case.images), label=label))


def _reoriented(layout: Layout, options: Options) -> tuple[Layout, bool]:
    """What --reorient makes of a layout, and whether files are turned."""
    if options.reorient == "default" or (options.reorient == "files" and layout.reader is None):
        return layout, options.reorient == "files"
    if options.reorient == "reader":
        return replace(layout, reader=REORIENTING_READER), False
    reader = None if layout.reader == REORIENTING_READER else layout.reader
    return replace(layout, reader=reader), options.reorient == "files"


def _kept_ending(found: Found) -> str:
    endings = {file.ending for case in found.cases for file in _files(case)}
    if endings != {".nii"}:
        raise UserError(f"--keep-ending: only where all files are .nii; found {', '.join(sorted(endings))}.")
    return ".nii"


def _files(case: Case) -> tuple[Any, ...]:
    return case.images if case.label is None else (*case.images, case.label)


def _counts(parts: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for part in parts:
        counts[part] = counts.get(part, 0) + 1
    return counts


def _described(made: Partition) -> list[str]:
    """The folds in words: what they are and how many cases they have."""
    sizes = ", ".join(f"{len(fold['train'])}/{len(fold['val'])}" for fold in made.folds)
    sources = "; ".join(
        name if source == name else f"{name} ({source})" for name, source in zip(made.names, made.sources, strict=True)
    )
    return [sources, f"cases in training/validation: {sizes}"] if made.folds else []
