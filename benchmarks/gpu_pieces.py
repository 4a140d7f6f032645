"""The pieces of `gpu.py`: each checks or measures one thing that needs a GPU, in under ten minutes."""

from __future__ import annotations

import gc
import itertools
import math
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import gpu_networks as networks
import measure
import torch
import torch.distributed
from gpu_networks import PLAIN, VARIANTS, Plan
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from nnunet_ext.architectures.blocks.memory import kept_for_backward, saved_bytes

BYTES_PER_PARAMETER = 12  # weight, gradient and momentum in float32
EQUAL = 1e-3  # compiled against eager, in standard deviations, float32 without TF32
MEMORY_TOLERANCE = {"cuda": 0.15, "cpu": 0.05}  # on toy patches the weights' copies in another layout show
AMP_TOLERANCE = {torch.float16: 0.02, torch.bfloat16: 0.1}  # root mean square difference in standard deviations


@dataclass(frozen=True)
class Setting:
    """Where and how large: the device, the plan, and how often a timing is repeated."""

    device: str
    plan: Plan
    rounds: int = 10

    @property
    def amp_dtype(self) -> torch.dtype:
        """What nnU-Net's autocast uses; the CPU has no useful float16."""
        return torch.float16 if self.device == "cuda" else torch.bfloat16

    def synchronise(self) -> None:
        """Wait until the device has done its work."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def autocast(self, enabled: bool = True) -> torch.autocast:
        """Mixed precision on the device."""
        return torch.autocast(self.device, dtype=self.amp_dtype, enabled=enabled)


@dataclass
class Outcome:
    """What a piece found: a table for people, whether every check held, and a remark."""

    header: Sequence[str] = ()
    rows: list[list[str]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    remark: str = ""
    skipped: bool = False

    def check(self, held: bool, complaint: str) -> str:
        """Note a failure; returns the word for the table."""
        if not held:
            self.failures.append(complaint)
        return "ok" if held else "FAILED"


def _first(outputs: Tensor | Sequence[Tensor]) -> Tensor:
    return outputs if isinstance(outputs, Tensor) else outputs[0]


def _numerics(exact: bool) -> None:
    """Full float32 and fixed algorithms to compare results; TF32 and chosen algorithms, as nnU-Net, to measure."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not exact
    torch.backends.cudnn.benchmark = not exact


def _cause(error: Exception) -> str:
    """The first line of a compilation's error, and the innermost line of the network's code that it names."""
    lines = [line.strip() for line in str(error).splitlines()]
    places = [f"{line} {code}" for line, code in itertools.pairwise(lines) if line.startswith("File ")]
    return " ".join([lines[0], *places[-1:]])


def compile_piece(setting: Setting) -> Outcome:
    """Every variant compiles as one graph, in training and in inference mode, and gives what eager mode gives."""
    backend = "inductor" if setting.device == "cuda" else "aot_eager"
    outcome = Outcome(("network", "mode", "difference", "compilation (s)", ""), remark=f"Backend {backend}.")
    _numerics(exact=True)
    x = networks.images(setting.plan).to(setting.device)
    for name in (PLAIN, *VARIANTS):
        for mode in ("training", "inference"):
            network = networks.build(name, setting.plan).to(setting.device).train(mode == "training")
            torch._dynamo.reset()
            compiled = torch.compile(network, fullgraph=True, backend=backend)
            with torch.set_grad_enabled(mode == "training"):
                expected = _first(network(x)).detach()
                start = time.perf_counter()
                try:
                    found = _first(compiled(x))
                    if mode == "training":
                        found.sum().backward()
                except torch._dynamo.exc.TorchDynamoException as error:
                    complaint = f"compile: {name}, {mode}: {_cause(error)}"
                    outcome.rows.append([name, mode, "", "", outcome.check(False, complaint)])
                    continue
            difference = float((found.detach() - expected).abs().max() / expected.std())
            seconds = time.perf_counter() - start
            verdict = outcome.check(difference <= EQUAL, f"compile: {name}, {mode}: outputs differ by {difference:.1e}")
            outcome.rows.append([name, mode, f"{difference:.1e}", f"{seconds:.1f}", verdict])
    return outcome


def amp_piece(setting: Setting) -> Outcome:
    """Mixed precision: finite logits and gradients, close to float32."""
    tolerance = AMP_TOLERANCE[setting.amp_dtype]
    outcome = Outcome(
        ("network", "rms difference", "finite gradients", ""),
        remark=f"Autocast to {setting.amp_dtype}, loss scale 2^16.",
    )
    _numerics(exact=True)
    x, target = networks.images(setting.plan).to(setting.device), networks.labels(setting.plan).to(setting.device)
    for name in (PLAIN, *VARIANTS):
        network = networks.build(name, setting.plan).to(setting.device).train()
        with torch.no_grad():
            expected = _first(network(x))
        with setting.autocast():
            outputs = network(x)
            loss = networks.supervised_loss(outputs, target)
        (loss * 2.0**16).backward()
        finite = all(bool(p.grad.isfinite().all()) for p in network.parameters() if p.grad is not None)
        difference = float((_first(outputs).detach().float() - expected).square().mean().sqrt() / expected.std())
        held = finite and difference <= tolerance  # NaN fails the comparison
        complaint = f"amp: {name}: difference {difference:.3f} (at most {tolerance}), gradients finite: {finite}"
        outcome.rows.append([name, f"{difference:.4f}", str(finite), outcome.check(held, complaint)])
    return outcome


def _step(network: nn.Module, setting: Setting, x: Tensor, target: Tensor, amp: bool) -> Callable[[], None]:
    """A function that does one training step as nnU-Net does: deep supervision, loss scaling, clipping, SGD."""
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), 1e-4, momentum=0.99, weight_decay=3e-5, nesterov=True)
    scaler = torch.amp.GradScaler(setting.device, enabled=amp and setting.device == "cuda")

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with setting.autocast(amp):
            loss = networks.supervised_loss(network(x), target)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(network.parameters(), 12)
        scaler.step(optimizer)
        scaler.update()

    return step


def _peak_of_step(name: str, setting: Setting, x: Tensor, target: Tensor, amp: bool) -> int:
    """Bytes that the GPU had allocated at most in a training step, beyond what was before the network was there."""
    gc.collect()
    before = torch.cuda.memory_allocated()
    step = _step(networks.build(name, setting.plan).to(setting.device), setting, x, target, amp)
    step()  # makes gradients and momentum, and chooses algorithms
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated() - before


def memory_piece(setting: Setting) -> Outcome:
    """The peak of a training step against the planner's estimate plus weights, gradients and momentum.

    Without a GPU: what autograd really keeps against the estimate.
    """
    measured_name = "GPU peak (GiB)" if setting.device == "cuda" else "kept (GiB)"
    outcome = Outcome(("network", "estimate (GiB)", measured_name, "measured/estimate", "peak with AMP (GiB)", ""))
    _numerics(exact=False)
    plan, tolerance = setting.plan, MEMORY_TOLERANCE[setting.device]
    x, target = networks.images(plan).to(setting.device), networks.labels(plan).to(setting.device)
    for name in (PLAIN, *VARIANTS):
        network = networks.build(name, plan)
        estimate = saved_bytes(network, plan.patch_size, 1, plan.batch_size)
        amp = ""
        if setting.device == "cuda":
            estimate += BYTES_PER_PARAMETER * sum(p.numel() for p in network.parameters())
            measured = _peak_of_step(name, setting, x, target, amp=False)
            amp = f"{_peak_of_step(name, setting, x, target, amp=True) / measure.GIB:.2f}"
        else:
            measured = kept_for_backward(partial(network.train(), x), exclude=[x, *network.parameters()])
        quotient = measured / estimate
        complaint = f"memory: {name}: measured/estimate {quotient:.3f}, expected within {tolerance:.0%}"
        verdict = outcome.check(abs(quotient - 1) <= tolerance, complaint)
        sizes = [f"{size / measure.GIB:.3f}" for size in (estimate, measured)]
        outcome.rows.append([name, *sizes, f"{quotient:.3f}", amp, verdict])
    outcome.remark = "The step with AMP is for information: it keeps most activations in float16."
    return outcome


def _speed_networks(setting: Setting) -> dict[str, tuple[nn.Module, torch.memory_format]]:
    """Rows of the speed table: every network in both memory formats, SSH-UNet's views batched and one by one."""
    rows: dict[str, tuple[nn.Module, torch.memory_format]] = {}
    formats = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last_3d}
    for name in (PLAIN, *VARIANTS):
        for label, memory_format in formats.items():
            network: nn.Module = networks.build(name, setting.plan)
            network.to(setting.device)
            for parameter in network.parameters():
                if parameter.dim() == 5:  # `Module.to(memory_format=...)` would fail on the weights of 2D convolutions
                    parameter.data = parameter.data.contiguous(memory_format=memory_format)
            rows[f"{name}, {label}"] = (network, memory_format)
    for execution in ("batched", "sequential"):
        network = networks.build("SSHUNet TSM", setting.plan, view_execution=execution).to(setting.device)
        rows[f"SSHUNet TSM, views {execution}"] = (network, torch.contiguous_format)
    return rows


def _without_oom(run: Callable[[], Any]) -> bool:
    """Run twice to warm up; False if the device's memory is too small."""
    try:
        run()
        run()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return False
    return True


def _forward(network: nn.Module, setting: Setting, x: Tensor) -> Callable[[], None]:
    def run() -> None:
        network.eval()
        with torch.inference_mode(), setting.autocast(setting.device == "cuda"):
            network(x)

    return run


def _training(step: Callable[[], None], network: nn.Module) -> Callable[[], None]:
    def run() -> None:
        network.train()
        step()

    return run


def speed_piece(setting: Setting) -> Outcome:
    """Time of a training step and of a forward pass with AMP, every network against PlainConvUNet at the same plan."""
    against = f"{PLAIN}, contiguous"
    outcome = Outcome(
        ("network", "training step (ms)", "ratio", "inference (ms)", "ratio"),
        remark=f"{setting.rounds} rounds in turns, medians; eager mode. Ratios are to {against}.",
    )
    _numerics(exact=False)
    x, target = networks.images(setting.plan).to(setting.device), networks.labels(setting.plan).to(setting.device)
    steps, forwards = {}, {}
    for name, (network, memory_format) in _speed_networks(setting).items():
        inputs = x.to(memory_format=memory_format)
        step = _training(_step(network, setting, inputs, target, setting.device == "cuda"), network)
        forward = _forward(network, setting, inputs)
        if _without_oom(step) and _without_oom(forward):
            steps[name], forwards[name] = step, forward
        else:
            outcome.rows.append([name, "out of memory", "", "out of memory", ""])
    timings = [
        measure.in_turns(runs, setting.rounds, time.perf_counter, setting.synchronise) for runs in (steps, forwards)
    ]
    for name in steps:
        cells = [name]
        for seconds in timings:
            relative = measure.ratio(seconds, name, against) if against in seconds else math.nan
            cells += [f"{1000 * median(seconds[name]):.1f}", f"{relative:.2f}"]
        outcome.rows.append(cells)
    return outcome


def _gradients(network: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    networks.supervised_loss(network(x), target).backward()
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def _ddp_worker(rank: int, port: int, setting: Setting, names: Sequence[str], found: Any) -> None:
    backend = "nccl" if setting.device == "cuda" else "gloo"
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group(backend, init_method=address, rank=rank, world_size=2)
    device = torch.device(setting.device, rank) if setting.device == "cuda" else torch.device("cpu")
    torch.set_num_threads(1)
    _numerics(exact=True)
    x, target = (t.chunk(2)[rank].to(device) for t in (networks.images(setting.plan), networks.labels(setting.plan)))
    for name in names:
        network = networks.build(name, setting.plan).to(device).train()
        parallel = nn.parallel.DistributedDataParallel(network, [rank] if setting.device == "cuda" else None)
        gradients = _gradients(parallel, x, target).cpu()
        if rank == 0:
            found[name] = gradients.numpy()
    torch.distributed.destroy_process_group()


def ddp_piece(setting: Setting) -> Outcome:
    """Two processes with half a batch each get the gradients that one process gets from the whole batch."""
    if setting.device == "cuda" and torch.cuda.device_count() < 2:
        return Outcome(remark="Skipped: it needs two GPUs.", skipped=True)
    outcome = Outcome(("network", "difference of gradients", ""))
    names = (PLAIN, *VARIANTS)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with torch.multiprocessing.Manager() as manager:
        found = manager.dict()
        spawn(_ddp_worker, (port, setting, names, found), nprocs=2)
        parallel = {name: torch.from_numpy(found[name]) for name in names}
    _numerics(exact=True)
    x, target = networks.images(setting.plan).to(setting.device), networks.labels(setting.plan).to(setting.device)
    for name in names:
        expected = _gradients(networks.build(name, setting.plan).to(setting.device).train(), x, target).cpu()
        difference = float((parallel[name] - expected).norm() / expected.norm())
        verdict = outcome.check(difference <= EQUAL, f"ddp: {name}: gradients differ by {difference:.1e}")
        outcome.rows.append([name, f"{difference:.1e}", verdict])
    return outcome


PIECES: dict[str, Callable[[Setting], Outcome]] = {
    "compile": compile_piece,
    "amp": amp_piece,
    "memory": memory_piece,
    "speed": speed_piece,
    "ddp": ddp_piece,
}
