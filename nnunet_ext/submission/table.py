"""Tables for people: which labels a submission has, and in how many cases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath

MOST_VALUES = 60


def label_table(values: Mapping[str, Mapping[int, int]], names: Mapping[str, Mapping[int, str]] | None = None) -> str:
    """Voxels of each label over all files, and how many files have it; folder by folder.

    Args:
        values: file -> value -> voxels.
        names: folder -> value -> name of the label.
    """
    rows = [("folder", "value", "label", "files", "voxels", "share")]
    folders: dict[str, list[Mapping[int, int]]] = {}
    for path, counts in values.items():
        parent = str(PurePosixPath(path).parent)
        folders.setdefault("" if parent == "." else parent, []).append(counts)
    for folder, files in sorted(folders.items()):
        known = (names or {}).get(folder, {})
        total = sum(sum(counts.values()) for counts in files)
        found = sorted({value for counts in files for value in counts} | set(known))
        if len(found) > MOST_VALUES:
            rows.append((folder, f"{len(found)} values from {found[0]} to {found[-1]}: no label maps?", "", "", "", ""))
            continue
        for value in found:
            voxels = sum(counts.get(value, 0) for counts in files)
            having = sum(bool(counts.get(value)) for counts in files)
            share = f"{100 * voxels / total:.3f} %" if total else "-"
            row = (folder, str(value), known.get(value, ""), f"{having} of {len(files)}", str(voxels), share)
            rows.append(row)
    kept = [k for k in range(len(rows[0])) if any(row[k] for row in rows[1:])]
    widths = [max(len(row[k]) for row in rows) for k in kept]
    left = {0, 2}
    return "\n".join(
        "  ".join(
            row[k].ljust(width) if k in left else row[k].rjust(width) for k, width in zip(kept, widths, strict=True)
        ).rstrip()
        for row in rows
    )
