"""Any data set: images and labels found by patterns of their names, or a folder that looks like nnU-Net's raw data."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence

from nnunet_ext.dataset_conversion.base import one_file_each, pair
from nnunet_ext.dataset_conversion.cases import Case, Fault, Found, Part
from nnunet_ext.dataset_conversion.class_names import channels_of_json
from nnunet_ext.dataset_conversion.from_files import UNNAMED, FromFiles, split_file
from nnunet_ext.dataset_conversion.one_channel import by_number, tells
from nnunet_ext.dataset_conversion.patterns import Matched, Pattern, compile_pattern
from nnunet_ext.dataset_conversion.raw_tree import RawTree, find_trees, tree_cases
from nnunet_ext.dataset_conversion.sources import Download, SourceFile
from nnunet_ext.errors import UserError


class Generic(FromFiles):
    """Pairs found by pattern; without patterns, folders imagesTr, labelsTr, imagesTs, with or without dataset.json."""

    key = "generic"
    number = 703
    name = "Generic"
    summary = "any data set: images and labels found by patterns of names, or nnU-Net-like folders"
    get_it = "for data of your own, or of others that have no converter here."
    looks_like = (
        "imagesTr/CASE_0000.nii.gz and labelsTr/CASE.nii.gz, with or without dataset.json; or anything, with patterns "
        "such as --images 'scans/{id}/{channel}.nii.gz' --labels 'scans/{id}/mask.nii.gz' --channels T1=t1 T2=t2 "
        "--label-names tumour=1"
    )

    def __init__(
        self,
        images: str | None = None,
        labels: str | None = None,
        test_images: str | None = None,
        test_labels: str | None = None,
        channels: Sequence[str] | None = None,
        label_names: Sequence[str] | None = None,
        group: str | None = None,
        unlabelled: bool = False,
    ) -> None:
        """As the options.

        Raises:
            UserError: a pattern is not understood, or one is missing that another needs.
        """
        super().__init__(channels, label_names, group, unlabelled)
        tokens = [word.partition("=")[2] or word for word in self.channels]
        given = {"images": images, "labels": labels, "test-images": test_images, "test-labels": test_labels}
        self.patterns = {
            name: compile_pattern(f"--{name}", text, tokens if name.endswith("images") else ())
            for name, text in given.items()
            if text
        }
        if self.patterns and "images" not in self.patterns and "test-images" not in self.patterns:
            raise UserError("--labels needs --images, the pattern of the images' names")
        for name, pattern in self.patterns.items():
            other = self.patterns.get(name.replace("labels", "images"))
            if other is None or set(other.fields) != set(pattern.fields) or (pattern.has_channel and pattern != other):
                raise UserError(
                    f"--{name} {pattern.text!r} must have the same placeholders as the pattern of the images, but for "
                    "{channel}, which only images have."
                )
        if len({pattern.has_channel for name, pattern in self.patterns.items() if name.endswith("images")}) > 1:
            raise UserError("--images and --test-images must both have {channel}, or neither.")

    @classmethod
    def add_arguments(cls, parser: argparse._ArgumentGroup) -> None:
        """Add the patterns and what is common to converters of this kind."""
        text = "PATTERN"
        parser.add_argument(
            "--images",
            metavar=text,
            help="the training images' names, such as 'imgs/{id}/{channel}.nii.gz'; * any part of a name, ** any "
            "folders; {patient} and other placeholders join the id",
        )
        parser.add_argument("--labels", metavar=text, help="the labels' names, such as 'masks/{id}.nii.gz'")
        parser.add_argument("--test-images", metavar=text, help="the test images' names")
        parser.add_argument("--test-labels", metavar=text, help="the names of their labels, if there are any")
        super().add_arguments(parser)

    def default_number(self, download: Download) -> int:
        """Of the folder, if it is called like a data set of nnU-Net."""
        tree = None if self.patterns else self._tree(download)
        match = re.match(r"(?:Dataset|Task)(\d{1,3})_", tree.name, re.IGNORECASE) if tree else None
        return int(match[1]) if match and int(match[1]) else self.number

    def default_name(self, download: Download) -> str:
        """Of the folder."""
        tree = None if self.patterns else self._tree(download)
        return self.clean_name(tree.name) if tree else super().default_name(download)

    def find(self, download: Download) -> Found:
        """See `Converter.find`."""
        cases, faults, notices = self._by_pattern(download) if self.patterns else self._by_folder(download)
        grouped, ungrouped = self.grouped(cases)
        self.given, unusable = split_file(download, cases)
        self.best_split = "splits_final" if self.given else "cv"
        return Found(grouped, tuple(faults), (*notices, *ungrouped, *unusable))

    def _tree(self, download: Download) -> RawTree:
        """The folder with imagesTr.

        Raises:
            UserError: there is none, or there are several.
        """
        trees = find_trees(download)
        if not trees:
            raise self.nothing_found(download)
        if len(trees) > 1:
            seen = ", ".join(tree.base.rstrip("/") or "." for tree in trees)
            raise UserError(f"{self.key}: several data sets are there: {seen}. Name the folder of one of them.")
        return trees[0]

    def _by_folder(self, download: Download) -> tuple[list[Case], list[Fault], list[str]]:
        tree = self._tree(download)
        if isinstance(tree.description.get("dataset"), Mapping):
            raise UserError(f'{tree.base}dataset.json lists files elsewhere ("dataset"): nnU-Net reads it as it is.')
        self.description = tree.description
        self.classes_from(tree.description, f"{tree.base}dataset.json")
        stated = channels_of_json(tree.description)
        unnamed = [] if self.names or stated else [UNNAMED]
        self.names = self.names or stated or tuple(f"channel_{index}" for index in range(tree.channels_seen))
        cases, faults, notices = tree_cases(tree, self.names, keep_unlabelled=self.unlabelled)
        return cases, faults, [*unnamed, *notices]

    def _by_pattern(self, download: Download) -> tuple[list[Case], list[Fault], list[str]]:
        matched = {name: _fits(name, pattern, download) for name, pattern in self.patterns.items()}
        references = {match.file for name in ("labels", "test-labels") for match in matched.get(name, ())}
        for name in ("images", "test-images"):
            matched[name] = [match for match in matched.get(name, ()) if match.file not in references]
        tokens, notices = self._channels([*matched["images"], *matched["test-images"]])
        cases: dict[str, Case] = {}
        faults: list[Fault] = []
        sides: tuple[tuple[str, Part], ...] = (("", "training"), ("test-", "test"))
        for side, part in sides:
            for case in self._paired(matched[f"{side}images"], matched.get(f"{side}labels"), tokens, part, faults):
                if case.id in cases:
                    faults.append(Fault(case.id, "duplicate id: it is a training case and a test case."))
                cases.setdefault(case.id, case)
        return sorted(cases.values(), key=lambda case: by_number(case.id)), faults, notices

    def _channels(self, images: Sequence[Matched]) -> tuple[list[str], list[str]]:
        """The text in file names of each channel, and notices; names the channels if the user did not."""
        seen = sorted({match.channel for match in images if match.channel}, key=by_number)
        if not seen:
            notices = [] if self.names else [UNNAMED]
            self.names = self.names or ("channel_0",)
            return [""], notices
        if self.names:
            return [(word.partition("=")[2] or word).lower() for word in self.channels], []
        self.names = tuple(seen)
        return [token.lower() for token in seen], [
            f"channels in this order: {', '.join(seen)}; --channels NAME=TOKEN ... names and orders them"
        ]

    def _paired(
        self,
        images: Sequence[Matched],
        labels: Sequence[Matched] | None,
        tokens: Sequence[str],
        part: Part,
        faults: list[Fault],
    ) -> list[Case]:
        """The cases of one part; what is wrong is added to `faults`, one for each case."""
        claims = [(f"{match.case}/{match.channel.lower()}", match.file) for match in images]
        files, image_faults = one_file_each(claims, "image")
        references, label_faults = one_file_each([(match.case, match.file) for match in labels or ()], "label")
        wrong = {fault.case.rpartition("/")[0]: fault.reason for fault in image_faults}
        wrong.update({fault.case: fault.reason for fault in label_faults})
        channels: dict[str, list[SourceFile | None]] = {}
        for key, file in files.items():
            case, _, token = key.rpartition("/")
            if case not in wrong:
                channels.setdefault(case, [None] * len(tokens))[tokens.index(token)] = file
        left = {case: file for case, file in references.items() if case not in wrong}
        called = [f"channel {token}" if token else "the image" for token in tokens]
        found, unpaired = pair(channels, left, channels=called)
        faults += [*(Fault(case, reason) for case, reason in wrong.items()), *unpaired]
        patients = {match.case: match.patient for match in images}
        cases = []
        for case, (own, label) in found.items():
            needed = part == "training" and labels is not None and not self.unlabelled
            if label is None and needed:
                pattern = self.patterns["labels"].text
                faults.append(
                    Fault(
                        case, f"no label for {own[0].where}: nothing fits {pattern!r}. --unlabelled keeps such images."
                    )
                )
            else:
                place: Part = "unlabelled" if part == "training" and label is None else part
                cases.append(Case(case, place, own, label, patients[case]))
        return cases


def _fits(name: str, pattern: Pattern, download: Download) -> list[Matched]:
    """What fits a pattern.

    Raises:
        UserError: nothing does; shows what is there.
    """
    found = list(pattern.matches(download))
    if not found:
        names = [file.name for file in download.images()]
        spread = names[:: max(1, len(names) // 6)]
        raise UserError(
            f"--{name} {pattern.text!r} fits none of the {len(names)} images there, such as: {tells(spread, 6)}"
            if names
            else f"--{name}: no images there at all, among {len(download.files)} files"
        )
    return found
