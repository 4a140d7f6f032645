"""Medical Segmentation Decathlon: any task, as downloaded or as nnUNetv2_convert_MSD_dataset made it."""

from __future__ import annotations

import argparse
import re

from nnunet_ext.dataset_conversion.base import Converter, one_file_each, pair
from nnunet_ext.dataset_conversion.cases import Case, Fault, Found, Layout, Part, Rules
from nnunet_ext.dataset_conversion.class_names import Classes, channels_of_json, classes_of_json
from nnunet_ext.dataset_conversion.msd_tasks import Task, task_of
from nnunet_ext.dataset_conversion.one_channel import tells
from nnunet_ext.dataset_conversion.raw_tree import RawTree, find_trees
from nnunet_ext.dataset_conversion.sources import Download, SourceFile, ending_of
from nnunet_ext.errors import UserError

_SPLIT_OF_TASK = {1: "unetrpp_tumor", 6: "unetrpp_lung"}
_REGIONS = Classes(
    {"background": 0, "whole tumor": (1, 2, 3), "tumor core": (2, 3), "enhancing tumor": 3}, None, (1, 2, 3)
)
_FOLDER = re.compile(r"(Task|Dataset)(?P<number>\d+)_(?P<name>.+)", re.I)


class MSD(Converter):
    """Any task of the Medical Segmentation Decathlon, and other folders of its form."""

    key = "msd"
    number = 1
    name = "MSD"
    summary = "Medical Segmentation Decathlon, any of its ten tasks (also after nnUNetv2_convert_MSD_dataset)"
    get_it = "http://medicaldecathlon.com (one tar file a task). CC BY-SA 4.0."
    looks_like = (
        "TaskNN_Name/ with imagesTr/*.nii.gz, labelsTr/*.nii.gz of the same names, imagesTs/*.nii.gz and dataset.json; "
        "the tar file as it was downloaded will do. Or DatasetNNN_Name/ with imagesTr/*_0000.nii.gz, which has been "
        "converted before."
    )
    published_splits = tuple(_SPLIT_OF_TASK.values())

    def __init__(self, regions: bool = False) -> None:
        """Make it.

        Args:
            regions: Task01 gets nnU-Net's regions (whole tumour, tumour core, enhancing tumour).
        """
        self.regions = regions
        self._tree: RawTree | None = None
        self._split = "cv"

    @classmethod
    def add_arguments(cls, parser: argparse._ArgumentGroup) -> None:
        """Add ``--regions``."""
        parser.add_argument(
            "--regions",
            action="store_true",
            help="Task01_BrainTumour: the regions whole tumor, tumor core, enhancing tumor instead of plain labels",
        )

    def default_number(self, download: Download) -> int:
        """The task's number, or the one of DatasetNNN_Name."""
        tree = self._of(download)
        match, task = _FOLDER.fullmatch(tree.name), _task(tree)
        if match:
            return int(match["number"])
        if task is None:
            raise UserError(
                f"msd: neither the folder's name ({tree.name!r}; expected such as Task04_Hippocampus) nor the cases' "
                "ids tell the number of the data set: choose one with -d."
            )
        return task.number

    def default_name(self, download: Download) -> str:
        """The task's name as the folder has it, with characters that nnU-Net can use."""
        tree = self._of(download)
        match, task = _FOLDER.fullmatch(tree.name), _task(tree)
        name = match["name"] if match else task.name if task else _text(tree, "name")
        return re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_") or self.name

    def default_split(self) -> str:
        """UNETR++'s for tasks 1 and 6, if all of its cases are there; after `find`."""
        return self._split

    def find(self, download: Download) -> Found:
        """Find the cases in imagesTr and imagesTs, whatever dataset.json lists.

        Raises:
            UserError: there is no such folder, several are, or nothing tells what channels and labels mean.
        """
        tree = self._tree = self._of(download)
        task = _task(tree)
        if self.regions and (task is None or task.number != 1):
            raise UserError(f"msd: --regions is for Task01_BrainTumour; {tree.name} is another data set.")
        faults: dict[str, Fault] = {}
        training = _cases(tree, "training", faults)
        test = _cases(tree, "test", faults)
        ids = {case.id for case in training}
        for case in test:
            if case.id in ids:
                reason = f"duplicate id: {case.images[0].where} is a test case, but a training case has this id."
                faults.setdefault(case.id, Fault(case.id, reason))
        self._split = _default_split(tree, ids | set(faults))
        kept = tuple(case for case in (*training, *test) if case.id not in faults)
        notices = _notices(tree, len(training), len(test))
        return Found(kept, tuple(faults[case] for case in sorted(faults)), notices)

    def layout(self, found: Found) -> Layout:
        """What dataset.json says, else the Decathlon's table; after `find`."""
        tree, classes = self._found(), self._classes()
        task = _task(tree)
        ending = _text(tree, "file_ending") or tree.images[0][1].ending
        return Layout(
            _channels(tree),
            classes.labels,
            classes.regions_class_order,
            file_ending=ending if tree.by_channel else ".nii.gz",
            reader=_text(tree, "overwrite_image_reader_writer") or None,
            licence=_text(tree, "licence", "license") or ("CC-BY-SA 4.0" if task else ""),
            reference=_text(tree, "reference") or ("http://medicaldecathlon.com" if task else ""),
            release=_text(tree, "release", "relase"),  # so spelt in the release of some tasks
            description=_text(tree, "description"),
        )

    def rules(self, found: Found) -> Rules:
        """As many channels as dataset.json names; values that are not consecutive are made so; after `find`."""
        channels = _channels(self._found())
        ct = any(name.upper() == "CT" for name in channels)
        return Rules(self._classes().label_map, channels=len(channels), ct=ct, nan="minimum" if ct else "zero")

    def _classes(self) -> Classes:
        tree = self._found()
        task = _task(tree)
        if self.regions:
            return _REGIONS
        if task is not None and not tree.description.get("labels"):
            return Classes({"background": 0, **{name: place + 1 for place, name in enumerate(task.labels)}})
        return classes_of_json(tree.description, f"msd: {tree.name}: dataset.json")

    def _of(self, download: Download) -> RawTree:
        """The one folder with images.

        Raises:
            UserError: there is none, or several.
        """
        trees = find_trees(download)
        if len(trees) > 1:
            raise UserError(
                f"msd: {len(trees)} folders hold images: {', '.join(tree.base or '.' for tree in trees)}. Name one of "
                "them: each task becomes a data set of its own."
            )
        if not trees:
            raise self.nothing_found(download)
        return trees[0]

    def _found(self) -> RawTree:
        if self._tree is None:
            raise RuntimeError("layout and rules of MSD depend on the download: call find first")
        return self._tree


def _task(tree: RawTree) -> Task | None:
    """The Decathlon's task, if it is one."""
    claims = tree.image_claims("training") or tree.image_claims("test")
    return task_of(tree.name, claims[0][0] if claims else "")


def _text(tree: RawTree, *keys: str) -> str:
    """The first of some entries of dataset.json that is a text."""
    found = (tree.description.get(key) for key in keys)
    return next((value for value in found if isinstance(value, str)), "")


def _channels(tree: RawTree) -> tuple[str, ...]:
    """Names of the channels.

    Raises:
        UserError: neither dataset.json nor the Decathlon's table has them.
    """
    names, task = channels_of_json(tree.description), _task(tree)
    if names or task is not None:
        return names or (task.channels if task else ())
    raise UserError(
        f"msd: {tree.name}: its dataset.json names no channels, and it is none of the Decathlon's ten tasks: write "
        'such as {"channel_names": {"0": "CT"}, "labels": {"background": 0, "tumour": 1}} there.'
    )


def _cases(tree: RawTree, part: Part, faults: dict[str, Fault]) -> list[Case]:
    """The cases of imagesTr or imagesTs; those that lack something are added to `faults`."""
    channels = _channels(tree)
    called = [f"{name} (_{place:04d})" for place, name in enumerate(channels)] if tree.by_channel else ["the image"]
    found: list[Fault] = []
    images: dict[str, list[SourceFile | None]] = {}
    for place in sorted({channel for _, channel, _ in tree.image_claims(part)}):
        claims = [(case, file) for case, channel, file in tree.image_claims(part) if channel == place]
        if place >= len(called):
            found += [
                Fault(case, f"{file.where}: dataset.json names {len(called)} channels only.") for case, file in claims
            ]
            continue
        single, double = one_file_each(claims, called[place])
        found += double
        for case, file in single.items():
            images.setdefault(case, [None] * len(called))[place] = file
    labels, double = one_file_each(tree.label_claims(part), "label")
    complete, lacking = pair(images, labels, channels=called)
    for fault in (*found, *double, *lacking):
        faults.setdefault(fault.case, fault)
    made = []
    task = _task(tree)
    for case, (files, label) in sorted(complete.items()):
        if label is None and part == "training":
            wanted = f"labelsTr/{case}{files[0].ending}"
            reason = f"no label for {files[0].where} (expected {wanted}): the download is incomplete."
            faults.setdefault(case, Fault(case, reason))
        if case not in faults:
            details = {"task": task.folder if task else tree.name}
            made.append(Case(case, part, files, label, details=details))
    return made


def _default_split(tree: RawTree, ids: set[str]) -> str:
    """The paper's if it fits: all cases are there, and none has to leave the folder that was converted before."""
    task = _task(tree)
    name = _SPLIT_OF_TASK.get(task.number) if task else None
    if name is None:
        return "cv"
    from nnunet_ext.dataset_conversion.partition import published

    split = published(name)
    needed = {case for fold in split.folds for part in fold for case in part} | set(split.test)
    return name if needed <= ids and not (tree.by_channel and split.test) else "cv"


def _notices(tree: RawTree, training: int, test: int) -> tuple[str, ...]:
    """What differs from the release and from the lists of dataset.json, which are not relied upon."""
    task, notices = _task(tree), []
    if not tree.description:
        notices.append("no dataset.json beside imagesTr: channels and labels are those of the Decathlon.")
    if not tree.image_claims("test"):
        notices.append("no imagesTs: there will be no test cases.")
    if task and not tree.by_channel:
        for part, count, released in (("training", training, task.training), ("test", test, task.test)):
            if count not in (0, released):
                notices.append(f"{count} {part} cases; {released} are in the release of {task.folder}.")
    there = {file.stem for _, file in tree.images} | {case for case, _, _ in tree.image_claims("training")}
    there |= {case for case, _, _ in tree.image_claims("test")}
    listed = {image for key in ("training", "test") for image, _ in tree.listed(key)}
    lost = sorted({name[: len(name) - len(ending_of(name))] for name in listed} - there)
    if lost:
        notices.append(f"dataset.json lists cases that have no file: {tells(lost)}.")
    return tuple(notices)
