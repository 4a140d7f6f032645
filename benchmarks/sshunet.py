"""SSH-UNet against its published formulation and against nnU-Net's PlainConvUNet, in one run.

The three networks work on the same input (1 x 1 x 96^3 by default), in turns, in one process; the published
formulation (`sshunet_baseline.py`) and ours have the same weights, carried over by the package's own importer, and are
timed only after their outputs were found equal. Peak memory is measured in a fresh process each. No activation
checkpointing anywhere.

    python benchmarks/sshunet.py                    # the published configuration; writes benchmarks/results/sshunet.*
    python benchmarks/sshunet.py --variants all     # also GSM, GSF and VFN
    python benchmarks/sshunet.py --size 32 --quantities inference saved
    python benchmarks/sshunet.py --profile          # where the time goes, instead of the table
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import measure
import torch
from plain import plain_network
from sshunet_baseline import PUBLISHED_FEATURES, published
from torch import Tensor, nn
from torch.nn import functional

from nnunet_ext.weights.sshunet import build_network, load_weights
from nnunet_ext.weights.sshunet_configuration import GateChoice, infer_configuration

RESULTS = Path(__file__).resolve().parent / "results"
VARIANTS = {"TSM": ("tsm", False), "GSM": ("gsm", False), "GSF": ("gsf", False), "VFN": ("tsm", True)}
CLASSES = 14
TOLERANCE = 1e-4


QUANTITIES = {
    "inference": measure.Quantity("inference, time", "s", 0.8),
    "inference_peak": measure.Quantity("inference, extra peak memory", "GiB", 0.55),
    "training": measure.Quantity("training step, time", "s", 0.9),
    "saved": measure.Quantity("kept for backward", "GiB", 0.75),
    "held": measure.Quantity("held after the training forward, resident", "GiB"),
    "training_peak": measure.Quantity("training step, extra peak memory", "GiB"),
}
SELECTABLE = ("inference", "training", "saved", "memory")


def build(variant: str, names: Iterable[str] = measure.NETWORKS) -> dict[str, nn.Module]:
    """The networks called `names`; "published" and "ours" have the same weights."""
    gate, vfn = VARIANTS[variant]
    torch.manual_seed(0)
    baseline = published(gate, CLASSES, vfn)
    networks: dict[str, nn.Module] = {"published": baseline}
    if "ours" in names:
        state = baseline.state_dict()
        configuration = infer_configuration(state, GateChoice(gate=gate))
        networks["ours"] = build_network(configuration, axes="zyx")
        load_weights(networks["ours"], state, configuration)
        networks["ours"].decoder.deep_supervision = False  # type: ignore[union-attr]
    if "plain" in names:
        networks["plain"] = plain_network(PUBLISHED_FEATURES, [[1] * 3] + [[2] * 3] * 4, CLASSES)
    return {name: networks[name] for name in measure.NETWORKS if name in names}


def make_input(size: int) -> Tensor:
    """(1, 1, size, size, size), the same values every time."""
    return torch.randn((1, 1, size, size, size), generator=torch.Generator().manual_seed(1))


def training_step(network: nn.Module, x: Tensor) -> Callable[[], None]:
    """A function that does one training step with cross entropy."""
    target = torch.randint(CLASSES, (x.shape[0], *x.shape[2:]), generator=torch.Generator().manual_seed(2))
    return measure.training_step(network, x, lambda logits: functional.cross_entropy(logits, target))


def check_equal(networks: dict[str, nn.Module], x: Tensor) -> float:
    """Largest difference of ours from the published formulation, in its standard deviations; raises if above 1e-4."""
    reference, logits = (measure.inference(networks[name], x) for name in ("published", "ours"))
    difference = float((logits - reference).abs().max() / reference.std())
    if not difference <= TOLERANCE:
        raise RuntimeError(f"The outputs differ by {difference:.1e} of their standard deviation: not the same network.")
    return difference


def one_memory_run(variant: str, name: str, what: str, size: int) -> dict[str, int]:
    """Extra resident memory of one pass in this process, after a small one that loads the kernels."""
    network = build(variant, [name])[name]
    x, small = make_input(size), make_input(32)
    if what == "inference":
        network.eval()
        measure.inference(network, small)
        with measure.extra_peak() as extra:
            measure.inference(network, x)
        return {"inference_peak": extra["peak"]}
    training_step(network, small)()
    step = training_step(network, x)
    before = measure.resident_bytes()
    logits = network(x)
    held = measure.resident_bytes() - before
    del logits
    with measure.extra_peak() as extra:
        step()
    return {"held": held, "training_peak": extra["peak"]}


def measure_variant(variant: str, options: argparse.Namespace) -> dict[str, Any]:
    """Every chosen quantity of the three networks."""
    networks = build(variant)
    x = make_input(options.size)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    for network in networks.values():
        network.eval()
    values: measure.Values = {}
    result: dict[str, Any] = {"difference": check_equal(networks, x), "values": values}
    measure.inference(networks["plain"], x)
    if "inference" in options.quantities:
        runs = {name: lambda network=network: measure.inference(network, x) for name, network in networks.items()}
        values["inference"] = measure.in_turns(runs, options.repeats, clock)
    if "training" in options.quantities:
        for network in networks.values():
            training_step(network, make_input(32))()
        steps = {name: training_step(network, x) for name, network in networks.items()}
        values["training"] = measure.in_turns(steps, options.repeats, clock)
    if "saved" in options.quantities:
        values["saved"] = {name: [measure.kept_by_step(network, x) / measure.GIB] for name, network in networks.items()}
    del networks
    if "memory" in options.quantities:
        for what in ("inference", "training"):
            for name in measure.NETWORKS:
                arguments = ["--one-run", variant, name, what, "--size", str(options.size)]
                arguments += ["--threads", str(options.threads)]
                for key, value in measure.in_fresh_process(__file__, arguments).items():
                    values.setdefault(key, {})[name] = [value / measure.GIB]
    result["ratios"] = {key: measure.ratios(found) for key, found in values.items()}
    return result


def report(results: dict[str, dict[str, Any]], options: argparse.Namespace) -> str:
    """The whole report in Markdown."""
    clock = "CPU time of the process" if options.threads == 1 else "wall clock"
    parts = [
        "# SSH-UNet: ours, the published formulation, and nnU-Net's PlainConvUNet",
        f"Input 1 x 1 x {options.size}^3, {CLASSES} classes, float32, {options.threads} thread(s); "
        f"{options.repeats} rounds in turns, {clock}; seconds and GiB are medians, ratios are medians of the quotients "
        "within a round. Targets are for TSM.",
        measure.environment_list(),
    ]
    for variant, result in results.items():
        parts.append(f"## {variant}\nOutputs differ by {result['difference']:.1e} of their standard deviation.")
        parts.append(measure.quantity_table(QUANTITIES, result["values"]))
    return "\n\n".join(parts) + "\n"


def print_profile(variant: str, options: argparse.Namespace) -> None:
    """Print where the time of a forward pass and of a training step goes, by group and by operator."""
    networks = build(variant)
    x = make_input(options.size)
    for network in networks.values():
        network.eval()
    predict = {name: partial(measure.inference, network, x) for name, network in networks.items()}
    print("\n" + measure.profile_text(f"{variant}, inference", networks, predict))
    train = {name: training_step(network, x) for name, network in networks.items()}
    print("\n" + measure.profile_text(f"{variant}, training step", networks, train))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=96, help="edge of the input cube in voxels (default: 96)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of the timings (default: 3)")
    parser.add_argument("--variants", nargs="+", default=["TSM"], choices=[*VARIANTS, "all"], help="default: TSM")
    parser.add_argument("--quantities", nargs="+", default=list(SELECTABLE), choices=SELECTABLE, help="default: all")
    parser.add_argument("--profile", action="store_true", help="print where the time goes, and measure nothing else")
    parser.add_argument(
        "-o", "--output", type=Path, help="folder for sshunet.md and .json (default, for full runs: results)"
    )
    parser.add_argument("--one-run", nargs=3, metavar=("VARIANT", "NETWORK", "PASS"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.size % 16 or options.size < 32:
        parser.error(f"--size {options.size}: must be a multiple of 16, at least 32")
    if "all" in options.variants:
        options.variants = list(VARIANTS)
    full = options.size == 96 and set(options.quantities) == set(SELECTABLE)
    options.output = options.output or (RESULTS if full else None)
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the report, and write it."""
    options = parse(argv)
    torch.set_num_threads(options.threads)
    if options.one_run:
        variant, name, what = options.one_run
        print(json.dumps(one_memory_run(variant, name, what, options.size)))
        return 0
    if options.profile:
        for variant in options.variants:
            print_profile(variant, options)
        return 0
    results = {variant: measure_variant(variant, options) for variant in options.variants}
    text = report(results, options)
    print(text)
    if options.output:
        data = {
            "environment": measure.environment(),
            "size": options.size,
            "repeats": options.repeats,
            "results": results,
        }
        measure.write_results(options.output, "sshunet", text, data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
