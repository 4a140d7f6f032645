"""Golden fixtures: outputs of the authors' own networks, reproducible without their weights.

A fixture is two files:

    NAME.json  {"kind": what is checked, "source": "repository @ commit", "constructor": {...},
                "mode": "eval" | "train",
                "state": [[key, [shape], "float32"], ...],  # the original's own state dict, in order
                "inputs": [{"name": ..., "shape": [...], "seed": N, "kind": "normal" | "uniform"}],
                "outputs": [{"name": ..., "shape": [...], "step": K, "mean": ..., "std": ...}],
                "given": [names of stored arrays that are inputs, not results], "notes": "..."}
    NAME.npz   one flat float32 array per output: output.reshape(-1)[::step]

The weights are not stored: `fill(key, shape)` makes every tensor from its name alone with numpy's legacy RandomState,
whose stream numpy guarantees.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

Spec = dict[str, Any]
Arrays = dict[str, np.ndarray]


def fill(key: str, shape: Sequence[int]) -> np.ndarray:
    """The float32 tensor that stands for the state-dict entry `key`."""
    shape = tuple(int(n) for n in shape)
    rng = np.random.RandomState(zlib.crc32(key.encode()) & 0xFFFFFFFF)
    if not shape:
        return np.ones((), np.float32)
    if key.endswith("running_var"):
        return (0.5 + rng.rand(*shape)).astype(np.float32)
    if key.endswith(("bias", "running_mean")):
        return (0.1 * rng.standard_normal(shape)).astype(np.float32)
    if len(shape) == 1:
        return (1.0 + 0.1 * rng.standard_normal(shape)).astype(np.float32)
    fan_in = max(1, int(np.prod(shape[1:])))
    return (rng.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)


def reference_state(spec: Spec) -> Arrays:
    """The original's state dict, made by `fill`."""
    return {key: fill(key, shape) for key, shape, _ in spec["state"]}


def make_input(entry: Spec) -> np.ndarray:
    """The float32 input that `entry` describes."""
    rng = np.random.RandomState(entry["seed"])
    size: tuple[int, ...] = tuple(entry["shape"])
    values: np.ndarray = rng.random_sample(size) if entry.get("kind") == "uniform" else rng.standard_normal(size)
    return values.astype(np.float32)


def load(path: str | Path) -> tuple[Spec, Arrays]:
    """(description, expected flat outputs) of the fixture at `path`, given without its ending."""
    path = Path(path)
    spec = json.loads(path.with_name(f"{path.name}.json").read_text(encoding="utf-8"))
    with np.load(path.with_name(f"{path.name}.npz")) as data:
        return spec, {name: data[name] for name in data.files}


def given_arrays(spec: Spec, expected: Arrays) -> Arrays:
    """The stored arrays that are inputs of the fixture, in their own shapes."""
    entries = {output["name"]: output for output in spec["outputs"]}
    return {name: expected[name].reshape(entries[name]["shape"]) for name in spec.get("given", [])}


def compare(name: str, value: np.ndarray, spec: Spec, expected: Arrays) -> float:
    """Largest difference over the stored values of output `name`, divided by the original's standard deviation."""
    entry = next(output for output in spec["outputs"] if output["name"] == name)
    value = np.asarray(value, np.float32)
    assert list(value.shape) == entry["shape"], (name, list(value.shape), entry["shape"])
    difference = np.abs(value.reshape(-1)[:: entry["step"]] - expected[name]).max()
    return float(difference / max(entry["std"], 1e-12))
