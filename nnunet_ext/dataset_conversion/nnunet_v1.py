"""nnU-Net v1's raw data, ``TaskNNN_NAME``, as UNETR++ and nnFormer publish them; also the decathlon's form of it."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

from nnunet_ext.dataset_conversion.cases import Found
from nnunet_ext.dataset_conversion.class_names import channels_of_json
from nnunet_ext.dataset_conversion.from_files import UNNAMED, FromFiles, split_file
from nnunet_ext.dataset_conversion.raw_tree import RawTree, find_trees, tree_cases
from nnunet_ext.dataset_conversion.sources import Download
from nnunet_ext.errors import UserError


class NnunetV1Task(FromFiles):
    """A task of nnU-Net v1, whose dataset.json has "modality" and labels by value; any of its keys may be absent."""

    key = "nnunet_v1"
    number = 701
    name = "Task"
    summary = "a task of nnU-Net v1 (TaskNNN_NAME), as UNETR++ and nnFormer ship their data"
    get_it = (
        "UNETR++ (github.com/Amshaker/unetr_plus_plus) and nnFormer (github.com/282857341/nnFormer) link their "
        "preprocessed copies of Synapse, ACDC, MSD Task01 and Task06; the licences are those of the data sets."
    )
    looks_like = (
        "TaskNNN_NAME/{imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz, imagesTs, dataset.json}; image files without "
        "_0000 (decathlon style) and nnUNet_raw_data/ above are fine; name the folder, a parent, or the archive."
    )
    published_splits = (
        "unetrpp_synapse",
        "unetrpp_acdc",
        "unetrpp_tumor",
        "unetrpp_lung",
        "synapse_transunet",
        "acdc_nnformer",
    )

    def __init__(
        self,
        task: str | None = None,
        channels: Sequence[str] | None = None,
        label_names: Sequence[str] | None = None,
        group: str | None = None,
        unlabelled: bool = False,
    ) -> None:
        """As the options; `task` is the name of the folder, where there are several."""
        super().__init__(channels, label_names, group, unlabelled)
        self.task = task

    @classmethod
    def add_arguments(cls, parser: argparse._ArgumentGroup) -> None:
        """Add `--task` and what is common to converters of this kind."""
        parser.add_argument(
            "--task", metavar="NAME", help="which folder, such as Task002_Synapse, if there are several"
        )
        super().add_arguments(parser)

    def default_number(self, download: Download) -> int:
        """The task's number."""
        match = re.match(r"Task(\d+)_", self._tree(download)[0].name, re.IGNORECASE)
        return int(match[1]) if match and 0 < int(match[1]) < 1000 else self.number

    def default_name(self, download: Download) -> str:
        """The task's name."""
        return self.clean_name(self._tree(download)[0].name)

    def find(self, download: Download) -> Found:
        """See `Converter.find`."""
        tree, notices = self._tree(download)
        self.description = tree.description
        self.classes_from(tree.description, f"{tree.base}dataset.json")
        stated = channels_of_json(tree.description)
        notices += [] if self.names or stated else [UNNAMED]
        if not self.names:
            self.names = stated or tuple(f"channel_{index}" for index in range(tree.channels_seen))
        cases, faults, more = tree_cases(tree, self.names, keep_unlabelled=self.unlabelled)
        if not cases and not faults:
            raise self.nothing_found(download)
        unlisted = {case.id for case in cases if case.part == "training"} - _listed_ids(tree)
        if tree.listed("training") and unlisted:
            more.append(f"{len(unlisted)} training cases are not in dataset.json's list; they are taken, too")
        grouped, ungrouped = self.grouped(cases)
        self.given, unusable = split_file(download, cases)
        self.best_split = "splits_final" if self.given else self.published_that_fits(cases) or "cv"
        return Found(grouped, tuple(faults), (*notices, *more, *ungrouped, *unusable))

    def _tree(self, download: Download) -> tuple[RawTree, list[str]]:
        """The task's folder, and a notice where another form of the same task lies beside it.

        Raises:
            UserError: there is none, or there are several.
        """
        trees = find_trees(download)
        if self.task is not None:
            chosen = [tree for tree in trees if tree.name == self.task]
            if not chosen:
                there = ", ".join(tree.name for tree in trees) or "none"
                raise UserError(f"{self.key}: no folder {self.task} with imagesTr in it; there are: {there}")
            trees = chosen
        if not trees:
            raise self.nothing_found(download)
        converted = [tree for tree in trees if tree.by_channel]
        if len(trees) > 1 and len(converted) == 1 and len({self.clean_name(tree.name).lower() for tree in trees}) == 1:
            others = ", ".join(tree.name for tree in trees if tree is not converted[0])
            return converted[0], [f"{converted[0].name} is taken; {others} is the same in decathlon style"]
        if len(trees) > 1:
            raise UserError(
                f"{self.key}: {len(trees)} tasks are there: {', '.join(tree.base.rstrip('/') for tree in trees)}. "
                f"Choose one: --task {trees[0].name}"
            )
        return trees[0], []


def _listed_ids(tree: RawTree) -> set[str]:
    """Case ids that dataset.json lists for training."""
    names = (image for image, _ in tree.listed("training"))
    return {re.sub(r"\.nii(\.gz)?$", "", name, flags=re.IGNORECASE) for name in names}
