"""`nnunet-ext postprocess`: rules on label maps, their search on cross-validation, files, and faults."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import predicted
import pytest
from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation
from scipy import ndimage

from nnunet_ext.cli import main
from nnunet_ext.errors import UserError
from nnunet_ext.inference.ensemble import ensemble
from nnunet_ext.inference.postprocess import apply, determine
from nnunet_ext.inference.postprocess_files import FILE, RuleFile, nnunet_rules, read
from nnunet_ext.inference.postprocess_options import rules_of, volume
from nnunet_ext.inference.postprocess_rules import Rule, apply_rules, label_around
from nnunet_ext.inference.postprocess_search import left_out_gain
from nnunet_ext.inference.provenance import predicted_from

SHAPE = (8, 24, 24)
BRATS: dict[str, Any] = {
    "labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3},
    "regions_class_order": [1, 2, 3],
    "file_ending": ".nii.gz",
}


def noisy(seed: int, highest: int = 3) -> np.ndarray:
    """Blobs of several labels with many small components."""
    values = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 1.2)
    return np.digitize(values, np.quantile(values, np.linspace(0.6, 0.95, highest))).astype(np.uint8)


def slowly(labels: np.ndarray, rule: Rule, voxel: float) -> np.ndarray:
    """A rule without crops."""
    mask = np.isin(labels, rule.labels)
    numbers, count = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = np.array([(numbers == number).sum() for number in range(1, count + 1)])
    result = labels.copy()
    below = rule.below if rule.unit == "voxels" else rule.below / voxel
    if rule.kind == "replace":
        if mask.sum() < below:
            result[mask] = rule.becomes
        return result
    goes = sizes < (sizes.max() if rule.kind == "largest" else below)
    result[np.isin(numbers, 1 + np.flatnonzero(goes))] = rule.becomes
    return result


# ---------------------------------------------------------------------------------------------------------------- rules


@pytest.mark.parametrize("labels", [(1,), (3,), (2, 3), (1, 2, 3)])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_largest_component_is_nnunets(labels: tuple[int, ...], seed: int) -> None:
    given = noisy(seed)
    expected = remove_all_but_largest_component_from_segmentation(given, [labels])
    assert np.array_equal(apply_rules(given, 1, [Rule("largest", "x", labels)]), expected)
    assert np.array_equal(given, expected) == (ndimage.label(np.isin(given, labels), np.ones((3, 3, 3)))[1] == 1)


def test_of_equally_large_components_all_are_kept_as_by_nnunet() -> None:
    given = np.zeros((1, 5, 9), np.uint8)
    given[0, 1, [1, 2, 5, 6, 8]] = 1
    found = apply_rules(given, 1, [Rule("largest", "x", (1,))])
    assert np.array_equal(found, remove_all_but_largest_component_from_segmentation(given, 1))
    assert found.sum() == 4


@pytest.mark.parametrize(
    "rule",
    [
        Rule("smallest", "x", (2,), 0, 12.5),
        Rule("smallest", "x", (2, 3), 1, 10, "voxels"),
        Rule("replace", "x", (3,), 2, 1000),
        Rule("replace", "x", (3,), 2, 1, "voxels"),
        Rule("largest", "x", (3,), 2),
    ],
)
def test_rules_one_by_one(rule: Rule) -> None:
    given = noisy(3)
    found = apply_rules(given, 0.5, [rule])
    assert np.array_equal(found, slowly(given, rule, 0.5))
    assert np.array_equal(found, given) == (rule.below == 1)


def test_rules_see_what_earlier_ones_left() -> None:
    given = noisy(4)
    rules = [
        Rule("replace", "a", (3,), 1, 5000, "voxels"),
        Rule("smallest", "b", (1,), 2, 30, "voxels"),
        Rule("largest", "c", (2,)),
        Rule("largest", "d", (3,)),
    ]
    expected = given
    for rule in rules[:3]:
        expected = slowly(expected, rule, 1)
    assert np.array_equal(apply_rules(given, 1, rules), expected)
    assert not (expected == 3).any()


def test_thresholds_are_exact_and_diagonal_neighbours_connect() -> None:
    given = np.zeros((4, 4, 4), np.uint16)
    given[0, 0, 0] = given[1, 1, 1] = 300
    rule = Rule("smallest", "x", (300,), 0, 3 * 0.1 * 2)
    assert apply_rules(given, 0.3, [rule]).any()  # 2 voxels of 0.3 mm³ are not below 0.6 mm³
    assert not apply_rules(given, 0.29, [rule]).any()
    assert not apply_rules(np.zeros((4, 4), np.uint8), 1, [rule]).any()


def test_what_is_taken_out_of_a_region_belongs_to_the_one_around_it() -> None:
    around = [label_around(BRATS, labels) for labels in ((1, 2, 3), (2, 3), (3,))]
    assert around == [0, 1, 2]
    assert label_around(predicted.LABELS, (2,)) == 0


@pytest.mark.parametrize(
    ("text", "expected"), [("50mm3", (50, "mm3")), ("0.5 ml", (500, "mm3")), ("7voxels", (7, "voxels"))]
)
def test_volumes(text: str, expected: tuple[float, str]) -> None:
    assert volume(text) == expected


@pytest.mark.parametrize("text", ["50", "mm3", "-1mm3", "0ml", "nanml", "1e999ml", "5cm", "1.2.3ml"])
def test_volumes_need_a_unit(text: str) -> None:
    with pytest.raises(UserError, match="expected a number above 0 with mm3, ml or voxels"):
        volume(text)


def test_rules_by_names() -> None:
    found = rules_of(BRATS, ["all"], [["core", "2ml"]], [["enhancing", "200voxels", "core"]])
    assert [rule.becomes for rule in found] == [0, 1, 2, 1, 2]
    assert str(found[3]) == "core: no components below 2000 mm³, the rest becomes 1"
    assert rules_of(predicted.LABELS, ["2"])[0].name == "back"
    with pytest.raises(UserError, match=r"no such label or region in dataset\.json, which has front, back"):
        rules_of(predicted.LABELS, ["liver"])
    with pytest.raises(UserError, match="is a part of core"):
        rules_of(BRATS, replace=[["core", "2ml", "enhancing"]])


# --------------------------------------------------------------------------------------------------- cross-validation


def write_case(folder: Path, case: str, labels: np.ndarray) -> None:
    predicted.write_labels(folder / f"{case}.nii.gz", labels, (1, 1, 2))


def crossvalidation(folder: Path, cases: int = 6) -> tuple[Path, Path]:
    """References, and a trained model whose predictions have specks of label 1 of up to 40 voxels; label 2 is right."""
    model = predicted.described(folder / "Trainer__plans__3d", predicted.LABELS)
    for case in range(cases):
        labels = np.zeros(SHAPE, np.uint8)
        labels[1:7, 3:12, 3:12] = 1
        labels[2:4, 16:18, 16:18] = 1  # 8 voxels that are right
        labels[1:3, 20:23, 2:20] = 2
        write_case(folder / "labelsTr", f"train{case}", labels)
        labels[2:4, 16:18, 16:18] = 0 if case % 2 else 1
        labels[3:6, 14:18, 2 : 2 + case % 3 + 1] = 1  # 12, 24 or 36 voxels that are wrong
        write_case(model / f"fold_{case % 5}" / "validation", f"train{case}", labels)
    return folder / "labelsTr", model


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return crossvalidation(tmp_path_factory.mktemp("trained"))


def dice(reference: np.ndarray, labels: np.ndarray, values: Sequence[int]) -> float:
    one, two = np.isin(reference, values), np.isin(labels, values)
    return 2 * float((one & two).sum()) / float(one.sum() + two.sum()) if one.any() or two.any() else 1.0


def test_thresholds_of_labels(trained: tuple[Path, Path], tmp_path: Path) -> None:
    references, model = trained
    rules, found = determine(references, [model], outputs=[tmp_path / "rules.json"])
    assert [str(rule) for rule in rules.rules] == ["front: no components below 80 mm³"]  # 40 voxels of 2 mm³
    assert rules.cases == tuple(f"train{case}" for case in range(6))
    files = {path.name: path for path in model.rglob("*.nii.gz")}
    before, after = [], []
    for path in sorted(references.iterdir()):
        labels, reference = predicted.read_labels(files[path.name]), predicted.read_labels(path)
        before.append(dice(reference, labels, [1]))
        after.append(dice(reference, apply_rules(labels, 2, rules.rules), [1]))
    assert found.before["front"] == pytest.approx(np.mean(before), abs=1e-12)
    assert found.after["front"] == found.steps[0]["dice_after"] == pytest.approx(np.mean(after), abs=1e-12)
    assert found.before["back"] == found.after["back"] == 1
    assert found.steps[1]["chosen"] is None
    assert found.steps[0]["gain_on_left_out_cases"] > 0
    assert read(tmp_path / "rules.json") == RuleFile(
        rules.rules, rules.labels, rules.cases, read(tmp_path / "rules.json").how
    )
    assert "1 if reference and prediction are both empty" in read(tmp_path / "rules.json").how["convention"]


def test_several_processes(trained: tuple[Path, Path]) -> None:
    references, model = trained
    assert determine(references, [model], processes=2)[0].rules == determine(references, [model])[0].rules


def test_units_and_grid(trained: tuple[Path, Path]) -> None:
    references, model = trained
    rules, _ = determine(references, [model], unit="voxels", step=25)
    assert [(rule.below, rule.unit) for rule in rules.rules] == [(50, "voxels")]
    with pytest.raises(UserError, match="expected at least 1"):
        determine(references, [model], step=0)


def test_each_threshold_is_what_applying_it_gives(tmp_path: Path) -> None:
    """Regions, where rules touch each other: the search's numbers are those of really applied rules."""
    for case in range(4):
        reference = noisy(case)
        write_case(tmp_path / "refs", f"c{case}", reference)
        write_case(predicted.described(tmp_path / "cv", BRATS), f"c{case}", np.where(noisy(case + 9) > 2, 3, reference))
    rules, found = determine(tmp_path / "refs", [tmp_path / "cv"], processes=1, unit="voxels", step=3, end=60)
    assert [step["kind"] for step in found.steps] == ["components"] * 3 + ["replace"]
    assert rules.rules
    for name, values in (("whole", (1, 2, 3)), ("core", (2, 3)), ("enhancing", (3,))):
        means = []
        for steps in ((), rules.rules):
            cases = []
            for case in range(4):
                labels = predicted.read_labels(tmp_path / f"cv/c{case}.nii.gz")
                labels = apply_rules(labels, 2, steps)
                cases.append(dice(noisy(case), labels, values))
            means.append(np.mean(cases))
        assert [found.before[name], found.after[name]] == pytest.approx(means, abs=1e-12)
        assert means[1] >= means[0]


def test_a_small_enhancing_tumour(tmp_path: Path) -> None:
    """Two of five patients have none, and the model finds 30 voxels; the others have 100 and more."""
    for case in range(5):
        labels = np.zeros(SHAPE, np.uint8)
        labels[1:7, 2:20, 2:20] = 1
        labels[2:6, 4:16, 4:16] = 2
        labels[3:5, 5:10, 5:15] = 3 if case > 1 else 2
        write_case(tmp_path / "refs", f"p{case}", labels)
        labels[3:5, 5:8, 5:10] = 3
        write_case(predicted.described(tmp_path / "cv", BRATS), f"p{case}", labels)
    rules, found = determine(tmp_path / "refs", [tmp_path / "cv"], unit="voxels", both_empty="one")
    assert [(rule.kind, rule.name, rule.below, rule.becomes) for rule in rules.rules] == [
        ("smallest", "enhancing", 40, 2)
    ]  # which does it as well
    assert found.after["enhancing"] == 1
    assert found.before["enhancing"] == pytest.approx(0.6)


def test_gain_of_each_case_by_the_choice_of_the_others() -> None:
    scores = np.zeros((5, 3, 1))
    scores[:, 0] = 0.5
    scores[:, 1] = [[0.9], [0.4], [0.5], [0.5], [0.5]]
    scores[:, 2] = [[0.5], [0.6], [0.6], [0.6], [0.5]]
    assert left_out_gain(scores, 0) == pytest.approx(-0.1 / 5)  # case 1, for which all others choose 1
    assert left_out_gain(scores[:1], 0) == 0


def test_replacement_is_tried_where_asked(tmp_path: Path) -> None:
    for case in range(3):
        labels = np.zeros(SHAPE, np.uint8)
        labels[1:7, 2:20, 2:20] = 1
        write_case(tmp_path / "refs", f"p{case}", labels)
        labels[3, 4:16:3, 4] = 2  # 4 voxels apart, which are 1 in truth
        write_case(predicted.described(tmp_path / "cv", predicted.LABELS), f"p{case}", labels)
    command = ["postprocess", "determine", str(tmp_path / "refs"), str(tmp_path / "cv"), "-np", "1", "--step", "2"]
    assert main([*command, "-o", str(tmp_path / "r.json"), "--replace", "back", "front"]) == 0
    kinds = [step["kind"] for step in read(tmp_path / "r.json").how["steps"]]
    assert kinds == ["components", "components", "replace"]
    rules, found = determine(tmp_path / "refs", [tmp_path / "cv"], replacements={"back": 1}, step=2, unit="voxels")
    assert found.after["back"] == 1
    assert rules.rules[0].kind == "smallest"


def test_undefined_dice_is_left_out_if_asked(tmp_path: Path) -> None:
    for case in range(2):
        write_case(tmp_path / "refs", f"p{case}", np.zeros(SHAPE))
        write_case(predicted.described(tmp_path / "cv", predicted.LABELS), f"p{case}", np.zeros(SHAPE))
    rules, found = determine(tmp_path / "refs", [tmp_path / "cv"], both_empty="nan", outputs=[tmp_path / "r.json"])
    assert not rules.rules
    assert np.isnan(found.before["front"])
    assert json.loads((tmp_path / "r.json").read_text())["determined"]["dice_before"]["front"] is None


def test_ignored_voxels_do_not_count(tmp_path: Path) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:7, 2:20, 2:20] = 1
    wrong = labels.copy()
    wrong[0:2, 21:23, 21:23] = 1
    labels[0:2, 21:24, 21:24] = 3
    write_case(tmp_path / "refs", "p", labels)
    write_case(predicted.described(tmp_path / "cv", predicted.IGNORED), "p", wrong)
    rules, found = determine(tmp_path / "refs", [tmp_path / "cv"])
    assert found.before["front"] == 1
    assert not rules.rules


# ------------------------------------------------------------------------------------------------ commands and files


def test_from_a_trained_model_to_new_cases(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    references, model = trained[0], Path(shutil.copytree(trained[1], tmp_path / "model"))
    assert main(["postprocess", "determine", str(references), "--model", str(model), "-np", "1"]) == 0
    out = capsys.readouterr().out
    assert "6 cases. Dice = 2TP / (2TP + FP + FN), 1 if" in out
    assert "rule     front: no components below 80 mm³: 0.9" in out
    assert "no rule  back (components): 1.0000" in out
    assert (model / FILE).is_file()
    new = predicted.described(tmp_path / "new", predicted.LABELS)
    for case in range(2):
        shutil.copyfile(model / f"fold_{case}/validation/train{case}.nii.gz", new / f"test{case}.nii.gz")
    command = ["postprocess", "apply", str(new), "-o", str(tmp_path / "out"), "--rules", str(model), "-np", "1"]
    assert main(command) == 0
    assert "changed    2 cases, 44 voxels" in capsys.readouterr().out
    found = predicted.read_labels(tmp_path / "out/test0.nii.gz")
    assert np.array_equal(found, apply_rules(predicted.read_labels(new / "test0.nii.gz"), 2, read(model).rules))
    assert (tmp_path / "out/plans.json").is_file()
    assert main(command) == 0
    assert "processed  0 cases, 2 were there already" in capsys.readouterr().out
    assert main([*command[:-4], "--largest", "all"]) == 1
    assert "choose another -o" in capsys.readouterr().err


def test_cases_that_determined_the_rules_are_refused(trained: tuple[Path, Path], tmp_path: Path) -> None:
    references, model = trained
    rules, _ = determine(references, [model])
    with pytest.raises(UserError, match="6 of these cases determined the rules, such as train0"):
        apply(model, tmp_path / "out", rules)
    outcome = apply(model, tmp_path / "out", rules, own_cases=True)
    assert len(outcome.done) == 6
    assert "flattered" in outcome.notices[0]


def test_test_cases_determine_nothing(trained: tuple[Path, Path], tmp_path: Path) -> None:
    references, model = trained
    test = Path(shutil.copytree(references, tmp_path / "labelsTs"))
    with pytest.raises(UserError, match="labels of test cases"):
        determine(test, [model])
    place = Path(shutil.copytree(model / "fold_0/validation", tmp_path / "predicted"))
    predicted.described(place, predicted.LABELS)
    (place / "predict_from_raw_data_args.json").write_text("{}")
    with pytest.raises(UserError, match="not by a cross-validation"):
        determine(references, [place])
    assert determine(references, [place], held_out=True)[0].how["without_prediction"]
    other = Path(shutil.copytree(place, tmp_path / "other"))
    ensemble([place, other], tmp_path / "both", method="vote")
    with pytest.raises(UserError, match=r"both was written by nnUNetv2_predict, or from its predictions"):
        determine(references, [tmp_path / "both"])
    apply(tmp_path / "both", tmp_path / "changed", [])
    for gone in ("predicted", "other", "both"):
        (tmp_path / gone).rename(tmp_path / f"moved {gone}")
    with pytest.raises(UserError, match=r"changed was written by nnUNetv2_predict"):
        determine(references, [tmp_path / "changed"])
    assert determine(references, [tmp_path / "changed"], held_out=True)[0].how["without_prediction"]


def test_what_is_made_from_a_cross_validation_determines(trained: tuple[Path, Path], tmp_path: Path) -> None:
    references, model = trained
    other = Path(shutil.copytree(model, tmp_path / "other"))
    ensemble([model, other], tmp_path / "both", method="vote")
    apply(tmp_path / "both", tmp_path / "changed", [])
    assert json.loads((tmp_path / "changed/postprocess.json").read_text())["predicted"] is False
    assert determine(references, [tmp_path / "changed"])[1].before


def test_records_lead_to_predictions(tmp_path: Path) -> None:
    """Without what newer records say themselves; in a circle, and past folders that are gone."""
    for name in "abc":
        (tmp_path / name).mkdir()
    sources = [str(tmp_path / "a"), str(tmp_path / "gone"), str(tmp_path / "c"), 3]
    (tmp_path / "a/postprocess.json").write_text(json.dumps({"folder": str(tmp_path / "b")}))
    (tmp_path / "b/ensemble.json").write_text(json.dumps({"folders": sources}))
    (tmp_path / "c/ensemble.json").write_text("{")
    assert predicted_from([tmp_path / "a"]) is None
    (tmp_path / "c/predict_from_raw_data_args.json").write_text("{}")
    assert predicted_from([tmp_path / "a"]) == tmp_path / "c"


def test_after_nnunets_own(trained: tuple[Path, Path], tmp_path: Path) -> None:
    references, model = trained
    own: dict[str, Any] = {
        "postprocessing_fns": ["remove_all_but_largest_component_from_segmentation"] * 2,
        "postprocessing_kwargs": [{"labels_or_regions": [1, 2]}, {"labels_or_regions": 1}],
    }
    (tmp_path / "postprocessing.json").write_text(json.dumps(own))
    first = nnunet_rules(tmp_path / "postprocessing.pkl")  # not opened: the JSON beside it is read
    assert [(rule.kind, rule.labels, rule.origin) for rule in first] == [
        ("largest", (1, 2), "nnU-Net"),
        ("largest", (1,), "nnU-Net"),
    ]
    rules, _ = determine(references, [model], first=first)
    assert rules.rules == tuple(first)  # nothing is left to gain
    new = predicted.described(tmp_path / "new", predicted.LABELS)
    given = noisy(0, 2)
    write_case(new, "test", given)
    apply(new, tmp_path / "out", rules)
    expected = remove_all_but_largest_component_from_segmentation(given, [1, 2])
    expected = remove_all_but_largest_component_from_segmentation(expected, 1)
    assert np.array_equal(predicted.read_labels(tmp_path / "out/test.nii.gz"), expected)
    own["postprocessing_fns"][0] = "os.system"
    (tmp_path / "postprocessing.json").write_text(json.dumps(own))
    with pytest.raises(UserError, match=r"unknown step os\.system"):
        nnunet_rules(tmp_path)


def test_pictures(tmp_path: Path) -> None:
    from skimage import io

    flat = {**predicted.LABELS, "file_ending": ".png"}
    folder = predicted.described(tmp_path / "flat", flat, None)
    labels = np.zeros((20, 30), np.uint8)
    labels[2:8, 2:8] = 1
    labels[12, 5:8] = 1
    io.imsave(folder / "a.png", labels, check_contrast=False)
    apply(folder, tmp_path / "out", rules_of(flat, smallest=[["front", "10mm3"]]))
    assert (io.imread(tmp_path / "out/a.png") == 1).sum() == 36


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot read"),
        ("[]", "expected a JSON object"),
        ('{"postprocessing_fns": []}', "nnU-Net's own is given by --nnunet"),
        ('{"format": 1, "rules": [], "labels": {}}', "its labels or cases"),
        ('{"format": 1, "rules": [{"kind": "x"}], "labels": {}, "determined": {"cases": []}}', "not a rule"),
        (
            '{"format": 1, "rules": [{"kind": "largest", "name": "a", "labels": [1], "becomes": 1}], "labels": {}, '
            '"determined": {"cases": []}}',
            "a label that is not among",
        ),
        ('{"format": 1, "rules": [], "labels": {"a": [1]}, "determined": {"cases": []}}', "the rules are for labels"),
    ],
)
def test_files_that_are_something_else(content: str, message: str, tmp_path: Path) -> None:
    folder = predicted.described(tmp_path / "new", predicted.LABELS)
    write_case(folder, "test", noisy(0, 2))
    (tmp_path / "rules.json").write_text(content)
    with pytest.raises(UserError, match=message):
        apply(folder, tmp_path / "out", read(tmp_path / "rules.json"))


def test_a_bad_case_is_named_and_the_others_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = predicted.described(tmp_path / "new", predicted.LABELS)
    write_case(folder, "a", noisy(0, 2))
    write_case(folder, "b", noisy(0, 5))
    (folder / "c.nii.gz").write_bytes((folder / "a.nii.gz").read_bytes()[:100])
    command = ["postprocess", "apply", str(folder), "-o", str(tmp_path / "out"), "-np", "1"]
    assert main([*command, "--largest", "front"]) == 1
    told = capsys.readouterr()
    assert "b is not processed" in told.err
    assert "has labels [3, 4, 5]; dataset.json has [0, 1, 2]" in told.err
    assert "c is not processed: cannot read" in told.err
    assert "processed  1 cases" in told.out
    assert main(command) == 1
    assert "name --rules FILE, or what to do" in capsys.readouterr().err
    with pytest.raises(UserError, match="predictions are read from there"):
        apply(folder, folder, [])
    write_case(tmp_path / "refs", "a", noisy(0, 2))
    write_case(tmp_path / "refs", "b", noisy(0, 2))
    with pytest.raises(UserError, match=r"1 of 2 cases can't be used: b: .*labels \[3, 4, 5\]"):
        determine(tmp_path / "refs", [folder])
