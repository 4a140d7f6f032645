"""UNETR++ against the straightforward formulation of its equations and against nnU-Net's PlainConvUNet, in one run.

The published Synapse network (one channel, 64 x 128 x 128, 14 classes) is built twice with the same weights: plainly
(`unetrpp_baseline.py`) and as the package's, carried over by the package's own importer, with the published spatial
layout, and with a layer scale of 1 and position embeddings drawn at random, so that attention matters. They are timed
only after the outputs in training mode and the gradients of all parameters were found equal without dropout, and the
straightforward network was found to be the authors'. Measured are the whole networks and one transformer block, the
first of the encoder (32 768 tokens of width 32), without dropout and at the published rates. No activation
checkpointing anywhere.

    python benchmarks/unetrpp.py                    # the Synapse network; writes benchmarks/results/unetrpp.*
    python benchmarks/unetrpp.py --device cuda      # on a GPU, in float32 and with float16 autocast: unetrpp_gpu.*
    python benchmarks/unetrpp.py --patch 32 64 64   # a quick look
    python benchmarks/unetrpp.py --profile          # where the time goes, instead of the tables
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import measure
import torch
import unetrpp_baseline as baseline
from closeness import RELEVANT, compare, gradients
from gpu_networks import Plan, images, labels, supervised_loss
from gpu_setting import numerics
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
from plain import plain_network
from torch import Tensor, nn

from nnunet_ext.architectures.blocks.layout import CPU_LIKE, to_channels_last
from nnunet_ext.architectures.blocks.paired_attention import PairedAttention
from nnunet_ext.architectures.blocks.transformer_block import TransformerBlock
from nnunet_ext.weights.unetrpp import build_network, canonical_state, key_map, load_weights
from nnunet_ext.weights.unetrpp_configuration import Configuration, infer_configuration

RESULTS = Path(__file__).resolve().parent / "results"
PUBLISHED = baseline.VARIANTS["synapse"]
CLASSES = 14
SPACING = (3.0, 0.76, 0.76)  # mm, of the Synapse data: nnU-Net chooses PlainConvUNet's strides and kernels by it
BLOCK_RATE = 0.1  # of the dropout of whole channels
MEGABYTE = 1e6
AUTHORS_KEEP = 2180.0  # MB, the authors' code at the published rates (specification unetrpp 3)
KEEP_TOLERANCE = 0.05
#: Largest difference of an output, in its standard deviation, and of a parameter's gradient, relative to its norm.
TOLERANCES = {torch.float32: (1e-4, 1e-2), torch.float64: (1e-10, 1e-6)}
#: Parameters are compared whose gradient is at least this part of the whole one: smaller ones are rounding.
COMPARED = {torch.float32: RELEVANT, torch.float64: 1e-9}
SMALL_PATCH, SMALL_WIDTH = (32, 64, 64), 4  # for the comparison in float64


@dataclass(frozen=True)
class Pair:
    """Both formulations with the same weights; `names` says which parameter of the one is which of the other."""

    published: nn.Module
    ours: nn.Module
    names: dict[str, str]
    plan: Plan

    def renamed(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gradients of the published names by ours."""
        return {self.names[key]: gradient for key, gradient in found.items()}


@dataclass(frozen=True)
class Equality:
    """How far ours is from the straightforward formulation, without dropout, in training mode.

    Attributes:
        outputs: largest difference of an output, in its standard deviation.
        gradients: largest relative difference of a parameter's gradient.
        parameter: the one that has it.
    """

    outputs: float
    gradients: float
    parameter: str


def quantities(device: str) -> dict[str, measure.Quantity]:
    """Rows of the tables, with the targets for the device."""
    target, digits = (0.8, 2) if device == "cpu" else (0.7, 4)
    return {
        "block_step": measure.Quantity("block, forward and backward, time", "s", target, max(digits, 3)),
        "block_kept": measure.Quantity("block, kept for backward", "MB", 0.6, 0),
        "step": measure.Quantity("network, training step, time", "s", target, digits),
        "kept": measure.Quantity("network, kept for backward", "MB", 0.6, 0),
        "inference": measure.Quantity("network, inference, time", "s", None, digits),
    }


def build_pair(patch: tuple[int, int, int], features: int = 16) -> Pair:
    """The Synapse network for such patches, in both formulations."""
    torch.manual_seed(0)
    published = baseline.PublishedUNETRPP(replace(PUBLISHED, patch=patch), 1, CLASSES, features)
    with torch.no_grad():
        for name, parameter in published.named_parameters():
            if name.endswith(".gamma"):
                parameter.fill_(1)
            if name.endswith(".pos_embed"):
                parameter.normal_()
    state, _ = canonical_state(published.state_dict())
    configuration: Configuration = infer_configuration(state)
    ours: Any = build_network(configuration, patch)
    load_weights(ours, state, configuration)
    ours.decoder.deep_supervision = True
    plan = Plan(patch, batch_size=1, num_classes=CLASSES)
    return Pair(published, ours, key_map(configuration), plan)


def build_plain(patch: Sequence[int], base: int = 32, most: int = 320) -> nn.Module:
    """PlainConvUNet as nnU-Net plans it for such patches of the Synapse data, with deep supervision."""
    _, strides, kernels, *_ = get_pool_and_conv_props(SPACING, list(patch), 4, 999999)
    features = [min(base * 2**stage, most) for stage in range(len(strides))]
    return plain_network(features, strides, CLASSES, kernels=kernels, deep_supervision=True)


def set_dropout(modules: Iterable[nn.Module], on: bool) -> None:
    """Switch dropout off, or to the published rates, in both formulations."""
    attention, channels = (PUBLISHED.dropout, BLOCK_RATE) if on else (0.0, 0.0)
    for module in (m for network in modules for m in network.modules()):
        if isinstance(module, PairedAttention):
            module.dropout = attention
        elif isinstance(module, TransformerBlock):
            module.block_dropout = channels
        elif isinstance(module, nn.Dropout):
            module.p = attention
        elif isinstance(module, nn.Dropout3d):
            module.p = channels


def loss_of(outputs: Sequence[Tensor], target: Tensor, most: int | None) -> Tensor:
    """nnU-Net's deep supervision of the first outputs, or all: the published network has three."""
    return supervised_loss(outputs[:most], target)


def equality(pair: Pair, device: str, dtype: torch.dtype) -> Equality:
    """Compare outputs and gradients of copies of the networks without dropout; raises if they are not equal."""
    x, target = images(pair.plan).to(device, dtype), labels(pair.plan).to(device)
    found = []
    for network in (pair.published, pair.ours):
        probe = copy.deepcopy(network).to(device, dtype).train()
        set_dropout([probe], on=False)
        outputs = probe(x)[:3]
        loss_of(outputs, target, 3).backward()
        found.append(([y.detach().cpu() for y in outputs], gradients(probe)))
    (expected, published), (outputs, ours) = found
    difference = max(float((a - b).abs().max() / b.std()) for a, b in zip(outputs, expected, strict=True))
    close = compare(ours, pair.renamed(published), COMPARED[dtype])
    bar, bar_gradients = TOLERANCES[dtype]
    if not (difference <= bar and close.difference <= bar_gradients):
        raise RuntimeError(
            f"Not the same network in {dtype}: outputs differ by {difference:.1e} of their standard deviation, the "
            f"gradients of {close.difference_of} by {close.difference:.1e}."
        )
    return Equality(difference, close.difference, close.difference_of)


def check_baseline(pair: Pair) -> dict[str, float]:
    """What shows that the straightforward formulation is the authors' network; raises if it is not.

    Returns:
        "kept", MB at the published rates, and "fixtures", the largest difference from a golden fixture of the authors'
        code, in standard deviations.
    """
    set_dropout([pair.published], on=True)
    kept = measure.kept_by_step(pair.published, images(pair.plan)) / MEGABYTE
    if abs(kept / AUTHORS_KEEP - 1) > KEEP_TOLERANCE:
        raise RuntimeError(f"The straightforward network keeps {kept:.0f} MB, the authors' code {AUTHORS_KEEP:.0f}.")
    worst = max(baseline.fixture_errors().values())
    if not worst <= baseline.TOLERANCE:
        raise RuntimeError(f"The straightforward network differs from a fixture by {worst:.1e}: --check of its own.")
    return {"kept": kept, "fixtures": worst}


@dataclass(frozen=True)
class Bench:
    """The networks on a device, and how they are run."""

    networks: dict[str, nn.Module]
    blocks: dict[str, nn.Module]
    plan: Plan
    device: str
    amp: bool

    def images(self) -> Tensor:
        """A batch of one."""
        return images(self.plan).to(self.device)

    def steps(self) -> dict[str, Callable[[], None]]:
        """A training step of each network: nnU-Net's loss of all outputs that have a weight in it."""
        x, target = self.images(), labels(self.plan).to(self.device)
        loss = {name: partial(loss_of, target=target, most=None if name == "plain" else 3) for name in self.networks}
        return {
            name: measure.training_step(network, x, loss[name], amp=self.amp) for name, network in self.networks.items()
        }

    def block_input(self, name: str) -> Tensor:
        """Features as the first block gets them, in the memory layout that its network has them in."""
        grid = [p // s for p, s in zip(self.plan.patch_size, PUBLISHED.stride, strict=True)]
        x = torch.randn(1, 32, *grid, generator=torch.Generator().manual_seed(3)).to(self.device)
        return to_channels_last(x) if name == "ours" and self.device in CPU_LIKE else x

    def block_steps(self) -> dict[str, Callable[[], None]]:
        """Forward and backward of one transformer block, gradients of its input and all its parameters."""
        return {name: self._block_step(block, self.block_input(name)) for name, block in self.blocks.items()}

    def _block_step(self, block: nn.Module, x: Tensor) -> Callable[[], None]:
        x, gradient = x.requires_grad_(), torch.randn_like(x)
        block.train()

        def step() -> None:
            block.zero_grad(set_to_none=True)
            x.grad = None
            with torch.autocast(self.device, torch.float16, enabled=self.amp):
                y = block(x)
            y.backward(gradient.to(y.dtype))

        return step

    def timings(self) -> dict[str, dict[str, Callable[[], Any]]]:
        """Quantity -> network -> what is timed, training."""
        return {"block_step": self.block_steps(), "step": self.steps()}

    def predictions(self) -> dict[str, Callable[[], Any]]:
        """A forward pass of each network in eval mode, logits at full resolution only where it has the choice."""
        x = self.images()

        def predict(network: nn.Module) -> None:
            decoder: Any = getattr(network, "decoder", nn.Module())  # the published network has no choice
            network.eval()
            decoder.deep_supervision = False
            measure.inference(network, x, amp=self.amp)
            decoder.deep_supervision = True
            network.train()

        return {name: partial(predict, network) for name, network in self.networks.items()}

    def kept(self) -> measure.Values:
        """MB kept for backward by blocks and networks."""
        blocks = {name: (block, self.block_input(name)) for name, block in self.blocks.items()}
        networks = {name: (network, self.images()) for name, network in self.networks.items()}
        return {
            key: {
                name: [measure.kept_by_step(module, x, amp=self.amp) / MEGABYTE] for name, (module, x) in rows.items()
            }
            for key, rows in (("block_kept", blocks), ("kept", networks))
        }


def measure_bench(bench: Bench, options: argparse.Namespace, dropout: bool) -> measure.Values:
    """All quantities at one setting of dropout; inference, which has none, only with the published rates."""
    set_dropout(bench.networks.values(), on=dropout)
    runs = bench.timings() | ({"inference": bench.predictions()} if dropout else {})
    synchronise = torch.cuda.synchronize if bench.device == "cuda" else lambda: None
    cpu_time = bench.device == "cpu" and options.threads == 1
    values = bench.kept()
    for key, what in runs.items():
        for run in what.values():
            run()
        values[key] = measure.in_turns(
            what, options.repeats, time.process_time if cpu_time else time.perf_counter, synchronise
        )
    return values


def benches(pair: Pair, device: str) -> dict[str, Bench]:
    """Precision -> the networks on the device; on a GPU also in mixed precision."""
    networks = {"plain": build_plain(pair.plan.patch_size), "published": pair.published, "ours": pair.ours}
    for network in networks.values():
        network.to(device).train()
    encoder: Any = pair.published.unetr_pp_encoder
    own_encoder: Any = pair.ours.encoder
    blocks = {"published": encoder.stages[0][0], "ours": own_encoder.stages[0][0]}
    precisions = {"float32": False} if device == "cpu" else {"float32": False, "float16 autocast": True}
    return {name: Bench(networks, blocks, pair.plan, device, amp) for name, amp in precisions.items()}


def title_of(precision: str, dropout: bool) -> str:
    """Heading of one table."""
    return f"{precision}, {f'dropout {PUBLISHED.dropout} and {BLOCK_RATE}' if dropout else 'no dropout'}"


def run_all(pair: Pair, options: argparse.Namespace) -> dict[str, Any]:
    """Everything that the report says."""
    checks: dict[str, Any] = {}
    if pair.plan.patch_size == PUBLISHED.patch:
        checks["baseline"] = check_baseline(pair)
    numerics(exact=True)
    checks["float64"] = asdict(equality(build_pair(SMALL_PATCH, SMALL_WIDTH), options.device, torch.float64))
    checks["float32"] = asdict(equality(pair, options.device, torch.float32))
    numerics(exact=False)
    tables = {
        title_of(precision, dropout): measure_bench(bench, options, dropout)
        for precision, bench in benches(pair, options.device).items()
        for dropout in (False, True)
    }
    ratios = {title: {key: measure.ratios(found) for key, found in values.items()} for title, values in tables.items()}
    return {"checks": checks, "values": tables, "ratios": ratios}


def edges(patch: Sequence[int]) -> str:
    """A patch size for people."""
    return " x ".join(map(str, patch))


def check_texts(checks: dict[str, Any]) -> list[str]:
    """What was found equal, as sentences."""
    texts = []
    if "baseline" in checks:
        kept, fixtures = checks["baseline"]["kept"], checks["baseline"]["fixtures"]
        texts.append(
            f"* The straightforward formulation passes the {len(baseline.FIXTURES)} fixtures of the authors' code "
            f"(largest difference {fixtures:.1e} standard deviations), and on a CPU it keeps {kept:.0f} MB at the "
            f"published rates, theirs {AUTHORS_KEEP:.0f}."
        )
    where = {"float64": f"at {edges(SMALL_PATCH)} and a quarter of the width", "float32": "at this size"}
    for precision, place in where.items():
        found, bars = checks[precision], TOLERANCES[getattr(torch, precision)]
        texts.append(
            f"* In {precision}, {place}, without dropout, in training mode: outputs differ by "
            f"{found['outputs']:.1e} of their standard deviation (tolerance {bars[0]:.0e}), the gradient of a "
            f"parameter by at most {found['gradients']:.1e} of its norm (tolerance {bars[1]:.0e}; "
            f"{found['parameter']})."
        )
    return texts


def report(result: dict[str, Any], options: argparse.Namespace) -> str:
    """The whole report in Markdown."""
    clock = "CPU time of the process" if options.device == "cpu" and options.threads == 1 else "wall clock"
    intro = (
        f"Input 1 x 1 x {edges(options.patch)}, {CLASSES} classes, {options.threads} thread(s); {options.repeats} "
        f"rounds in turns, {clock}; seconds are medians, ratios are medians of the quotients within a round. "
        "PlainConvUNet has nnU-Net's own strides for this patch at the spacing of the Synapse data."
    )
    parts = [
        "# UNETR++: ours, the straightforward formulation, and nnU-Net's PlainConvUNet",
        intro,
        measure.environment_list(),
        "\n".join(check_texts(result["checks"])),
    ]
    for title, values in result["values"].items():
        parts += [f"## {title}", measure.quantity_table(quantities(options.device), values)]
    return "\n\n".join(parts) + "\n"


def print_profiles(pair: Pair, device: str) -> None:
    """Print where the time of the steps goes, by group and by operator."""
    for precision, bench in benches(pair, device).items():
        for dropout in (False, True):
            set_dropout(bench.networks.values(), on=dropout)
            for key, runs in bench.timings().items():
                networks = bench.blocks if key == "block_step" else bench.networks
                title = f"{title_of(precision, dropout)}, {quantities(device)[key].name}"
                print("\n" + measure.profile_text(title, networks, runs))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    patch = PUBLISHED.patch
    parser.add_argument("--patch", type=int, nargs=3, default=patch, help=f"D H W in voxels (default: {edges(patch)})")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of the timings (default: 3)")
    parser.add_argument("--profile", action="store_true", help="print where the time goes, and measure nothing else")
    parser.add_argument("-o", "--output", type=Path, help="folder for the results (default, for full runs: results)")
    options = parser.parse_args(argv)
    options.patch = tuple(options.patch)
    total = [8 * step for step in PUBLISHED.stride]
    if any(edge % step or edge < 2 * step for edge, step in zip(options.patch, total, strict=True)):
        parser.error(f"--patch {edges(options.patch)}: must be multiples of {edges(total)}, at least twice as many")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no GPU that torch can use")
    options.output = options.output or (RESULTS if options.patch == patch else None)
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the report, and write it."""
    options = parse(argv)
    torch.set_num_threads(options.threads)
    pair = build_pair(options.patch)
    if options.profile:
        print_profiles(pair, options.device)
        return 0
    result = run_all(pair, options)
    text = report(result, options)
    print(text)
    if options.output:
        data = {"environment": measure.environment(), "patch": options.patch, "repeats": options.repeats, **result}
        measure.write_results(options.output, "unetrpp" if options.device == "cpu" else "unetrpp_gpu", text, data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
