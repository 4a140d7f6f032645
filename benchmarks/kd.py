"""What self-regularisation (KD) adds to a training step, beside its published form, in one run.

Four networks, each without KD, with KD as it is here ("mean" matching, `nnunet_ext.losses`), and with its published
form in plain operations ("random" matching, `kd_baseline.py`). Measured are whole steps, the loss alone (forward and
backward on given features), and what is kept for backward; all in turns. Nothing is timed before our "random" form and
the published one have given the same value and gradients on the network's own features.

    python benchmarks/kd.py                          # writes benchmarks/results/kd.*
    python benchmarks/kd.py --device cuda            # on a GPU, float16 autocast, larger patches: results/kd_gpu.*
    python benchmarks/kd.py --tiny --networks "SSH-UNet"    # a quick look; writes nothing without -o
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import gpu_networks
import measure
import torch
from gpu_networks import supervised_loss
from gpu_setting import numerics
from kd_baseline import published_loss
from plain import plain_network
from torch import Tensor, nn

from nnunet_ext.losses.self_regularisation import Features, Options, SelfRegularisation, draw
from nnunet_ext.losses.store import FeatureStore, capture

RESULTS = Path(__file__).resolve().parent / "results"
WEIGHT = 0.015
CLASSES = 4
MEGABYTE = 1e6
TOLERANCE = 1e-4  # of the loss and, relative to its norm, of the gradient of every map, in float32
FORMS = ("mean", "published")
TARGETS = {"time": 3.0, "kept": 0.1}  # per cent of the step, for "mean"


@dataclass(frozen=True)
class Size:
    """A batch, and how wide and deep the network is.

    Attributes:
        patch: (D, H, W) or (H, W) in voxels.
        stages: resolutions; every stage but the first halves all axes.
        batch: samples a step.
        width: features of the first stage.
    """

    patch: tuple[int, ...]
    stages: int
    batch: int = 1
    width: int = 32

    def images(self) -> Tensor:
        """(B, 1, *patch), the same values every time."""
        return torch.randn((self.batch, 1, *self.patch), generator=torch.Generator().manual_seed(1))

    def labels(self) -> Tensor:
        """(B, *patch)."""
        return torch.randint(CLASSES, (self.batch, *self.patch), generator=torch.Generator().manual_seed(2))


def _plain(size: Size) -> nn.Module:
    """PlainConvUNet, as wide as nnU-Net plans it."""
    axes = len(size.patch)
    features = [min(size.width * 2**stage, 512 if axes == 2 else 320) for stage in range(size.stages)]
    strides = [[1] * axes] + [[2] * axes] * (size.stages - 1)
    return plain_network(features, strides, CLASSES, deep_supervision=True)


def _ours(name: str) -> Callable[[Size], nn.Module]:
    def built(size: Size) -> nn.Module:
        depth, height, width = size.patch
        plan = gpu_networks.Plan((depth, height, width), size.batch, size.width, size.stages, CLASSES)
        return gpu_networks.build(name, plan, dropout=True)

    return built


@dataclass(frozen=True)
class Case:
    """A network, and what it is measured with: on a CPU, on a GPU, and for a quick look."""

    build: Callable[[Size], nn.Module]
    cpu: Size
    cuda: Size
    tiny: Size

    def size(self, options: argparse.Namespace) -> Size:
        """The one that the command line asks for."""
        return self.tiny if options.tiny else self.cuda if options.device == "cuda" else self.cpu


CUBE, LARGE, TINY = Size((64, 64, 64), 5), Size((128, 128, 128), 6, batch=2), Size((16, 16, 16), 3, width=8)
CASES = {
    "PlainConvUNet 2d": Case(
        _plain, Size((256, 256), 6, batch=2), Size((512, 512), 8, batch=12), Size((32, 48), 4, batch=2, width=8)
    ),
    "PlainConvUNet 3d": Case(_plain, CUBE, LARGE, TINY),
    "SSH-UNet": Case(_ours("SSHUNet TSM"), CUBE, LARGE, TINY),
    "UNETR++": Case(_ours("UNETRPP tied"), Size((64, 128, 128), 5), LARGE, Size((32, 32, 32), 5, width=8)),
}


def mean_loss(features: Features) -> Tensor:
    """KD as it is here, by default."""
    regulariser = SelfRegularisation(Options(WEIGHT, WEIGHT))
    return regulariser.total(regulariser(features))


LOSSES: dict[str, Callable[[Features], Tensor]] = {
    "mean": mean_loss,
    "published": lambda features: published_loss(features, WEIGHT),
}


@dataclass(frozen=True)
class Bench:
    """A network with its features' store, a batch, and where it runs."""

    network: nn.Module
    store: FeatureStore
    x: Tensor
    target: Tensor

    @property
    def amp(self) -> bool:
        """Mixed precision, as nnU-Net trains on a GPU."""
        return self.x.device.type == "cuda"

    def loss(self, form: str | None) -> Callable[[Any], Tensor]:
        """Deep supervision of the outputs, and a form of KD on the store's features."""

        def loss_of(outputs: Any) -> Tensor:
            features = self.store.take()
            loss = supervised_loss(outputs, self.target)
            if form is None or features is None:
                return loss
            return loss + LOSSES[form](features)

        return loss_of

    def step(self, form: str | None) -> Callable[[], None]:
        """A whole training step."""
        return measure.training_step(self.network, self.x, self.loss(form), amp=self.amp)

    def kept(self, form: str | None) -> int:
        """Bytes kept for backward by forward and loss."""
        self.network.train()
        excluded = [self.x, self.target, *self.network.parameters()]
        with (
            measure.KeptForBackward(excluded) as kept,
            torch.autocast(self.x.device.type, torch.float16, enabled=self.amp),
        ):
            self.loss(form)(self.network(self.x))
        return kept.bytes

    def features(self) -> Features:
        """The network's features as leaves that get gradients."""
        self.network.train()
        with torch.autocast(self.x.device.type, torch.float16, enabled=self.amp):
            self.network(self.x)
        taken = self.store.take()
        assert taken is not None
        return leaves(taken)


def leaves(features: Features, pieces: int | None = None, dtype: torch.dtype | None = None) -> Features:
    """The maps (of each its first pieces) without their history, in their memory format; those taught get gradients."""

    def detached(listed: Sequence[Tensor]) -> list[Tensor]:
        return [f.detach().to(dtype or f.dtype) for f in listed[:pieces]]

    def stages(listed: Sequence[Any]) -> list[Any]:
        return [[[f.requires_grad_() for f in detached(maps)] for maps in stage] for stage in listed]

    return Features(stages(features.encoder), stages(features.decoder), detached(features.teacher))


def students(features: Features) -> list[Tensor]:
    """All pieces of all maps that are taught."""
    return [f for stage in (*features.encoder, *features.decoder) for pieces in stage for f in pieces]


def alone(features: Features, form: str) -> Callable[[], None]:
    """Forward and backward of the loss on given features."""
    taught = students(features)

    def run() -> None:
        torch.autograd.grad(LOSSES[form](features), taught)

    return run


def check_equal(features: Features) -> float:
    """Largest relative difference of the loss and of a map's gradient, ours with random matching and the published one.

    In float32, and of maps in several pieces (SSH-UNet's views) the first: the published form ranks each piece alone.

    Raises:
        RuntimeError: they are not the same.
    """
    features = leaves(features, 1, torch.float32)
    random = torch.Generator().manual_seed(0)
    channels = {
        (part, stage, "last"): draw(maps[-1][0].shape[1], features.teacher[0].shape[1], random)
        for part, stages in (("encoder", features.encoder), ("decoder", features.decoder))
        for stage, maps in enumerate(stages)
    }
    regulariser = SelfRegularisation(Options(WEIGHT, WEIGHT, "random"))
    ours = regulariser.total(regulariser(features, channels=channels))
    published = published_loss(features, WEIGHT, channels)
    gradients = (torch.autograd.grad(loss, students(features)) for loss in (ours, published))
    differences = [float((a - b).norm() / b.norm()) for a, b in zip(*gradients, strict=True)]
    worst = max(*differences, abs(float(ours.detach() / published.detach()) - 1))
    if not worst <= TOLERANCE:
        raise RuntimeError(f"Our loss with random matching and the published one differ by {worst:.1e}.")
    return worst


@contextmanager
def bench_of(case: Case, options: argparse.Namespace) -> Iterator[Bench]:
    """The case's network on the device, with hooks for its features."""
    size = case.size(options)
    torch.manual_seed(0)
    network = case.build(size).to(options.device)
    with capture(network) as store:
        yield Bench(network, store, size.images().to(options.device), size.labels().to(options.device))


def measure_case(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Differences, seconds of steps and losses, bytes kept."""
    synchronise = torch.cuda.synchronize if options.device == "cuda" else lambda: None
    clock = time.process_time if options.device == "cpu" and options.threads == 1 else time.perf_counter
    with bench_of(case, options) as bench:
        numerics(exact=True)
        features = bench.features()
        difference = check_equal(features)
        numerics(exact=False)
        runs: dict[str, Callable[[], Any]] = {"step": bench.step(None)}
        runs |= {f"step, {form}": bench.step(form) for form in FORMS}
        runs |= {form: alone(features, form) for form in FORMS}
        for run in runs.values():
            run()
        seconds = measure.in_turns(runs, options.repeats, clock, synchronise)
        kept = {str(form): bench.kept(form) for form in (None, *FORMS)}
        size = [*bench.x.shape]
    return {"input": size, "difference": difference, "seconds": seconds, "kept": kept, "shares": shares(seconds, kept)}


def shares(seconds: dict[str, list[float]], kept: dict[str, int]) -> dict[str, dict[str, float]]:
    """Per cent of the step without KD: what each form takes alone, adds to the step, and adds to what is kept."""
    return {
        form: {
            "time": 100 * measure.ratio(seconds, form, "step"),
            "added": 100 * (measure.ratio(seconds, f"step, {form}", "step") - 1),
            "kept": 100 * (kept[form] / kept["None"] - 1),
        }
        for form in FORMS
    }


def verdict(found: float, key: str) -> str:
    """A share with what became of its target."""
    return f"**{found:.2f} %** (at most {TARGETS[key]} %: {'met' if found <= TARGETS[key] else 'not met'})"


def rows(name: str, result: dict[str, Any]) -> list[tuple[str, ...]]:
    """The table's rows of one network: one a form."""
    seconds, kept = result["seconds"], result["kept"]
    size = " x ".join(map(str, result["input"]))
    found: list[tuple[str, ...]] = []
    for form in FORMS:
        share = result["shares"][form]
        ours = form == "mean"
        found.append(
            (
                f"{name}, {size}" if ours else "",
                form,
                f"{1000 * median(seconds['step']):.0f}",
                f"{1000 * median(seconds[form]):.1f}",
                verdict(share["time"], "time") if ours else f"{share['time']:.2f} %",
                f"{share['added']:+.1f} %",
                f"{kept['None'] / MEGABYTE:.0f}",
                f"{(kept[form] - kept['None']) / MEGABYTE:.2f}",
                verdict(share["kept"], "kept") if ours else f"{share['kept']:.2f} %",
            )
        )
    return found


def report(results: dict[str, dict[str, Any]], options: argparse.Namespace) -> str:
    """The whole report in Markdown."""
    clock = "CPU time of the process" if options.device == "cpu" and options.threads == 1 else "wall clock"
    precision = "float32" if options.device == "cpu" else "float16 autocast"
    header = (
        "network, input", "KD", "step without (ms)", "KD alone (ms)", "of the step", "whole step", "kept without (MB)",
        "KD adds (MB)", "of what is kept",
    )  # fmt: skip
    difference = max(result["difference"] for result in results.values())
    parts = [
        "# KD: its share of a training step, here and as published",
        f"{precision}, {options.threads} thread(s); {options.repeats} rounds in turns, {clock}, freed memory given "
        "back before each; milliseconds are medians, shares are medians of the quotients within a round. A step is "
        "forward, cross entropy with deep supervision, backward, clipping and SGD. *KD alone* is forward and backward "
        "of the loss on given features. *Whole step* is what a step with KD takes more than one without: the "
        "difference of two large numbers on a machine that is not quiet.",
        measure.environment_list(),
        measure.markdown_table(header, [row for name, result in results.items() for row in rows(name, result)]),
    ]
    parts.append(
        f"Ours with random matching and the published form: values and gradients of all maps differ by "
        f"{difference:.0e} at most (relative)."
    )
    return "\n\n".join(parts) + "\n"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=CASES, default=list(CASES), help="default: all")
    parser.add_argument("--tiny", action="store_true", help="small networks and patches")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of the timings (default: 5)")
    parser.add_argument("-o", "--output", type=Path, help="folder for the results (default, for full runs: results)")
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no GPU that torch can use")
    full = not options.tiny and options.networks == list(CASES)
    options.output = options.output or (RESULTS if full else None)
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the report, and write it."""
    options = parse(argv)
    torch.set_num_threads(options.threads)
    results = {name: measure_case(CASES[name], options) for name in options.networks}
    text = report(results, options)
    print(text)
    if options.output:
        data = {"environment": measure.environment(), "repeats": options.repeats, "results": results}
        measure.write_results(options.output, "kd" if options.device == "cpu" else "kd_gpu", text, data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
