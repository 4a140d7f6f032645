"""The pieces of `gpu.py` and their names: each checks or measures one thing that needs a GPU, in under ten minutes."""

from __future__ import annotations

import gc
import math
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import gpu_networks as networks
import measure
import torch
import torch.distributed
from gpu_networks import PLAIN, VARIANTS
from gpu_numerics import amp_piece, compile_piece
from gpu_pretraining import pretraining_piece
from gpu_setting import EQUAL, Outcome, Setting, numerics
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from nnunet_ext.architectures.blocks.memory import kept_for_backward, saved_bytes

BYTES_PER_PARAMETER = 12  # weight, gradient and momentum in float32
MEMORY_TOLERANCE = {"cuda": 0.15, "cpu": 0.05}  # on toy patches the weights' copies in another layout show


def _step(network: nn.Module, x: Tensor, target: Tensor, amp: bool) -> Callable[[], None]:
    """A function that does one training step as nnU-Net does, with deep supervision."""
    return measure.training_step(network, x, lambda outputs: networks.supervised_loss(outputs, target), amp=amp)


def _peak_of_step(name: str, setting: Setting, x: Tensor, target: Tensor, amp: bool) -> int:
    """Bytes that the GPU had allocated at most in a training step, beyond what was before the network was there."""
    gc.collect()
    before = torch.cuda.memory_allocated()
    step = _step(networks.build(name, setting.plan, dropout=True).to(setting.device), x, target, amp)
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
    numerics(exact=False)
    plan, tolerance = setting.plan, MEMORY_TOLERANCE[setting.device]
    x, target = networks.images(plan).to(setting.device), networks.labels(plan).to(setting.device)
    for name in (PLAIN, *VARIANTS):
        network = networks.build(name, plan, dropout=True)
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
            network: nn.Module = networks.build(name, setting.plan, dropout=True)
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
    numerics(exact=False)
    x, target = networks.images(setting.plan).to(setting.device), networks.labels(setting.plan).to(setting.device)
    steps, forwards = {}, {}
    for name, (network, memory_format) in _speed_networks(setting).items():
        inputs = x.to(memory_format=memory_format)
        step = _training(_step(network, inputs, target, setting.device == "cuda"), network)
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
    numerics(exact=True)
    x, target = (t.chunk(2)[rank].to(device) for t in (networks.images(setting.plan), networks.labels(setting.plan)))
    for name in names:
        network = networks.build(name, setting.plan).to(device).train()
        if setting.device == "cuda":  # as nnU-Net does
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        parallel = nn.parallel.DistributedDataParallel(network, [rank] if setting.device == "cuda" else None)
        gradients = _gradients(parallel, x, target).cpu()
        if rank == 0:
            found[name] = gradients.numpy()
    torch.distributed.destroy_process_group()


def _has_batch_norm(name: str, setting: Setting) -> bool:
    return any(isinstance(m, nn.BatchNorm3d) for m in networks.build(name, setting.plan).modules())


def ddp_piece(setting: Setting) -> Outcome:
    """Two processes with half a batch each get the gradients that one process gets from the whole batch.

    Batch norm is synchronised, which works on GPUs only: on a CPU networks with batch norm are left out.
    """
    if setting.device == "cuda" and torch.cuda.device_count() < 2:
        return Outcome(remark="Skipped: it needs two GPUs.", skipped=True)
    outcome = Outcome(("network", "difference of gradients", ""))
    names = [name for name in (PLAIN, *VARIANTS) if setting.device == "cuda" or not _has_batch_norm(name, setting)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with torch.multiprocessing.Manager() as manager:
        found = manager.dict()
        spawn(_ddp_worker, (port, setting, names, found), nprocs=2)
        parallel = {name: torch.from_numpy(found[name]) for name in names}
    numerics(exact=True)
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
    "pretraining": pretraining_piece,
}
