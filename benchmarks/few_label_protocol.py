"""The few-label protocol (specification alice 6.5), fixed before anything was looked at; sized for two CPU cores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

DATASET, NUMBER, CONFIGURATION, PLANS = "Dataset004_Hippocampus", 4, "3d_fullres", "fewLabelPlans"


@dataclass(frozen=True)
class Protocol:
    """All choices.

    Attributes:
        test: cases drawn once, neither pre-trained nor fine-tuned on.
        inner: cases of the rest on which an arm's recipe is chosen.
        labels: numbers of labelled cases; smaller subsets lie in larger ones.
        seeds: each draws its subsets, pre-trains, and fine-tunes.
        features: of the network's stages.
        patch: voxels; smaller than the images, so that CPUs make enough steps.
        batch: patches of a step of fine-tuning and of masked autoencoding, pairs of Alice.
        iterations, epochs: of a fine-tuning.
        longer: epochs of training from scratch for as long as pre-training and fine-tuning take together.
        steps: of pre-training, by method; both take about the same CPU time.
        alice: options of Alice: smaller heads, since the network is small.
    """

    test: int = 40
    inner: int = 20
    labels: tuple[int, ...] = (4, 16)
    seeds: tuple[int, ...] = (0, 1, 2)
    features: tuple[int, ...] = (16, 32, 64, 128)
    patch: tuple[int, ...] = (24, 32, 24)
    batch: int = 4
    iterations: int = 20
    epochs: int = 14
    longer: int = 46
    steps: dict[str, int] = field(default_factory=lambda: {"mae": 800, "alice": 260})
    alice: tuple[str, ...] = ("prototypes=256", "hidden=512", "bottleneck=128", "casa_hidden=512")


PROTOCOL = Protocol()
ARMS = ("scratch", "scratch, equal compute", "mae", "mae, encoder only", "alice")
TRANSFERRED = {"mae": ("mae", "all"), "mae, encoder only": ("mae", "encoder"), "alice": ("alice", "all")}
"""Method, and what of its network is taken over; "mae, encoder only" was added after the others had been tested."""
RECIPES = {"plain": "UNetTrainer", "fine-tune": "UNetTrainer_FineTune"}


@dataclass(frozen=True)
class Parts:
    """Who is in which part; drawn by seed 0."""

    test: tuple[str, ...]
    rest: tuple[str, ...]


def parts(names: Sequence[str], protocol: Protocol = PROTOCOL) -> Parts:
    """Test cases, and those whose images are pre-trained on."""
    order = np.random.default_rng(0).permutation(sorted(names))
    return Parts(tuple(sorted(order[: protocol.test].tolist())), tuple(sorted(order[protocol.test :].tolist())))


def labelled(rest: Sequence[str], seed: int, number: int) -> list[str]:
    """The labelled cases of a seed: the first of an order of chance, so that subsets are nested."""
    return sorted(np.random.default_rng((1, seed)).permutation(sorted(rest))[:number].tolist())


def inner(rest: Sequence[str], protocol: Protocol = PROTOCOL) -> list[str]:
    """Cases to choose recipes on: the last of seed 0's order, labelled for nothing else of that seed."""
    return sorted(np.random.default_rng((1, 0)).permutation(sorted(rest))[-protocol.inner :].tolist())


def folds(names: Sequence[str], protocol: Protocol = PROTOCOL) -> tuple[list[dict[str, list[str]]], dict[str, int]]:
    """nnU-Net's splits, and the number of each: "seed/labels" with the test cases, "choice" with the inner ones."""
    drawn = parts(names, protocol)
    splits, numbers = list[dict[str, list[str]]](), dict[str, int]()
    for seed in protocol.seeds:
        for number in protocol.labels:
            numbers[f"{seed}/{number}"] = len(splits)
            splits.append({"train": labelled(drawn.rest, seed, number), "val": list(drawn.test)})
    numbers["choice"] = len(splits)
    splits.append({"train": labelled(drawn.rest, 0, min(protocol.labels)), "val": inner(drawn.rest, protocol)})
    return splits, numbers
