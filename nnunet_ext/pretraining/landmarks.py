"""The landmark table: the same anatomical points in many cases, in patient coordinates, matched once and kept."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_ext.errors import UserError
from nnunet_ext.whole_files import write_whole

KINDS = ("overlap", "bodybox", "affine", "embedding")
FORMAT = "nnunet_ext landmarks"
VERSION = 1

Draw = tuple[int, npt.NDArray[np.float64], npt.NDArray[np.float64]]


def table_path(folder: Path, kind: str) -> Path:
    """Where the table of a kind lies in a pool's folder."""
    return folder / f"landmarks_{kind}.npz"


@dataclass(frozen=True, eq=False)
class LandmarkTable:
    """K points in each of n cases.

    Attributes:
        kind: how they were found: "overlap", "bodybox", "affine" or "embedding".
        cases: names, n.
        points: (n, K, 3) float64, LPS mm (x, y, z); NaN where there is none.
        scores: (n, K) float32: local correlation or cosine; 1 in the reference and for "overlap"; NaN where there is
            none.
        accepted: (n, K) bool.
        same_volume: True for "overlap": point k of two cases has nothing in common, it belongs to its case only.
        definition: JSON values: settings, threshold, reference, versions, and why cases have no accepted points.

    Reference: specification alice 3.3.
    """

    kind: str
    cases: tuple[str, ...]
    points: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float32]
    accepted: npt.NDArray[np.bool_]
    same_volume: bool
    definition: dict[str, Any]

    def __post_init__(self) -> None:
        """Check that the parts fit.

        Raises:
            UserError: they don't, or an accepted point is none.
        """
        shape = (len(self.cases), self.points.shape[1] if self.points.ndim == 3 else -1)
        if self.points.shape != (*shape, 3) or self.scores.shape != shape or self.accepted.shape != shape:
            raise UserError(
                f"a landmark table of {len(self.cases)} cases with points {self.points.shape}, scores "
                f"{self.scores.shape}, accepted {self.accepted.shape}: make it again with nnunet-ext correspond"
            )
        if not np.isfinite(self.points[self.accepted]).all():
            raise UserError("a landmark table with accepted points that are none: make it again")
        if self.kind not in KINDS or self.same_volume != (self.kind == "overlap"):
            raise UserError(f"a landmark table of kind {self.kind!r}; allowed: {', '.join(KINDS)}")

    def save(self, path: Path) -> None:
        """Write an .npz file without pickled objects; whole or not at all.

        Raises:
            UserError: it cannot be written.
        """
        head = {"format": FORMAT, "version": VERSION, "kind": self.kind, "definition": self.definition}
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            head=np.array(json.dumps(head)),
            cases=np.array(self.cases, dtype=np.str_),
            points=self.points.astype(np.float64),
            scores=self.scores.astype(np.float32),
            accepted=self.accepted.astype(np.bool_),
        )
        write_whole(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> LandmarkTable:
        """Read what `save` wrote.

        Raises:
            UserError: there is no such file, or it is another one.
        """
        if not path.is_file():
            raise UserError(f"{path}: no such file; make it with nnunet-ext correspond")
        try:
            with np.load(path, allow_pickle=False) as content:
                head = json.loads(str(content["head"]))
                parts = {name: content[name] for name in ("cases", "points", "scores", "accepted")}
            known = head["format"] == FORMAT and head["version"] == VERSION
            kind, definition = head["kind"], head["definition"]
        except (OSError, ValueError, KeyError, TypeError, EOFError, AttributeError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} is no landmark table; make it again with nnunet-ext correspond") from error
        if not known:
            raise UserError(
                f"{path}: format {head['format']!r}, version {head['version']!r}; known: {FORMAT!r}, {VERSION}. "
                "Make it again with nnunet-ext correspond"
            )
        cases = tuple(str(name) for name in parts.pop("cases"))
        return cls(kind=kind, cases=cases, same_volume=kind == "overlap", definition=definition, **parts)

    def digest(self) -> str:
        """SHA-256 of what pairs are drawn from."""
        parts = ("\n".join(self.cases).encode(), self.points.tobytes(), self.accepted.tobytes())
        return hashlib.sha256(b"".join(parts)).hexdigest()

    def acceptance(self) -> float:
        """Share of accepted points, the reference's own left out; NaN without any other case."""
        others = [name != self.definition.get("reference") for name in self.cases]
        return float(self.accepted[others].mean()) if any(others) and self.accepted.shape[1] else float("nan")

    def median_score(self) -> float:
        """Median score of the points that were found in cases other than the reference; NaN without any."""
        others = [name != self.definition.get("reference") for name in self.cases]
        scores = self.scores[others]
        scores = scores[np.isfinite(scores)]
        return float(np.median(scores)) if scores.size else float("nan")

    def draw(self, rng: np.random.Generator, index: int) -> Draw | None:
        """A point of a case, and the same point in another case, all equally likely.

        Args:
            rng: gives the point and the partner; asked equally often whatever comes out.
            index: of the case.

        Returns:
            The partner's index, the point in the case and the point in the partner, both (3,) LPS mm; None where no
            point of the case has a partner. Of an "overlap" table, the case itself is the partner.
        """
        first, second = rng.random(2)
        usable = self._usable[index]
        if not usable.size:
            return None
        point = int(usable[int(first * usable.size)])
        partner = index
        if not self.same_volume:
            others = np.flatnonzero(self.accepted[:, point])
            others = others[others != index]
            partner = int(others[int(second * others.size)])
        return partner, self.points[index, point].copy(), self.points[partner, point].copy()

    @cached_property
    def _usable(self) -> list[npt.NDArray[np.intp]]:
        """Numbers of the points of each case that are accepted, and elsewhere as well."""
        shared = self.accepted if self.same_volume else self.accepted & (self.accepted.sum(0, keepdims=True) > 1)
        return [np.flatnonzero(row) for row in shared]


def definition_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they come back from a file: JSON values."""
    return dict(json.loads(json.dumps(dict(settings))))
