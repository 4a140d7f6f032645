"""Numbers, intervals and words of the few-label protocol."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import measure
import numpy as np
from few_label_protocol import ARMS, PROTOCOL

from nnunet_ext.evaluation_scripts.bootstrap import bootstrap
from nnunet_ext.evaluation_scripts.label_maps import read
from nnunet_ext.evaluation_scripts.metrics import CasePair

LABELS = {1: "anterior", 2: "posterior"}


def mean_dice(cases: Mapping[str, Mapping[str, float]]) -> float:
    """Mean over labels, then over cases; a label that is missing in both counts for nothing."""
    return float(np.nanmean([np.nanmean(list(labels.values())) for labels in cases.values()]))


def hausdorff_95(validation: Path, references: Path, cases: Iterable[str]) -> dict[str, dict[str, float]]:
    """HD95 in mm (border distances' 95th percentile, the larger of both ways) by case and label; NaN without one."""
    found = {}
    for case in cases:
        reference, predicted = (read(folder / f"{case}.nii.gz") for folder in (references, validation))
        pair = CasePair(reference.labels, predicted.labels, reference.spacing)
        found[case] = {str(label): _hausdorff_95(pair, label) for label in LABELS}
    return found


def _hausdorff_95(pair: CasePair, label: int) -> float:
    overlap = pair.overlap((label,))
    if not overlap.tp + overlap.fp or not overlap.tp + overlap.fn:
        return float("nan")
    return float(pair.border_distances((label,)).larger_percentile(95))


def summarise(result: Mapping[str, Any], references: Path) -> dict[str, Any]:
    """Everything that is written: per arm and number of labels, and paired differences."""
    runs = result["runs"]
    for run in runs:
        run["hd95"] = hausdorff_95(Path(run["validation"]), references, run["dice"])
    table = {
        arm: {str(n): _cell([r for r in runs if r["arm"] == arm and r["labels"] == n]) for n in PROTOCOL.labels}
        for arm in ARMS
    }
    compared = [(arm, control) for arm in ARMS[2:] for control in ARMS[:2]] + [("alice", "mae")]
    differences = {
        f"{arm} - {control}": {str(n): _difference(runs, arm, control, n) for n in PROTOCOL.labels}
        for arm, control in compared
    }
    return {
        "protocol": {key: getattr(PROTOCOL, key) for key in PROTOCOL.__dataclass_fields__},
        "choice": result["choice"],
        "pretraining_cpu_seconds": result["pretraining_cpu_seconds"],
        "table": table,
        "differences": differences,
        "environment": measure.environment(),
    }


def _cell(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over cases and seeds, and the seeds' own."""
    return {
        "dice": float(np.mean([mean_dice(run["dice"]) for run in runs])),
        "dice_of_seeds": [mean_dice(run["dice"]) for run in runs],
        "dice_of_labels": {
            name: float(np.mean([case[str(label)] for run in runs for case in run["dice"].values()]))
            for label, name in LABELS.items()
        },
        "hd95_mm": float(np.nanmean([list(case.values()) for run in runs for case in run["hd95"].values()])),
        "without_hd95": int(sum(np.isnan(list(case.values())).sum() for run in runs for case in run["hd95"].values())),
        "cpu_seconds": float(np.mean([run["cpu_seconds"] for run in runs])),
    }


def _difference(runs: Sequence[Mapping[str, Any]], arm: str, control: str, labels: int) -> dict[str, float]:
    """Mean difference of Dice, a case's mean over seeds, with its interval."""
    per_case = []
    for wanted in (arm, control):
        found = [run["dice"] for run in runs if run["arm"] == wanted and run["labels"] == labels]
        per_case.append(np.array([[np.mean(list(dice[case].values())) for case in sorted(dice)] for dice in found]))
    values = (per_case[0] - per_case[1]).mean(0)
    interval = bootstrap(values)
    return {
        "mean": float(values.mean()),
        "lower": float(interval.lower),
        "upper": float(interval.upper),
        "seeds_above_0": int(((per_case[0] - per_case[1]).mean(1) > 0).sum()),
    }


def text(summary: Mapping[str, Any]) -> str:
    """The report in Markdown."""
    protocol, numbers = summary["protocol"], [str(n) for n in PROTOCOL.labels]
    lines = [
        "# Few labels: what pre-training gains",
        "",
        f"Hippocampus, {protocol['test']} test cases; {len(protocol['seeds'])} seeds, each with its own labelled "
        "cases, pre-training and fine-tuning. PlainConvUNet with features "
        f"{list(protocol['features'])}; fine-tuning {protocol['epochs']} epochs of {protocol['iterations']} iterations "
        f"of {protocol['batch']} patches; pre-training {protocol['steps']['mae']} steps (MAE), "
        f"{protocol['steps']['alice']} (Alice, pairs). Equal compute: from scratch for {protocol['longer']} epochs.",
        "",
        f"| arm | recipe | {' | '.join(f'Dice, n = {n} | HD95 mm' for n in numbers)} | CPU s |",
        f"| --- | --- | {' | '.join('--- | ---' for _ in numbers)} | --- |",
    ]
    for arm, cells in summary["table"].items():
        shown = " | ".join(
            f"{cells[n]['dice']:.3f} ({', '.join(f'{d:.3f}' for d in cells[n]['dice_of_seeds'])}) | "
            f"{cells[n]['hd95_mm']:.2f}"
            for n in numbers
        )
        seconds = np.mean([cells[n]["cpu_seconds"] for n in numbers])
        lines.append(f"| {arm} | {summary['choice']['recipe'][arm]} | {shown} | {seconds:.0f} |")
    lines += ["", f"| Dice difference | {' | '.join(f'n = {n}' for n in numbers)} |", "| --- | --- | --- |"]
    for name, cells in summary["differences"].items():
        shown = " | ".join(
            f"{cells[n]['mean']:+.3f} [{cells[n]['lower']:+.3f}, {cells[n]['upper']:+.3f}]" for n in numbers
        )
        lines.append(f"| {name} | {shown} |")
    seconds = summary["pretraining_cpu_seconds"]
    spent = {m: np.mean([s for name, s in seconds.items() if name.startswith(m)]) for m in ("mae", "alice")}
    lines += [
        "",
        "Dice: 2 TP / (2 TP + FP + FN) of a label, mean over labels, cases and seeds (in brackets: the seeds). HD95: "
        "mm, the larger of both ways' 95th percentiles of border distances, cases where a label is missing left out. "
        "Intervals: 95 %, paired bootstrap over test cases, of the mean over seeds. CPU s: of `nnUNetv2_train`, start "
        f"and validation included; pre-training took {spent['mae']:.0f} (MAE) and {spent['alice']:.0f} (Alice).",
        "",
        "`mae, encoder only` (the decoder stays random) was added after all others had been tested.",
        "",
        "Recipes of pre-trained arms were chosen on other cases, with the fewest labels of the first seed: "
        + "; ".join(f"{name} {value:.3f}" for name, value in summary["choice"]["dice"].items())
        + ".",
        "",
        *(f"* {name}: {value}" for name, value in summary["environment"].items()),
    ]
    return "\n".join(lines) + "\n"
