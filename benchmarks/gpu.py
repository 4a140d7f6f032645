"""What needs a GPU: checks and measurements in pieces of under ten minutes, and a report.

    python benchmarks/gpu.py -o REPORT_FOLDER                        # every piece, one after the other
    python benchmarks/gpu.py -o REPORT_FOLDER --piece memory speed   # some; the report keeps what earlier runs found
    python benchmarks/gpu.py -o REPORT_FOLDER --device cpu --tiny    # the same code without a GPU, on toy networks

Nothing is downloaded. Exit code 0: every check held; 1: one failed, or there is no GPU.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gpu_networks
import measure
import torch
from gpu_pieces import PIECES
from gpu_setting import Outcome, Setting


def run_piece(name: str, setting: Setting) -> dict[str, Any]:
    """Run one piece; an exception in it is a failure of that piece, and the others go on."""
    start = time.perf_counter()
    try:
        outcome = PIECES[name](setting)
    except Exception as error:  # the report must say what happened, and later pieces still run
        traceback.print_exc()
        outcome = Outcome(failures=[f"{name}: {type(error).__name__}: {error}"])
    about = {"plan": str(setting.plan), "device": setting.device, "seconds": round(time.perf_counter() - start, 1)}
    return {**asdict(outcome), **about, "environment": measure.environment()}


def as_markdown(name: str, found: dict[str, Any]) -> str:
    """One piece's section of the report."""
    verdict = "skipped" if found["skipped"] else "FAILED" if found["failures"] else "ok"
    where = ", ".join(found["environment"]["gpus"]) if found["device"] == "cuda" else "CPU"
    versions = f"torch {found['environment']['torch']}, {found['environment']['date']}"
    parts = [f"## {name}: {verdict}", f"{where}, {versions}, {found['seconds']} s; {found['plan']}."]
    parts += [text for text in (inspect.getdoc(PIECES[name]), found["remark"]) if text]
    if found["rows"]:
        parts.append(measure.markdown_table(found["header"], found["rows"]))
    parts += [f"* {failure}" for failure in found["failures"]]
    return "\n\n".join(parts)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for gpu.md and gpu.json")
    parser.add_argument("--piece", nargs="+", choices=list(PIECES), default=list(PIECES), help="default: all")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: cuda")
    parser.add_argument("--tiny", action="store_true", help="toy networks and patches, to try the script")
    parser.add_argument("--rounds", type=int, default=10, help="repetitions of every timing (default: 10)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the chosen pieces; the report is rewritten after each."""
    options = parse(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("No GPU that torch can use was found: run this on a machine with one, or with --device cpu --tiny.")
        return 1
    plan = gpu_networks.TINY if options.tiny else gpu_networks.Plan()
    setting = Setting(options.device, plan, options.rounds)
    earlier = options.output / "gpu.json"
    report: dict[str, Any] = json.loads(earlier.read_text()) if earlier.exists() else {}
    for name in options.piece:
        report[name] = run_piece(name, setting)
        print(as_markdown(name, report[name]), end="\n\n", flush=True)
        sections = [as_markdown(piece, report[piece]) for piece in PIECES if piece in report]
        text = "\n\n".join(["# What needs a GPU: checks and measurements", *sections]) + "\n"
        measure.write_results(options.output, "gpu", text, report)
    return int(any(report[name]["failures"] for name in options.piece))


if __name__ == "__main__":
    sys.exit(main())
