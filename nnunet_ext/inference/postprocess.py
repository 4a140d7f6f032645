"""Post-processing of label maps: rules found on cross-validation predictions, and applied to folders of others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_ext.dataset_conversion.files import Outputs
from nnunet_ext.errors import UserError
from nnunet_ext.evaluation_scripts.pairing import Pairs, find_pairs
from nnunet_ext.inference import provenance
from nnunet_ext.inference.case_pool import Outcome, Progress, check_earlier, describe, is_finished, make_folder, work_on
from nnunet_ext.inference.postprocess_files import FILE, RuleFile, check_fit, write
from nnunet_ext.inference.postprocess_rules import Rule, apply_rules, as_json, check_labels, label_around
from nnunet_ext.inference.postprocess_search import Found, Grid, Setting, mean, search
from nnunet_ext.inference.postprocess_tables import CaseTable, TableJob, tabulate
from nnunet_ext.inference.prediction_folders import (
    common_labels,
    find_predictions,
    foreground,
    label_values,
)
from nnunet_ext.inference.prediction_images import read_labels, reader, reader_name, voxel_volume
from nnunet_ext.labels import has_regions

RECORD = provenance.POSTPROCESSED
BOTH_EMPTY = {"one": 1.0, "nan": math.nan}
_CONVENTION = {
    "one": "Dice = 2TP / (2TP + FP + FN), 1 if reference and prediction are both empty; mean over cases",
    "nan": "Dice = 2TP / (2TP + FP + FN), no value if reference and prediction are both empty; mean over the others",
}


# ------------------------------------------------------------------------------------------------------------ determine


def determine(
    references: Path,
    predictions: Sequence[Path],
    *,
    dataset_json: Path | None = None,
    outputs: Sequence[Path] = (),
    replacements: Mapping[str, int] | None = None,
    first: Sequence[Rule] = (),
    both_empty: str = "one",
    step: int = 10,
    end: int = 750,
    unit: str = "mm3",
    held_out: bool = False,
    processes: int = 1,
    progress: Progress | None = None,
) -> tuple[RuleFile, Found]:
    """Find rules that raise the mean Dice of cross-validation predictions, and store them.

    Args:
        references: folder of label maps.
        predictions: a trained model's folder, folds, or folders of their validation cases.
        dataset_json: instead of that of the predictions.
        outputs: where to write the rules.
        replacements: label or region -> label that it becomes where all of it is small; these are tried. None: of
            regions, the innermost becomes the region around it, as BraTS' enhancing tumour.
        first: rules that are applied before, such as nnU-Net's own; they are stored with the others.
        both_empty: "one" or "nan".
        step: between thresholds in voxels, of the median volume if `unit` is "mm3".
        end: the largest one, in the same.
        unit: of the thresholds: "mm3" or "voxels".
        held_out: the user's word that nnUNetv2_predict's predictions are of cases that no training has seen.
        processes: that work at the same time.
        progress: called with the results and their number; passes them on.

    Raises:
        UserError: files do not fit, or the predictions are not of a cross-validation.
    """
    _not_of_test_cases(references, predictions, held_out)
    models = [find_predictions(place, probabilities=False) for place in predictions]
    content = common_labels(models, dataset_json)
    pairs = find_pairs(references, predictions)
    check_labels(first, content)
    if step < 1 or end < step:
        raise UserError(f"thresholds from {step} to {end} voxels: expected at least 1, and not descending")

    def scan(rules: Sequence[Rule]) -> list[CaseTable]:
        return _scan(pairs, content, [*first, *rules], processes, progress)

    tables = scan([])
    grid = Grid(step, end, unit, float(np.median([table.voxel for table in tables])))
    setting = _setting(content, replacements, BOTH_EMPTY[both_empty], grid)
    found = search(setting, lambda rules: scan(rules) if rules else tables)
    how = {
        "convention": _CONVENTION[both_empty],
        "references": str(references),
        "predictions": [str(place) for place in predictions],
        "without_prediction": pairs.missing,
        "grid": {"step_voxels": step, "end_voxels": end, "unit": unit, "voxel_mm3": grid.voxel},
        "steps": found.steps,
        "dice_before": found.before,
        "dice_after": found.after,
        "mean_dice_before": mean(np.array(list(found.before.values()))),
        "mean_dice_after": mean(np.array(list(found.after.values()))),
    }
    rules = RuleFile((*first, *found.rules), foreground(content), tuple(sorted(pairs.predictions)), how)
    for path in outputs:
        write(path, rules)
    return rules, found


def _not_of_test_cases(references: Path, predictions: Sequence[Path], held_out: bool) -> None:
    if references.resolve().name.lower() == "labelsts":
        raise UserError(
            f"{references} are labels of test cases: thresholds are determined on cross-validation, else test scores "
            "are flattered. Give the training cases' labels (labelsTr) and a trained model's validation predictions."
        )
    source = None if held_out else provenance.predicted_from(predictions)
    if source is not None:
        raise UserError(
            f"{source} was written by nnUNetv2_predict, or from its predictions, not by a cross-validation: give a "
            "trained model's folder, or its fold_X/validation or crossval_results folders. If these are training cases "
            "that the predicting model has not seen, add --held-out."
        )


def _setting(
    content: Mapping[str, Any], replacements: Mapping[str, int] | None, both_empty: float, grid: Grid
) -> Setting:
    structures = foreground(content)
    around = {name: label_around(content, labels) for name, labels in structures.items()}
    if replacements is None:
        replacements = {}
        if has_regions(content):
            sets = {name: set(labels) for name, labels in structures.items()}
            inner = [name for name in sets if not any(sets[name] > other for other in sets.values())]
            replacements = {name: around[name] for name in inner if around[name]}
    return Setting(structures, tuple(label_values(content)), around, replacements, both_empty, grid)


def _scan(
    pairs: Pairs, content: Mapping[str, Any], rules: Sequence[Rule], processes: int, progress: Progress | None
) -> list[CaseTable]:
    """The tables of all cases.

    Raises:
        UserError: a case can't be read: no rule is found without it.
    """
    values, ignore = tuple(label_values(content)), content["labels"].get("ignore")
    jobs = [
        TableJob(case, pairs.references[case], predicted, values, ignore, tuple(rules), foreground(content))
        for case, predicted in sorted(pairs.predictions.items())
    ]
    outcome = work_on(tabulate, jobs, processes, progress, Outcome())
    if outcome.failed:
        reasons = "; ".join(f"{case}: {reason}" for case, reason in sorted(outcome.failed.items())[:3])
        raise UserError(f"{len(outcome.failed)} of {len(jobs)} cases can't be used: {reasons}")
    return [outcome.done[job.case] for job in jobs]


def model_file(model: Path) -> Path:
    """Where a model's rules are stored.

    Raises:
        UserError: it is no model's folder.
    """
    if not (model / "dataset.json").is_file() or not (model / "plans.json").is_file():
        raise UserError(f"{model} is not a trained model's folder: it has no dataset.json and plans.json")
    return model / FILE


# ---------------------------------------------------------------------------------------------------------------- apply


@dataclass(frozen=True)
class ApplyJob:
    """One case.

    Attributes:
        case: its id.
        source, target: label maps.
        rules: in the order of application.
        allowed: label values that may occur.
        reader: name of nnU-Net's reader.
    """

    case: str
    source: Path
    target: Path
    rules: tuple[Rule, ...]
    allowed: frozenset[int]
    reader: str


def apply(
    folder: Path,
    output: Path,
    rules: RuleFile | Sequence[Rule],
    *,
    first: Sequence[Rule] = (),
    dataset_json: Path | None = None,
    own_cases: bool = False,
    processes: int = 1,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """Apply rules to all label maps of a folder; `Outcome.done` has the number of voxels that changed.

    Args:
        folder: of predictions.
        output: folder for the new ones, with dataset.json, plans.json and a record of what was done.
        rules: of `determine`, or one's own.
        first: applied before them, such as nnU-Net's.
        dataset_json: instead of the folder's own.
        own_cases: whether cases may be among them on which the rules were determined.
        processes: that work at the same time.
        overwrite: make cases again that are there.
        progress: called with the results and their number; passes them on.

    Raises:
        UserError: rules and predictions do not fit.
        OSError: no room on the disk.
    """
    predictions = find_predictions(folder, probabilities=False)
    content = common_labels([predictions], dataset_json)
    steps = (*first, *(rules.rules if isinstance(rules, RuleFile) else rules))
    notices = check_fit(rules, content, predictions.files, own_cases) if isinstance(rules, RuleFile) else []
    check_labels(steps, content)
    if not steps:
        notices.append("there is no rule: label maps are copied as they are")
    make_folder(output, [folder, *(path.parent for path in predictions.files.values())])
    settings = {"folder": str(folder), "rules": [as_json(rule) for rule in steps]}
    named = reader_name(content, predictions.plans, next(iter(predictions.files.values())))
    jobs = [
        ApplyJob(
            case, source, output / f"{case}{content['file_ending']}", steps, frozenset(label_values(content)), named
        )
        for case, source in sorted(predictions.files.items())
    ]
    check_earlier(output / RECORD, settings, [job.target for job in jobs], overwrite)
    describe(output, content, predictions.plans, RECORD, {**settings, **provenance.origin([folder])})
    there = [] if overwrite else [job.case for job in jobs if is_finished([job.target], [job.source])]
    left = [job for job in jobs if job.case not in set(there)]
    return work_on(process, left, processes, progress, Outcome(there=there, notices=notices))


def process(job: ApplyJob) -> int:
    """Make one case's label map; returns the number of voxels that changed.

    Raises:
        UserError: its file can't be read, or has unknown labels.
        OSError: it can't be written.
    """
    writer = reader(job.reader)
    labels, properties = read_labels(job.source, writer, job.allowed)
    changed = apply_rules(labels, voxel_volume(properties), job.rules)
    with Outputs(job.target.parent) as outputs:
        writer.write_seg(changed, str(outputs.unfinished(job.target.name)), properties)
    return int(np.count_nonzero(changed != labels))
