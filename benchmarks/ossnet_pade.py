"""The Padé activation against its formula in plain operators: time of forward and backward, bytes kept for backward.

The formula is written as one would, polynomials by Horner's rule, and differentiated by autograd. Sums of powers, as
the specification prints it, take more than twice as long and keep as much. Nothing is timed before both have given the
same values and gradients.

    python benchmarks/ossnet_pade.py                 # prints the table; about a minute
    python benchmarks/ossnet_pade.py --eager-only    # without torch.compile (it needs a C++ compiler)
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import measure
import torch
from torch import Tensor

from nnunet_ext.architectures.blocks.pade import PadeActivation, pade

SHAPES = {"feature map": (1, 16, 64, 64, 64), "points": (2**14, 256)}
"""A map of the encoder (channels last, as networks keep it on a CPU), and features of points in the decoder."""
TARGETS = {"eager": 1.3, "compiled": 0.6, "kept": 0.4}
TOLERANCE = 1e-4  # of values and gradients, relative to their norms
Function = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Row:
    """One measured quantity.

    Attributes:
        name: what was measured.
        ours, naive: medians, in `unit`.
        ratio: ours to naive; of times the median over the rounds.
        target: what the ratio should be at most; None for what is only told.
    """

    name: str
    unit: str
    ours: float
    naive: float
    ratio: float
    target: float | None


def naive_pade(x: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
    """The formula, in plain operators: P(x) / Q(|x|)."""
    p = numerator[5] * x + numerator[4]
    for k in (3, 2, 1, 0):
        p = p * x + numerator[k]
    sizes, a = denominator.abs(), x.abs()
    q = sizes[3] * a + sizes[2]
    for k in (1, 0):
        q = q * a + sizes[k]
    return p / (q * a + 1)


def example(shape: Sequence[int]) -> Tensor:
    """Normal values of the shape, the same every time; maps are channels-last."""
    x = 2 * torch.randn(tuple(shape), generator=torch.Generator().manual_seed(0))
    return x.contiguous(memory_format=torch.channels_last_3d) if x.dim() == 5 else x


def pass_of(function: Function, x: Tensor) -> Callable[[], list[Tensor]]:
    """A function that does one forward and backward, and returns the output and all gradients."""
    leaf, upstream = x.detach().requires_grad_(), x.flip(0)
    coefficients = tuple(PadeActivation().parameters())

    def run() -> list[Tensor]:
        y = function(leaf, *coefficients)
        return [y.detach(), *torch.autograd.grad(y, (leaf, *coefficients), upstream)]

    return run


def kept(function: Function, x: Tensor) -> int:
    """Bytes kept for backward, the input included."""
    coefficients = tuple(PadeActivation().parameters())
    leaf = x.detach().requires_grad_()
    with measure.KeptForBackward(coefficients) as count:
        function(leaf, *coefficients)
    return count.bytes


def check_equal(runs: dict[str, Callable[[], list[Tensor]]]) -> None:
    """Compare all forms' values and gradients with the naive ones.

    Raises:
        RuntimeError: they are not the same.
    """
    wanted = runs["naive"]()
    for name, run in runs.items():
        worst = max(float((a - b).norm() / b.norm()) for a, b in zip(run(), wanted, strict=True))
        if not worst <= TOLERANCE:
            raise RuntimeError(f"The form {name!r} differs from the naive one by {worst:.1e}.")


def pade_rows(
    shapes: dict[str, tuple[int, ...]] | None = None, rounds: int = 7, compiled: bool = True, threads: int = 1
) -> list[Row]:
    """Measure everything, in turns, in this process.

    Args:
        shapes: name -> shape of the inputs; None for `SHAPES`.
        rounds: of the timings.
        compiled: also the forms that torch.compile makes; only ours against the eager formula has a target.
        threads: that torch uses; with one, CPU time is measured.
    """
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    functions: dict[str, Function] = {"naive": naive_pade, "eager": pade}
    if compiled:
        functions |= {"compiled": torch.compile(pade), "compiled naive": torch.compile(naive_pade)}
    rows: list[Row] = []
    for shape_name, shape in (shapes or SHAPES).items():
        x = example(shape)
        runs = {name: pass_of(function, x) for name, function in functions.items()}
        check_equal(runs)  # and compiles
        rows += _timed(shape_name, measure.in_turns(runs, rounds, clock))
        ours, naive = (kept(function, x) / 1e6 for function in (pade, naive_pade))
        rows.append(Row(f"{shape_name}: kept", "MB", ours, naive, ours / naive, TARGETS["kept"]))
    return rows


def _timed(shape_name: str, seconds: dict[str, list[float]]) -> list[Row]:
    """The rows of one shape's times."""
    pairs = (
        ("eager", "eager", "naive", TARGETS["eager"]),
        ("compiled", "compiled", "naive", TARGETS["compiled"]),
        ("both compiled", "compiled", "compiled naive", None),
    )
    return [
        Row(
            f"{shape_name}: {title}",
            "ms",
            1000 * median(seconds[ours]),
            1000 * median(seconds[naive]),
            measure.ratio(seconds, ours, naive),
            target,
        )
        for title, ours, naive, target in pairs
        if ours in seconds
    ]


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    cells = [
        (
            row.name,
            f"{row.ours:.1f} {row.unit}",
            f"{row.naive:.1f} {row.unit}",
            f"**{row.ratio:.2f}**",
            "" if row.target is None else f"at most {row.target}: {'met' if row.ratio <= row.target else 'not met'}",
        )
        for row in rows
    ]
    return measure.markdown_table(("Padé forward + backward", "ours", "naive", "ours/naive", "target"), cells)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eager-only", action="store_true", help="leave out what torch.compile makes")
    parser.add_argument("--repeats", type=int, default=7, help="rounds of the timings (default: 7)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    options = parser.parse_args(argv)
    rows = pade_rows(rounds=options.repeats, compiled=not options.eager_only, threads=options.threads)
    print(table(rows))
    print(measure.environment_list())
    return 0


if __name__ == "__main__":
    sys.exit(main())
