"""What `nnunet-ext convert` costs beside a plain `shutil.copy` of the same files, and what its checks read a second.

A download in BTCV's layout is made of CT-like volumes: a body of soft tissue in air, with noise, so that gzip takes the
time and leaves the size that it does of a CT. Every round does everything once, in turns; ratios are medians over the
rounds. All files are in the page cache, and everything is imported. nnU-Net's own verification, which ends every
conversion that checks anything, has a row of its own and is in no other.

    python benchmarks/conversion.py                                  # writes benchmarks/results/conversion.*
    python benchmarks/conversion.py --cases 4 --shape 128 128 40     # a quick look; writes nothing without -o
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import measure
import nibabel
import numpy as np

from nnunet_ext.dataset_conversion import files, outcome, run
from nnunet_ext.dataset_conversion.options import Options

RESULTS = Path(__file__).resolve().parent / "results"
TARGET = 0.05  # linking with --check none, of the time of copying
MEGABYTE = 1e6
JOBS = 2


def volumes(shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """A CT (x, y, z) in Hounsfield units, int16, and its labels, uint8: 13 boxes."""
    rng = np.random.default_rng(0)
    axes = np.meshgrid(*(np.linspace(-1, 1, edge, dtype=np.float32) for edge in shape[:2]), indexing="ij")
    body = np.where(axes[0] ** 2 + (1.4 * axes[1]) ** 2 < 0.8, 50, -1000)
    image = (body[..., None] + rng.normal(0, 15, shape).astype(np.float32)).astype(np.int16)
    labels = np.zeros(shape, np.uint8)
    for value in range(1, 14):
        start = [int(edge * (0.25 + 0.03 * value)) for edge in shape]
        labels[tuple(slice(begin, begin + edge // 8) for begin, edge in zip(start, shape, strict=True))] = value
    return np.clip(image, -1024, 3000), labels


def make_download(folder: Path, cases: int, shape: Sequence[int], ending: str) -> list[Path]:
    """BTCV's training folders; returns all files. The cases are the same volume under several names."""
    affine = np.diag([-0.75, -0.75, 3.0, 1.0])
    made = []
    for kind, array in zip(("img", "label"), volumes(shape), strict=True):
        content = nibabel.Nifti1Image(array, affine).to_bytes()
        content = gzip.compress(content, 6) if ending.endswith(".gz") else content
        numbers = [*range(1, 11), *range(21, 41)][:cases]
        for number in numbers:
            path = folder / "RawData" / "Training" / kind / f"{kind}{number:04d}{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            made.append(path)
    return made


def copied(paths: Sequence[Path], target: Path) -> None:
    """What a user would do by hand."""
    target.mkdir()
    for path in paths:
        shutil.copy(path, target / path.name)


def compressed(paths: Sequence[Path], target: Path, pool: ProcessPoolExecutor | None) -> None:
    """Nothing but gzip, at the levels that conversion writes images and labels with."""
    target.mkdir()
    jobs = [(path, target / f"{path.name}.gz") for path in paths]
    list((map if pool is None else pool.map)(_compress, jobs))


def _compress(job: tuple[Path, Path]) -> None:
    source, target = job
    level = files.LABEL_LEVEL if source.name.startswith("label") else files.IMAGE_LEVEL
    target.write_bytes(gzip.compress(source.read_bytes(), level))


def converted(download: Path, raw: Path, **options: Any) -> None:
    """`nnunet-ext convert btcv DOWNLOAD --split cv`, without nnU-Net's own verification."""
    raw.mkdir()
    setattr(run, "verify", lambda *_: None)  # noqa: B010
    os.environ["nnUNet_raw"] = str(raw)
    os.environ["nnUNet_preprocessed"] = str(raw / "preprocessed")
    report = run.convert("btcv", [download], Options(splits=("cv",), **options))
    if not report.ok:
        raise RuntimeError(f"conversion failed: {report.faults[:3]}")


def timed(task: Callable[[Path], None], scratch: Path) -> float:
    """Seconds by the clock; what was written is removed afterwards."""
    target = scratch / "target"
    start = time.perf_counter()
    task(target)
    seconds = time.perf_counter() - start
    shutil.rmtree(target)
    return seconds


def timed_verification(download: Path, scratch: Path) -> float:
    """Seconds of nnU-Net's verify_dataset_integrity by `JOBS` processes, their start included."""
    target = scratch / "target"
    converted(download, target, check="none")
    start = time.perf_counter()
    problem = outcome.verify(next(target.glob("Dataset*")), JOBS)
    seconds = time.perf_counter() - start
    shutil.rmtree(target)
    if problem:
        raise RuntimeError(problem)
    return seconds


def measured(scratch: Path, cases: int, shape: Sequence[int], rounds: int) -> dict[str, Any]:
    """All times, in seconds, of all rounds."""
    packed, plain = scratch / "packed", scratch / "plain"
    files_of = {"packed": make_download(packed, cases, shape, ".nii.gz")}
    files_of["plain"] = make_download(plain, max(2, cases // 4), shape, ".nii")
    sizes = {name: sum(path.stat().st_size for path in paths) for name, paths in files_of.items()}
    with ProcessPoolExecutor(JOBS, mp_context=get_context("spawn")) as pool:
        list(pool.map(len, [[]] * JOBS))  # both have started
        tasks: dict[str, Callable[[Path], None]] = {
            "copy": lambda target: copied(files_of["packed"], target),
            "link, check none": lambda target: converted(packed, target, check="none"),
            "link, check fast": lambda target: converted(packed, target, check="fast"),
            "link, check full": lambda target: converted(packed, target, check="full"),
            "gzip alone, 1 job": lambda target: compressed(files_of["plain"], target, None),
            "rewrite, 1 job": lambda target: converted(plain, target, check="full"),
            f"gzip alone, {JOBS} jobs": lambda target: compressed(files_of["plain"], target, pool),
            f"rewrite, {JOBS} jobs": lambda target: converted(plain, target, check="full", processes=JOBS),
        }
        for name, task in tasks.items():
            if name.startswith(("copy", "link, check none")):
                timed(task, scratch)  # files are in the page cache, modules are imported
        seconds: dict[str, list[float]] = {name: [] for name in tasks}
        for _ in range(rounds):
            for name, task in tasks.items():
                seconds[name].append(timed(task, scratch))
        seconds["verify"] = [timed_verification(packed, scratch)]
    return {"bytes": sizes, "files": {name: len(paths) for name, paths in files_of.items()}, "seconds": seconds}


def ratio(seconds: dict[str, list[float]], name: str, other: str) -> float:
    """Median over the rounds of one time by the other."""
    return median(mine / theirs for mine, theirs in zip(seconds[name], seconds[other], strict=True))


def table(found: dict[str, Any]) -> str:
    """The result as Markdown."""
    seconds, sizes = found["seconds"], found["bytes"]
    none = ratio(seconds, "link, check none", "copy")
    lines = [
        f"{found['cases']} cases of {' x '.join(map(str, found['shape']))} voxels in BTCV's layout: "
        f"{found['files']['packed']} files, {sizes['packed'] / MEGABYTE:.0f} MB of .nii.gz; "
        f"{found['files']['plain']} files, {sizes['plain'] / MEGABYTE:.0f} MB of .nii.",
        "",
        "| | time | MB/s of the files read |",
        "|---|---|---|",
        f"| `shutil.copy` of .nii.gz | 1 | {sizes['packed'] / MEGABYTE / median(seconds['copy']):.0f} |",
    ]
    for check in ("none", "fast", "full"):
        name = f"link, check {check}"
        speed = "" if check == "none" else f"{sizes['packed'] / MEGABYTE / median(seconds[name]):.0f}"
        target = f" (target {TARGET} at most: {'met' if none <= TARGET else 'MISSED'})" if check == "none" else ""
        lines.append(f"| linked, `--check {check}` | {ratio(seconds, name, 'copy'):.3f}{target} | {speed} |")
    speed = f"{sizes['packed'] / MEGABYTE / seconds['verify'][0]:.0f}"
    lines.append(f"| nnU-Net's verify_dataset_integrity, {JOBS} processes | | {speed} |")
    for jobs in ("1 job", f"{JOBS} jobs"):
        speed = f"{sizes['plain'] / MEGABYTE / median(seconds[f'rewrite, {jobs}']):.0f}"
        by_gzip = ratio(seconds, f"rewrite, {jobs}", f"gzip alone, {jobs}")
        what = f"rewritten from .nii, checked in full, {jobs}, their start included"
        lines.append(f"| {what} | {by_gzip:.2f} of gzip alone | {speed} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write the result of a full run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--cases", type=int, default=30, help="at most 30")
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 512, 140))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", dest="output", type=Path, help="folder of the result")
    options = parser.parse_args(arguments)
    full = (options.cases, tuple(options.shape)) == (30, (512, 512, 140))
    with tempfile.TemporaryDirectory() as scratch:
        found = measured(Path(scratch), options.cases, options.shape, options.rounds)
    found |= {"cases": options.cases, "shape": list(options.shape), "environment": measure.environment()}
    text = table(found)
    print(text)
    output = options.output or (RESULTS if full else None)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "conversion.md").write_text(text)
        (output / "conversion.json").write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
