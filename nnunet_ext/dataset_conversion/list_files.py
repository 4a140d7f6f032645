"""Files that a list names by paths, found among the files of a download, wherever it lies now."""

from __future__ import annotations

import posixpath
from pathlib import PurePosixPath

from nnunet_ext.dataset_conversion.sources import Download, SourceFile


def place_of(path: str) -> PurePosixPath:
    """A path of a list with slashes, and without what leads nowhere (``./``, ``a/../``)."""
    return PurePosixPath(posixpath.normpath(path.replace("\\", "/")))


class ListedFiles:
    """Look-up by the list's paths; nothing outside of the download is ever returned."""

    def __init__(self, download: Download, base: str) -> None:
        """Args: download: the files. base: the folder in it that relative paths start at; "" or "." is its root."""
        self._by_name = {file.name: file for file in download.files}
        self._by_place = {str(file.container): file for file in download.files if file.member is None}
        self._base = base if base != "." else ""
        self._dropped: set[str] = set()
        self.start = "/".join(part for part in (str(_folder(download)), self._base) if part)

    def get(self, path: str) -> SourceFile | None:
        """The file that a path means.

        Lists are made on other machines: if a path is not there as it stands, its leading folders are dropped one by
        one until it is; the last one stays, since the names of files alone say too little (``ct.nii.gz``).
        """
        place = place_of(path)
        exact = self._by_place.get(str(place)) or self._by_name.get(posixpath.join(self._base, str(place)))
        if exact is not None:
            return exact
        parts = place.parts
        for start in range(1, len(parts) - 1):
            for base in (self._base, ""):
                found = self._by_name.get(posixpath.join(base, *parts[start:]))
                if found is not None:
                    self._dropped.add(posixpath.join(*parts[:start]))
                    return found
        return None

    @property
    def notices(self) -> tuple[str, ...]:
        """What was done to find files."""
        dropped = sorted(self._dropped)
        if not dropped:
            return ()
        more = f" and {len(dropped) - 3} more" if len(dropped) > 3 else ""
        return (f"the list's paths were looked up without their beginnings {', '.join(dropped[:3])}{more}",)


def _folder(download: Download) -> PurePosixPath:
    root = download.roots[0]
    return PurePosixPath(root.parent if root.suffix.lower() == ".json" else root)
