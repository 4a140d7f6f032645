"""Files as nnU-Net v1 and the authors' fork of it write them, of small networks: checkpoints, `.model.pkl`, plans."""

from __future__ import annotations

import functools
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import golden_tools as golden
import numpy as np
import torch
from torch import Tensor
from unetrpp_baseline import PublishedUNETRPP, Variant, load_published

State = dict[str, Tensor]

SMALL = {
    "tied": Variant((16, 64, 64), (2, 4, 4), "tied", 1, 0.15),
    "separate": Variant((8, 64, 64), (1, 4, 4)),
    "no_bias": Variant((32, 64, 64), (4, 4, 4), "parameter", 1),
}
"""Projections -> a network of that kind for small patches."""
CHANNELS = {"tied": 1, "separate": 1, "no_bias": 4}
CLASSES = 4


@functools.cache
def published_network(kind: str) -> PublishedUNETRPP:
    """The published network formulated plainly, with the golden fixtures' weights, in eval mode; made once."""
    network = PublishedUNETRPP(SMALL[kind], CHANNELS[kind], CLASSES, features=4, depths=(1, 2, 1, 1))
    load_published(network, published_state(network))
    return network.eval()


def published_state(network: torch.nn.Module) -> State:
    """Weights made of their names; tied projections are the same under both names."""
    entries = network.state_dict()
    tied = not any(".conv52." in key for key in entries)
    state = {}
    for key, value in entries.items():
        name = key.replace(".F.", ".E.") if tied else key
        state[key] = torch.from_numpy(golden.fill(name, value.shape))
    return {
        key: torch.tensor(250_000) if key.endswith("num_batches_tracked") else value for key, value in state.items()
    }


def small_state(kind: str) -> State:
    """The state dict of `published_network`, with all of a published file's entries."""
    return {key: value.clone() for key, value in published_network(kind).state_dict().items()}


def save_checkpoint(path: Path, state: State, **entries: Any) -> Path:
    """Write a `model_final_checkpoint.model` (specification unetrpp 2.2)."""
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([parameter], 1e-2, momentum=0.99, nesterov=True)
    parameter.grad = torch.ones(3)
    optimizer.step()
    losses = [np.float64(0.5), np.float32(0.25)]
    content = {
        "epoch": 1000,
        "state_dict": OrderedDict(state),
        "optimizer_state_dict": optimizer.state_dict(),
        "lr_scheduler_state_dict": None,
        "plot_stuff": (losses, losses, [], [np.mean([0.8, 0.9])]),
        "best_stuff": (np.int64(990), np.float64(-0.8), np.float64(0.85)),
        **entries,
    }
    torch.save(content, path)
    return path


def v1_plans(kind: str = "tied", modality: str = "CT", **changes: Any) -> dict[str, Any]:
    """A plans dictionary of two stages, of which the last is used (specification unetrpp 2.4)."""
    channels, is_ct = range(CHANNELS[kind]), modality == "CT"
    stage = {
        "batch_size": 2,
        "num_pool_per_axis": [3, 5, 5],
        "patch_size": np.array(SMALL[kind].patch),
        "median_patient_size_in_voxels": np.array([148, 512, 512]),
        "current_spacing": np.array([3.0, 0.76, 0.75]),
        "original_spacing": np.array([3.0, 0.76, 0.75]),
        "do_dummy_2D_data_aug": np.bool_(True),
        "pool_op_kernel_sizes": [[2, 2, 2]] * 3,
        "conv_kernel_sizes": [[3, 3, 3]] * 4,
    }
    intensities = {
        "local_props": OrderedDict(case_1={"mean": np.float32(90.0)}),
        "median": np.float32(95.0),
        "mean": np.float64(100.0),
        "sd": 80.0,
        "mn": np.float32(-300.0),
        "mx": 900.0,
        "percentile_99_5": np.float64(300.0),
        "percentile_00_5": np.float64(-50.0),
    }
    return {
        "num_stages": 2,
        "num_modalities": len(channels),
        "modalities": dict.fromkeys(channels, modality),
        "normalization_schemes": OrderedDict((c, "CT" if is_ct else "nonCT") for c in channels),
        "dataset_properties": {
            "all_sizes": [(100, 512, 512)],
            "intensityproperties": OrderedDict((c, intensities) for c in channels) if is_ct else None,
        },
        "list_of_npz_files": ["case_1.npz"],
        "original_spacings": [np.array([5.0, 0.5, 0.6]), np.array([3.0, 0.7, 0.8]), np.array([3.0, 0.8, 0.9])],
        "original_sizes": [(100, 512, 511), (120, 512, 512), (140, 500, 500)],
        "preprocessed_data_folder": "somewhere",
        "num_classes": CLASSES - 1,
        "all_classes": list(range(1, CLASSES)),
        "base_num_features": 32,
        "use_mask_for_norm": OrderedDict((c, not is_ct) for c in channels),
        "keep_only_largest_region": None,
        "min_size_per_class": None,
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "data_identifier": "unetr_pp_Data_plans_v2.1",
        "plans_per_stage": OrderedDict({0: {**stage, "current_spacing": np.array([6.0, 1.5, 1.5])}, 1: stage}),
        "preprocessor_name": "GenericPreprocessor",
        "conv_per_stage": 2,
        **changes,
    }


def side_file(plans: dict[str, Any], stage: int | None = 1, batch_dice: bool = True) -> dict[str, Any]:
    """The content of `model_final_checkpoint.model.pkl` (specification unetrpp 2.3)."""
    init = ("plans.pkl", 0, "output", "data", batch_dice, stage, True, False, False)
    return OrderedDict(init=init, name="unetr_pp_trainer_synapse", **{"class": "<class>"}, plans=plans)


class Command:
    """Runs a shell command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def save_pickle(path: Path, content: Any, protocol: int = 4) -> Path:
    """Write a pickle."""
    path.write_bytes(pickle.dumps(content, protocol))
    return path
