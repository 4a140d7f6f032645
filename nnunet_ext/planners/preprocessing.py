"""Whether a planner's images are preprocessed as by nnU-Net's default planner, so that the data can be shared."""

from __future__ import annotations

from os.path import isfile, join
from typing import Any

import numpy as np
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.configuration import ANISO_THRESHOLD
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.paths import nnUNet_preprocessed

STOCK_PLANS = "nnUNetPlans"

#: What decides about preprocessing in a planner.
DECIDING_METHODS = (
    "determine_fullres_target_spacing",
    "determine_normalization_scheme_and_whether_mask_is_used_for_norm",
    "determine_resampling",
    "determine_transpose",
)


def preprocesses_as_stock(planner: ExperimentPlanner, configuration_name: str) -> bool:
    """Whether nnU-Net's default planner preprocesses as this one does, and existing default plans agree."""
    if any(getattr(type(planner), name) is not getattr(ExperimentPlanner, name) for name in DECIDING_METHODS):
        return False
    if planner.preprocessor_name != "DefaultPreprocessor" or planner.anisotropy_threshold != ANISO_THRESHOLD:
        return False
    if planner.overwrite_target_spacing is not None or planner.suppress_transpose:
        return False
    existing = join(nnUNet_preprocessed, planner.dataset_name, STOCK_PLANS + ".json")
    return not isfile(existing) or _agree(load_json(existing), planner, configuration_name)


def _agree(plans: dict[str, Any], planner: ExperimentPlanner, configuration_name: str) -> bool:
    """Whether these default plans preprocess a configuration as the planner would."""
    configuration = plans["configurations"].get(configuration_name)
    if configuration is None:
        return True
    forward, _ = planner.determine_transpose()
    spacing = planner.determine_fullres_target_spacing()[forward][-len(configuration["spacing"]) :]
    schemes, use_mask = planner.determine_normalization_scheme_and_whether_mask_is_used_for_norm()
    data_fn, data_kwargs, seg_fn, seg_kwargs = planner.determine_resampling()
    expected = {
        "data_identifier": f"{STOCK_PLANS}_{configuration_name}",
        "preprocessor_name": planner.preprocessor_name,
        "normalization_schemes": schemes,
        "use_mask_for_norm": use_mask,
        "resampling_fn_data": data_fn.__name__,
        "resampling_fn_seg": seg_fn.__name__,
        "resampling_fn_data_kwargs": data_kwargs,
        "resampling_fn_seg_kwargs": seg_kwargs,
    }
    properties = "foreground_intensity_properties_per_channel"
    return bool(
        all(configuration.get(key) == value for key, value in expected.items())
        and np.allclose(configuration["spacing"], spacing)
        and plans["transpose_forward"] == [int(i) for i in forward]
        and plans[properties] == planner.dataset_fingerprint[properties]
    )
