"""What the benchmarks share: interleaved timing, peak memory, what is kept for backward, and where the time goes."""

from __future__ import annotations

import ctypes
import gc
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.hooks import RemovableHandle

GIB = 2**30
NETWORKS = ("plain", "published", "ours")
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
#: glibc keeps freed memory and raises its thresholds as it goes; fixed ones make resident memory follow what is in use.
HONEST_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_ARENA_MAX": "2"}

#: What a name in a profile stands for, first match first. Unmatched operators count where their caller counts.
GROUPS = (
    ("norm", ("batch_norm", "instance_norm", "var_mean", "normact", "scope:norm", "layer_norm", "group_norm")),
    ("activation", ("leaky_relu", "tanh", "sigmoid")),
    ("convolution", ("conv", "scope:convolution")),
    ("shift", ("copyslices", "shift", "scope:shift")),
    ("loss", ("cross_entropy", "log_softmax", "nll_loss", "scope:loss")),
    ("optimizer", ("optimizer.", "_foreach_", "clip_grad")),
)
SCOPES = (
    ("norm", ("norm",)),
    ("convolution", ("conv",)),
    ("shift", ("shift",)),
)
#: Where operators without a telling name or caller go.
PLAIN_OPERATORS = {
    "copies": ("copy_", "cat", "zero_", "fill_", "clone", "stack", "slice_backward"),
    "arithmetic": ("add", "mul", "sub", "div", "sum", "mean"),
}


@dataclass(frozen=True)
class Quantity:
    """One measured quantity: its row's name, what ours should be of the published formulation's at most, and digits."""

    name: str
    unit: str
    target: float | None = None
    digits: int = 2


#: quantity -> network -> the values of all rounds
Values = dict[str, dict[str, list[float]]]


def cpu_model() -> str:
    """The processor's name, as the system tells it."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in _lines(info) if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def environment() -> dict[str, Any]:
    """Versions, processor and threads, to be written beside every result."""
    versions = {}
    for package in ("nnunet-ext", "nnunetv2", "dynamic-network-architectures"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **versions,
        "system": platform.system(),
        "processor": cpu_model(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
    }


def environment_list() -> str:
    """The environment as a Markdown list."""
    return "\n".join(f"* {name}: {value}" for name, value in environment().items())


def settle() -> None:
    """Collect garbage and give freed memory back, so that every run starts alike (where glibc lets one ask for it)."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def in_turns(
    runs: Mapping[str, Callable[[], Any]],
    rounds: int,
    clock: Callable[[], float],
    synchronise: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of each run: all once a round, in alternating order, so that a slow spell meets all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds):
        for name in list(runs) if turn % 2 == 0 else reversed(list(runs)):
            settle()
            synchronise()
            start = clock()
            runs[name]()
            synchronise()
            seconds[name].append(clock() - start)
    return seconds


def ratio(seconds: Mapping[str, Sequence[float]], name: str, against: str) -> float:
    """Median over the rounds of the quotient within a round."""
    return median(a / b for a, b in zip(seconds[name], seconds[against], strict=True))


def inference(network: nn.Module, x: Tensor, *, amp: bool = False) -> Any:
    """One forward pass as nnU-Net predicts, `amp` with autocast to float16; the network is in eval mode already."""
    with torch.inference_mode(), torch.autocast(x.device.type, torch.float16, enabled=amp):
        return network(x)


def training_step(
    network: nn.Module, x: Tensor, loss: Callable[[Any], Tensor], *, amp: bool = False
) -> Callable[[], None]:
    """A function that does one training step as nnU-Net does: forward, loss, backward, clipping and SGD.

    Args:
        network: is set to training mode.
        x: the batch.
        loss: of the network's outputs.
        amp: with autocast to float16 and, on a GPU, loss scaling.
    """
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), 1e-4, momentum=0.99, weight_decay=3e-5, nesterov=True)
    scaler = torch.amp.GradScaler(x.device.type, enabled=amp and x.device.type == "cuda")

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(x.device.type, torch.float16, enabled=amp):
            value = loss(network(x))
        scaler.scale(value).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(network.parameters(), 12)
        scaler.step(optimizer)
        scaler.update()

    return step


def kept_by_step(network: nn.Module, x: Tensor, *, amp: bool = False) -> int:
    """Bytes kept for backward by one training forward, the input and the parameters excluded."""
    network.train()
    with (
        KeptForBackward([x, *network.parameters()]) as kept,
        torch.autocast(x.device.type, torch.float16, enabled=amp),
    ):
        network(x)
    return kept.bytes


def ratios(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Ours to "published" and to "plain" and published to plain, as far as these networks were measured."""
    pairs = {
        "published": ("ours", "published"),
        "plain": ("ours", "plain"),
        "published_to_plain": ("published", "plain"),
    }
    return {key: ratio(values, a, b) for key, (a, b) in pairs.items() if a in values and b in values}


def quantity_table(quantities: Mapping[str, Quantity], values: Values) -> str:
    """Medians of plain, published and ours, their ratios, and the targets, as a Markdown table."""
    rows = []
    for key, quantity in quantities.items():
        if key not in values:
            continue
        found, target = ratios(values[key]), quantity.target
        verdict = "" if target is None else f"{target} {'met' if found['published'] <= target else 'not met'}"
        medians = {name: f"{median(seconds):.{quantity.digits}f}" for name, seconds in values[key].items()}
        quotients = {name: f"{value:.2f}" for name, value in found.items()}
        rows.append(
            (
                f"{quantity.name} ({quantity.unit})",
                *(medians.get(name, "") for name in NETWORKS),
                *(quotients.get(name, "") for name in ("published_to_plain", "plain")),
                f"**{found['published']:.3f}**",
                verdict,
            )
        )
    header = ("", *NETWORKS, "published/plain", "ours/plain", "ours/published", "target")
    return markdown_table(header, rows)


class KeptForBackward:
    """Counts the bytes that autograd keeps for backward within a `with` block, without disturbing it.

    Distinct storages; those of the tensors in `exclude` (parameters, inputs) are left out.
    """

    def __init__(self, exclude: Iterable[Tensor]) -> None:
        self._exclude = {tensor.untyped_storage().data_ptr() for tensor in exclude}
        self._storages: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._storages.setdefault(storage.data_ptr(), storage)
        return tensor

    def __enter__(self) -> KeptForBackward:
        self._hooks.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self._hooks.__exit__(*details)

    @property
    def bytes(self) -> int:
        """Bytes counted so far."""
        return sum(s.nbytes() for address, s in self._storages.items() if address not in self._exclude)


def _status_bytes(field: str) -> int:
    for line in _lines(STATUS):
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(
        f"{STATUS} has no {field}: peak memory is measured on Linux only; leave it out with --quantities."
    )


def resident_bytes() -> int:
    """Resident memory of this process now."""
    return _status_bytes("VmRSS")


@contextmanager
def extra_peak() -> Iterator[dict[str, int]]:
    """Resident memory within the block, beyond what was resident before: {"peak": bytes} once the block has ended."""
    settle()
    CLEAR_REFS.write_text("5")  # forget the peak so far
    before = resident_bytes()
    result: dict[str, int] = {}
    yield result
    result["peak"] = _status_bytes("VmHWM") - before


def in_fresh_process(script: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Run `script` in a new process with fixed malloc thresholds; returns the JSON in its last line."""
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, env={**os.environ, **HONEST_MALLOC}, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _first_match(name: str, table: Iterable[tuple[str, Sequence[str]]]) -> str | None:
    name = name.lower()
    return next((group for group, words in table if any(word in name for word in words)), None)


@contextmanager
def _scopes(network: nn.Module) -> Iterator[None]:
    """Name the innermost convolution, norm or shift module at work, for the profiler."""
    open_scopes: list[record_function] = []
    handles: list[RemovableHandle] = []

    def enter(scope: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            open_scopes.append(record_function(f"scope:{scope}"))
            open_scopes[-1].__enter__()

        return hook

    def leave(*_: object) -> None:
        open_scopes.pop().__exit__(None, None, None)

    for module in network.modules():
        scope = _first_match(type(module).__name__, SCOPES)
        if scope is not None and not isinstance(module, nn.Sequential):
            handles += [module.register_forward_pre_hook(enter(scope)), module.register_forward_hook(leave)]
    yield
    for handle in handles:
        handle.remove()


def _group(event: Any) -> str:
    caller = event
    while caller is not None:
        group = _first_match(caller.name, GROUPS)
        if group is not None:
            return group
        caller = caller.cpu_parent
    return _first_match(event.name, PLAIN_OPERATORS.items()) or "other"


def time_by_group(network: nn.Module, run: Callable[[], Any]) -> tuple[dict[str, float], dict[str, float]]:
    """CPU seconds of one `run`, by group and by operator (each operator's own time, most first)."""
    with _scopes(network), profile(activities=[ProfilerActivity.CPU]) as profiled:
        run()
    groups: Counter[str] = Counter()
    operators: Counter[str] = Counter()
    for event in profiled.events() or ():
        own = event.self_cpu_time_total / 1e6
        groups[_group(event)] += own
        operators[event.name] += own
    return dict(groups.most_common()), dict(operators.most_common())


def profile_text(title: str, networks: Mapping[str, nn.Module], runs: Mapping[str, Callable[[], Any]]) -> str:
    """CPU seconds of one run of each network by group, as a table, and its dearest operators."""
    columns, tops = {}, {}
    for name, network in networks.items():
        columns[name], tops[name] = time_by_group(network, runs[name])
    groups = sorted({group for found in columns.values() for group in found}, key=lambda g: -columns["ours"].get(g, 0))
    rows = [(group, *(f"{columns[name].get(group, 0):.2f}" for name in networks)) for group in groups]
    rows.append(("sum", *(f"{sum(columns[name].values()):.2f}" for name in networks)))
    parts = [f"{title}: CPU seconds", markdown_table(("", *networks), rows)]
    parts += [f"{name}: " + ", ".join(f"{op} {s:.2f}" for op, s in list(tops[name].items())[:12]) for name in networks]
    return "\n\n".join(parts)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown, columns aligned."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def write_results(folder: Path, name: str, text: str, data: Mapping[str, Any]) -> None:
    """Write `name`.md and `name`.json in `folder`, each at once."""
    folder.mkdir(parents=True, exist_ok=True)
    for ending, content in ((".md", text), (".json", json.dumps(data, indent=2) + "\n")):
        with ExitStack() as cleanup:
            unfinished = folder / f".{name}{ending}.part"
            cleanup.callback(unfinished.unlink, missing_ok=True)
            unfinished.write_text(content)
            unfinished.replace(folder / f"{name}{ending}")
