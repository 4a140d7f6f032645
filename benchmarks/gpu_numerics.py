"""The pieces of `gpu.py` that compare numbers: compiled with eager, mixed precision with float32, batched views."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gpu_networks as networks
import measure
import torch
from closeness import RELEVANT, Gradients, compare, gradients
from gpu_networks import PLAIN, VARIANTS
from gpu_setting import EQUAL, Outcome, Setting, cause, first, numerics
from torch import Tensor, nn

AMP_TOLERANCE = 0.02  # root mean square difference of float16 and float32 in standard deviations
AMP_COSINE = {"cuda": 0.99, "cpu": 0.95}  # at least, of every parameter's gradient with float32's; less for toys
GRADIENTS_EQUAL = 10 * EQUAL  # of each parameter, relative: sums of many terms that almost cancel
ATTEMPTS = 6  # how often GradScaler may halve the loss scale, 2^16 at first, until nothing overflows
MODES = ("eager", "compiled")


def _compiled(network: nn.Module, setting: Setting) -> Any:
    """The network compiled as nnU-Net does, but any break of the graph is an error."""
    torch._dynamo.reset()
    return torch.compile(network, fullgraph=True, backend=setting.backend)


def _check_compiled(name: str, mode: str, setting: Setting, outcome: Outcome) -> None:
    """One row of the compile piece."""
    x, target = networks.images(setting.plan).to(setting.device), networks.labels(setting.plan).to(setting.device)
    network = networks.build(name, setting.plan).to(setting.device).train(mode == "training")
    runs, found, grads = {"eager": network, "compiled": _compiled(network, setting)}, {}, {}
    start = 0.0
    for way, run in runs.items():
        network.zero_grad(set_to_none=True)
        start = time.perf_counter()
        try:
            with torch.set_grad_enabled(mode == "training"):
                outputs = run(x)
                if mode == "training":
                    networks.supervised_loss(outputs, target).backward()
        except torch._dynamo.exc.TorchDynamoException as error:
            complaint = f"compile: {name}, {mode}: {cause(error)}"
            outcome.rows.append([name, mode, "", "", "", outcome.check(False, complaint)])
            return
        found[way], grads[way] = first(outputs).detach(), gradients(network)
    seconds = time.perf_counter() - start
    difference = float((found["compiled"] - found["eager"]).abs().max() / found["eager"].std())
    held, cell, complaint = difference <= EQUAL, "", f"compile: {name}, {mode}: outputs differ by {difference:.1e}"
    if mode == "training":
        close = compare(grads["compiled"], grads["eager"])
        held, cell = held and close.difference <= GRADIENTS_EQUAL, f"{close.difference:.1e}"
        complaint += f", gradients of {close.difference_of} by {cell}"
    outcome.rows.append([name, mode, f"{difference:.1e}", cell, f"{seconds:.1f}", outcome.check(held, complaint)])


def compile_piece(setting: Setting) -> Outcome:
    """Every variant compiles as one graph, in training and in inference mode, and gives what eager mode gives.

    In float32: the first output, and in training the gradient of every parameter (the largest relative difference).
    """
    header = ("network", "mode", "difference", "of gradients", "compilation (s)", "")
    outcome = Outcome(header, remark=f"Backend {setting.backend}.")
    numerics(exact=True)
    for name in (PLAIN, *VARIANTS):
        for mode in ("training", "inference"):
            _check_compiled(name, mode, setting, outcome)
    return outcome


@dataclass(frozen=True)
class Step:
    """What a training step gave: first output and gradients in main memory, loss scale, peak in bytes (0 on a CPU)."""

    output: Tensor
    gradients: Gradients
    scale: float
    peak: int


@dataclass(frozen=True)
class Way:
    """One way to do a training step of one network."""

    name: str
    views: str | None = None
    amp: bool = False
    mode: str = "eager"

    @property
    def cells(self) -> list[str]:
        """For the table."""
        return [self.name, self.views or "", "mixed" if self.amp else "float32", self.mode]

    def step(self, setting: Setting) -> Step:
        """Training steps, unscaled gradients and learning rate 0, until the loss scale fits; the last one counts."""
        gc.collect()
        before = torch.cuda.memory_allocated() if setting.device == "cuda" else 0
        x, target = networks.images(setting.plan).to(setting.device), networks.labels(setting.plan).to(setting.device)
        options: dict[str, Any] = {"view_execution": self.views} if self.views else {}
        network = networks.build(self.name, setting.plan, **options).to(setting.device).train()
        run = _compiled(network, setting) if self.mode == "compiled" else network
        optimizer = torch.optim.SGD(network.parameters(), 0.0, momentum=0.99, nesterov=True)
        scaler = torch.amp.GradScaler(setting.device, enabled=self.amp)
        warm = setting.device == "cpu"  # on a GPU the first step chooses algorithms and compiles: not its peak counts
        for _ in range(ATTEMPTS):
            if setting.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            optimizer.zero_grad(set_to_none=True)
            scale = scaler.get_scale()
            with setting.autocast(self.amp):
                outputs = run(x)
                loss = networks.supervised_loss(outputs, target)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            if warm and scaler.get_scale() >= scale:
                break
            warm = True
        peak = torch.cuda.max_memory_allocated() - before if setting.device == "cuda" else 0
        return Step(first(outputs).detach().float().cpu(), gradients(network), scale, peak)


def _ways(name: str) -> Iterator[Way]:
    """The first is the reference. Compiled, views one by one make a large graph: for one network only."""
    if not networks.has_views(name):
        yield from (Way(name), *(Way(name, amp=True, mode=mode) for mode in MODES))
        return
    yield from (Way(name, "sequential"), Way(name, "batched"))
    for mode in MODES:
        views = ("batched", "sequential") if mode == "eager" or name == "SSHUNet TSM" else ("batched",)
        yield from (Way(name, view, amp=True, mode=mode) for view in views)


def _check_step(way: Way, step: Step, reference: Step, setting: Setting, outcome: Outcome) -> None:
    """One row of the amp piece: in float32 equal to the reference, in mixed precision close to it."""
    difference = float((step.output - reference.output).square().mean().sqrt() / reference.output.std())
    close = compare(step.gradients, reference.gradients)
    held = difference <= (AMP_TOLERANCE if way.amp else EQUAL)  # NaN fails the comparison
    held &= close.cosine >= AMP_COSINE[setting.device] if way.amp else close.difference <= GRADIENTS_EQUAL
    what = f"output differs by {difference:.4f}, gradients of {close.cosine_of} have the cosine {close.cosine:.4f}"
    verdict = outcome.check(held, f"amp: {', '.join(filter(None, way.cells))}: {what}")
    scale = f"2^{math.log2(step.scale):.0f}"
    peak = f"{step.peak / measure.GIB:.2f}" if step.peak else ""
    outcome.rows.append([*way.cells, f"{difference:.1e}", f"{close.cosine:.5f}", close.cosine_of, scale, peak, verdict])


def amp_piece(setting: Setting) -> Outcome:
    """Training steps in mixed precision, eager and compiled, and with batched views, against float32 in eager mode.

    The first output (root mean square difference in standard deviations) and the unscaled gradients (least cosine
    similarity of a parameter). The reference has its views one by one.
    """
    outcome = Outcome(
        ("network", "views", "precision", "mode", "difference", "cosine", "of", "loss scale", "peak (GiB)", ""),
        remark=f"Autocast to float16; backend {setting.backend}. Bars for mixed precision: difference at most "
        f"{AMP_TOLERANCE}, cosine at least {AMP_COSINE[setting.device]} above {RELEVANT} of the whole norm.",
    )
    numerics(exact=True)
    for name in (PLAIN, *VARIANTS):
        reference, *others = _ways(name)
        expected = reference.step(setting)
        for way in others:
            try:
                step = way.step(setting)
            except torch._dynamo.exc.TorchDynamoException as error:
                verdict = outcome.check(False, f"amp: {', '.join(filter(None, way.cells))}: {cause(error)}")
                outcome.rows.append([*way.cells, *[""] * 5, verdict])
                continue
            _check_step(way, step, expected, setting, outcome)
    return outcome
