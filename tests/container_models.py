"""Trained models' folders: files only, or one that nnU-Net can load and predict with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch


def stub(folder: Path, labels: int, trainer: str = "nnUNetTrainer", folds: tuple[str, ...] = ("0", "1")) -> Path:
    """A model that nobody loads, of so many labels."""
    model = folder / f"{trainer}__nnUNetPlans__3d_fullres"
    for fold in folds:
        (model / f"fold_{fold}").mkdir(parents=True)
        torch.save({"trainer_name": trainer}, model / f"fold_{fold}" / "checkpoint_final.pth")
        (model / f"fold_{fold}" / "progress.png").write_bytes(b"")
    (model / "plans.json").write_text("{}")
    content: dict[str, Any] = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **{f"o{k}": k for k in range(1, labels + 1)}},
        "file_ending": ".nii.gz",
    }
    (model / "dataset.json").write_text(json.dumps(content))
    return model


def real(folder: Path, labels: int) -> Path:
    """The smallest U-Net, untrained."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    model = stub(folder, labels, folds=("0",))
    architecture = {
        "n_stages": 2,
        "features_per_stage": [4, 4],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * 2,
        "strides": [[1, 1, 1], [2, 2, 2]],
        "n_conv_per_stage": [1, 1],
        "n_conv_per_stage_decoder": [1],
        "conv_bias": True,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    resampled = ("data", "seg", "probabilities")
    options = {"order": 1, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "x",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [16, 16, 16],
        "median_image_size_in_voxels": [16, 16, 16],
        "spacing": [1.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "batch_dice": False,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": architecture,
            "_kw_requires_import": ["conv_op", "nonlin"],
        },
        **{f"resampling_fn_{what}": "resample_data_or_seg_to_shape" for what in resampled},
        **{f"resampling_fn_{what}_kwargs": {"is_seg": what == "seg", **options} for what in resampled},
    }
    plans = {
        "dataset_name": "x",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": {}},
        "configurations": {"3d_fullres": configuration},
    }
    (model / "plans.json").write_text(json.dumps(plans))
    kwargs: dict[str, Any] = {**architecture, "conv_op": torch.nn.Conv3d, "nonlin": torch.nn.LeakyReLU}
    network = PlainConvUNet(input_channels=1, num_classes=labels + 1, **kwargs)
    checkpoint = {
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": "3d_fullres"},
        "inference_allowed_mirroring_axes": None,
        "network_weights": network.state_dict(),
    }
    torch.save(checkpoint, model / "fold_0" / "checkpoint_final.pth")
    return model
