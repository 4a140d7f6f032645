"""OSS-Net: memory of training, time of decoding, its activation, and memory of whole-volume prediction, in one run.

* Bytes kept for backward by a training step, against nnU-Net's PlainConvUNet, on torch's meta device.
* Adaptive against dense decoding of networks trained on the bundled hippocampus cases (`ossnet_decoding.py`).
* The Padé activation against its formula in plain operators (`ossnet_pade.py`).
* Peak memory of `nnunet-ext predict-volume` for outputs of growing size, in fresh processes (`ossnet_volume.py`).

    python benchmarks/ossnet.py --models DIR     # trains networks into DIR, or uses those there: results/ossnet.*
    python benchmarks/ossnet.py                  # the same with a temporary folder
    python benchmarks/ossnet.py --pieces memory  # some pieces; with -o they replace those of an earlier report
    python benchmarks/ossnet.py --tiny           # the same code on toys, in seconds; writes nothing without -o
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import measure
import ossnet_decoding
import ossnet_pade
import ossnet_volume
import torch
from plain import plain_network
from torch import nn

from nnunet_ext.architectures.blocks.memory import kept_for_backward, saved_bytes
from nnunet_ext.architectures.ossnet import OSSNet
from nnunet_ext.architectures.ossnet_local import OSSNetLocal
from nnunet_ext.architectures.ossnet_local_plans import number_of_points, ossnet_local_architecture
from nnunet_ext.architectures.ossnet_plans import ossnet_architecture
from nnunet_ext.losses.point_sampling import Sampling, draw_points
from nnunet_ext.trainers.ossnet import OSSNetTrainer

RESULTS = Path(__file__).resolve().parent / "results"
PIECES = ("memory", "decoding", "pade", "volume")
MEBIBYTE = 2**20
EDGES = (128, 192, 256)
STAGES, CLASSES = 6, 2
PLAIN_KEEPS = {128: 3439, 192: 11605, 256: 27509}
"""MiB of PlainConvUNet by voxels an edge, as the specification counted them (ossnet 5.4)."""
SPECIFIED = 0.01  # our count and the specification's, relative
TARGET_EDGE, TARGET = 256, 0.15
ESTIMATE = 0.01  # the meta device and a CPU, relative


@dataclass(frozen=True)
class Kept:
    """MiB that a training step on one cube of `edge` voxels keeps for backward, float32."""

    edge: int
    plain: float
    local: float
    faithful: float


def built(name: str, edge: int, stages: int = STAGES, device: str = "meta") -> nn.Module:
    """A network for cubes of one channel, as nnU-Net's strides and the package's planner configure it."""
    strides, patch = [[1] * 3] + [[2] * 3] * (stages - 1), [edge] * 3
    with torch.device(device):
        if name == "plain":
            features = [min(32 * 2**stage, 320) for stage in range(stages)]
            return plain_network(features, strides, CLASSES, deep_supervision=True)
        if name == "local":
            arguments = ossnet_local_architecture(patch, strides, [[3] * 3] * stages)["arch_kwargs"]
            return OSSNetLocal(1, num_classes=CLASSES, **{**arguments, "conv_op": nn.Conv3d})
        arguments = ossnet_architecture(patch, "C", n_points=number_of_points(patch))["arch_kwargs"]
        return OSSNet(1, num_classes=CLASSES, **{**arguments, "conv_op": nn.Conv3d})


def kept_at(edge: int, stages: int = STAGES) -> Kept:
    """All three networks at one size."""
    sizes = {
        name: saved_bytes(built(name, edge, stages), [edge] * 3, 1, 1) / MEBIBYTE
        for name in ("plain", "local", "faithful")
    }
    return Kept(edge, **sizes)


def check_estimate(name: str, edge: int, stages: int) -> float:
    """Bytes kept on the meta device by those really kept on a CPU, minus one; points as the trainer draws them.

    Raises:
        RuntimeError: they differ by more than 1 %.
    """
    torch.manual_seed(0)
    network: Any = built(name, edge, stages, "cpu").train()
    points = draw_points(
        torch.zeros(1, 1, edge, edge, edge), Sampling(network.n_points, 0.25, 0.25, OSSNetTrainer.jitter, (7, 7, 7))
    )
    inputs = torch.randn(1, 1, edge, edge, edge), points.coords, points.on_grid
    real = kept_for_backward(lambda: network(*inputs), exclude=[*inputs, *network.parameters(), *network.buffers()])
    difference = saved_bytes(network, [edge] * 3, 1, 1) / real - 1
    if not abs(difference) <= ESTIMATE:
        raise RuntimeError(f"{name}: the estimate at {edge} voxels an edge differs by {difference:.1%} from the truth.")
    return difference


def memory(tiny: bool) -> dict[str, Any]:
    """Rows, and how far the estimates are off.

    Raises:
        RuntimeError: the specification's numbers of PlainConvUNet, or what a CPU keeps, are others.
    """
    edges, stages, small = ((16, 32), 3, 16) if tiny else (EDGES, STAGES, 64)
    rows = [kept_at(edge, stages) for edge in edges]
    specified = max((abs(row.plain / PLAIN_KEEPS.get(row.edge, row.plain) - 1) for row in rows), default=0.0)
    if specified > SPECIFIED:
        raise RuntimeError(f"PlainConvUNet's bytes differ by {specified:.1%} from the specification's.")
    estimates = {name: check_estimate(name, small, stages) for name in ("local", "faithful")}
    return {"rows": [asdict(row) for row in rows], "specified": specified, "estimates": estimates, "checked_at": small}


def verdict(met: bool) -> str:
    return "met" if met else "not met"


def memory_text(found: dict[str, Any]) -> str:
    """The piece's part of the report."""
    cells = []
    for row in found["rows"]:
        share = row["local"] / row["plain"]
        target = f"at most {TARGET}: {verdict(share <= TARGET)}" if row["edge"] == TARGET_EDGE else ""
        cells.append(
            (
                f"{row['edge']}³",
                f"{row['plain']:.0f}",
                f"{row['local']:.0f}",
                f"{row['faithful']:.0f}",
                f"**{share:.3f}**",
                target,
                f"{row['faithful'] / row['plain']:.3f}",
            )
        )
    header = ("image", "PlainConvUNet", "OSSNetLocal", "OSSNet (C)", "local/plain", "target", "faithful/plain")
    off = ", ".join(f"{name} {difference:+.2%}" for name, difference in found["estimates"].items())
    return "\n\n".join(
        [
            "## Kept for backward by a training step (MiB, one sample, one channel, float32)",
            measure.markdown_table(header, cells),
            "Counted on the meta device: the distinct storages that autograd keeps and twice the outputs, without "
            f"weights and inputs. OSSNetLocal and PlainConvUNet with nnU-Net's {STAGES} stages; 2^14 points. "
            f"PlainConvUNet is within {found['specified']:.2%} of the specification's 3439, 11605 and 27509 MiB. At "
            f"{found['checked_at']}³ the count differs from what a CPU really keeps by: {off}.",
        ]
    )


def decoding_text(found: Sequence[ossnet_decoding.Timing]) -> str:
    """The piece's part of the report."""
    cells = []
    for row in found:
        dense, adaptive = (median(row.seconds[mode]) for mode in ossnet_decoding.MODES)
        least = ossnet_decoding.EQUAL
        cells.append(
            (
                row.name,
                "" if row.dice is None else f"{row.dice:.3f}",
                " x ".join(map(str, row.patch)),
                f"{dense:.1f}",
                f"{adaptive:.2f}",
                f"**{row.faster:.1f}**",
                f"at least {row.target:g}: {verdict(row.faster >= row.target)}",
                f"{row.evaluated:.1%}",
                f"{row.foreground:.1%}",
                f"{row.equal:.4%} (at least {least:.1%}: {verdict(row.equal >= least)})",
            )
        )
    header = (
        "network", "Dice", "patch", "dense (s)", "adaptive (s)", "times faster", "target", "evaluated", "foreground",
        "same class",
    )  # fmt: skip
    edge = " x ".join([str(found[0].edge)] * len(found[0].patch))
    return "\n\n".join(
        [
            "## Adaptive against dense decoding",
            measure.markdown_table(header, cells),
            f"A validation case of the hippocampus data in one patch (padding included), decoded on {edge} points, all "
            "of them both ways; encoding is not timed. *Evaluated* is the share of the points that adaptive decoding "
            "asks the network for, *Dice* the mean of the validation fold at the images' own resolution.",
        ]
    )


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """What was found of all pieces asked for: numbers, strings, lists and dicts."""
    data: dict[str, Any] = {}
    if "memory" in options.pieces:
        data["memory"] = memory(options.tiny)
    if "decoding" in options.pieces:
        with ExitStack() as stack:
            folder = options.models or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            found = (
                ossnet_decoding.toy() if options.tiny else ossnet_decoding.timings(folder.resolve(), options.threads)
            )
        data["decoding"] = [asdict(row) for row in found]
    if "pade" in options.pieces:
        shapes: dict[str, tuple[int, ...]] | None = {"points": (64, 16)} if options.tiny else None
        rounds, compiled = (1, False) if options.tiny else (7, not options.eager_only)
        data["pade"] = [asdict(row) for row in ossnet_pade.pade_rows(shapes, rounds, compiled, options.threads)]
    if "volume" in options.pieces:
        edges = (32, 40) if options.tiny else ossnet_volume.EDGES
        data["volume"] = ossnet_volume.volume_rows(edges, options.threads)
    return data


def report(data: dict[str, Any]) -> str:
    """All pieces that were measured, in Markdown."""
    clock = "CPU time" if data["environment"]["threads"] == 1 else "wall clock"
    parts = [
        f"# OSS-Net\n\nfloat32 on a CPU, {clock}; what is compared takes turns in one process, times are medians of "
        "the rounds, ratios are medians of the quotients within a round.",
        "\n".join(f"* {name}: {value}" for name, value in data["environment"].items()),
    ]
    if "memory" in data:
        parts.append(memory_text(data["memory"]))
    if "decoding" in data:
        parts.append(decoding_text([ossnet_decoding.Timing(**row) for row in data["decoding"]]))
    if "pade" in data:
        rows = [ossnet_pade.Row(**row) for row in data["pade"]]
        parts.append(f"## Padé activation\n\n{ossnet_pade.table(rows)}\n\n{PADE}")
    if "volume" in data:
        parts.append(ossnet_volume.report(data["volume"]).replace("# Whole", "## Whole", 1))
    return "\n\n".join(parts) + "\n"


PADE = (
    "*compiled* is ours by torch.compile against the formula in eager mode, *both compiled* against the formula by "
    "torch.compile, whose powers overflow beyond |x| = 10^7."
)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pieces", nargs="+", choices=PIECES, default=list(PIECES), help="default: all")
    parser.add_argument("--models", type=Path, metavar="DIR", help="keeps the trained networks (default: temporary)")
    parser.add_argument("--tiny", action="store_true", help="toys in place of networks, small images")
    parser.add_argument("--eager-only", action="store_true", help="no torch.compile (it needs a C++ compiler)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    parser.add_argument("-o", "--output", type=Path, help="folder for the results (default, for full runs: results)")
    options = parser.parse_args(argv)
    full = not (options.tiny or options.eager_only) and set(options.pieces) == set(PIECES)
    options.output = options.output or (RESULTS if full else None)
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the report, and write it."""
    options = parse(argv)
    torch.set_num_threads(options.threads)
    data = {"environment": measure.environment(), **measured(options)}
    earlier = options.output / "ossnet.json" if options.output else None
    if earlier is not None and earlier.exists():
        data = {**json.loads(earlier.read_text()), **data}
    text = report(data)
    print(text)
    if options.output:
        measure.write_results(options.output, "ossnet", text, data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
