"""The ``nnssl_adaptation_plan`` in an exported file, for readers of nnssl's format (specification alice 4.5, 4.7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

_KEYS = {
    "PlainConvUNet": {
        "key_to_encoder": "encoder.stages",
        "key_to_stem": "encoder.stages.0",
        "keys_to_in_proj": ["encoder.stages.0.0.convs.0.all_modules.0", "encoder.stages.0.0.convs.0.conv"],
    },
    "ResidualEncoderUNet": {
        "key_to_encoder": "encoder.stages",
        "key_to_stem": "encoder.stem",
        "keys_to_in_proj": ["encoder.stem.convs.0.conv", "encoder.stem.convs.0.all_modules.0"],
    },
}
_OF_DATASET = (
    "dataset_name",
    "plans_name",
    "original_median_spacing_after_transp",
    "image_reader_writer",
    "transpose_forward",
    "transpose_backward",
    "experiment_planner_used",
)
_OF_CONFIGURATION = (
    "data_identifier",
    "preprocessor_name",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
    "spacing",
)
SPACING_STYLE = "median"  # of nnssl's onemmiso, median and noresample: spacings are those of nnU-Net's plans


def adaptation_plan(
    architecture: Mapping[str, Any],
    input_channels: int,
    plans: Mapping[str, Any],
    configuration: str,
    patch_size: Sequence[int],
) -> dict[str, Any] | None:
    """The plan, or None for networks that readers of it do not know.

    Args:
        architecture: the block of plans of the network in the file.
        input_channels: of the weights in the file.
        plans: of the pre-training.
        configuration: its name there.
        patch_size: of the pre-training.
    """
    name = str(architecture["network_class_name"])
    known = name.rpartition(".")[2]
    if not name.startswith("dynamic_network_architectures.") or known not in _KEYS:
        return None
    settings = PlansManager(dict(plans)).get_configuration(configuration).configuration
    chosen = {key: settings[key] for key in _OF_CONFIGURATION if key in settings}
    chosen |= {
        "spacing_style": SPACING_STYLE,
        "resampling_fn_mask": settings["resampling_fn_seg"],
        "resampling_fn_mask_kwargs": settings["resampling_fn_seg_kwargs"],
        "patch_size": list(patch_size),
    }
    return {
        "architecture_plans": {
            "arch_class_name": name,
            "arch_kwargs": dict(architecture["arch_kwargs"]),
            "arch_kwargs_requiring_import": list(architecture["_kw_requires_import"]),
        },
        "pretrain_plan": {
            **{key: plans[key] for key in _OF_DATASET if key in plans},
            "configurations": {configuration: chosen},
        },
        "pretrain_num_input_channels": input_channels,
        "recommended_downstream_patchsize": list(patch_size),
        **_KEYS[known],
        "key_to_lpe": None,
    }
