"""docs/alice.md names every option, kind and number to watch, and its commands can be typed; every published option of
the five methods is answered. (That links lead somewhere is tested for all pages in test_docs_of_data_sets.py.)"""

from __future__ import annotations

import re
import shlex
from dataclasses import fields

import pytest
from pages import PAGES, commands, is_named, lines, options, parser

from nnunet_ext.names import parse_planner, parse_trainer
from nnunet_ext.pretraining.alice_options import ORIGINAL, AliceOptions
from nnunet_ext.pretraining.correspond_command import KINDS
from nnunet_ext.pretraining.settings import METHODS, PRECISIONS, VIEWS

PAGE = PAGES["docs/alice.md"]
VERBS = ("pretrain", "correspond", "pretrain-export")
OURS = re.compile(r"(?:nnunet-ext|-m nnunet_ext) (?=(?:pretrain|correspond|pretrain-export) )")
ANSWERED = {  # options of the published programs, page by page
    "docs/alice.md": """
        arch patch_size window_size out_dim patch_out_dim feature_size in_channels out_channels shared_head
        shared_head_teacher norm_last_layer momentum_teacher norm_in_head act_in_head use_masked_im_modeling pred_ratio
        pred_ratio_var pred_shape pred_start_epoch lambda1 lambda2 lambda3 warmup_teacher_temp teacher_temp
        warmup_teacher_patch_temp teacher_patch_temp warmup_teacher_temp_epochs use_fp16 weight_decay weight_decay_end
        clip_grad epochs freeze_last_layer warmup_epochs lr min_lr optimizer load_from drop_path global_crops_number
        a_min a_max b_min b_max roi_x roi_y roi_z batch_size sw_batch_size normal_dataset smartcache_dataset distributed
        threshold mask_ratio data_dir json_list output_dir embed_dir config_file checkpoint_file saveckp_freq eval_epoch
        seed num_workers dist_url local_rank master_port gpu checkpoint_key with_head""",
    "docs/sshunet.md": """
        checkpoint save_checkpoint resume_weights_ckpt pretrained_dir pretrained_model_name logdir data_dir
        json_list out_dir exp_name mri max_epochs batch_size sw_batch_size optim_lr optim_name reg_weight momentum noamp
        val_every patience workers nfolds num_models in_channels out_channels gate_pos gate_type spatial_dims filters
        gate_bottleneck gate_dec do_basic kernels strides res_block dropout_rate norm_name deep_supr_num
        deep_supervision
        vfn a_min a_max b_min b_max space_x space_y space_z roi_x roi_y roi_z pos neg RandFlipd_prob RandRotate90d_prob
        RandScaleIntensityd_prob RandShiftIntensityd_prob cache_num infer_overlap lrschedule warmup_epochs smooth_dr
        smooth_nr use_checkpoint squared_dice ensemble_method w_mee""",
    "docs/unetrpp.md": """
        validation_only continue_training use_compressed_data deterministic npz find_lr valbest fp32
        val_folder disable_saving disable_postprocessing_on_folds val_disable_overwrite disable_next_stage_pred save_npz
        lowres_segmentations part_id num_parts num_threads_preprocessing num_threads_nifti_save disable_tta
        overwrite_existing mode all_in_gpu step_size interp_order interp_order_z force_separate_z
        disable_mixed_precision cascade_trainer_class_name verify_dataset_integrity""",
    "docs/ossnet.md": """
        train test cuda_devices cpu epochs batch_size training_samples load_model segmentation_loss_factor
        network_config dataset dataset_path uniform_sampling""",
    "docs/kd.md": """
        root_path dataset list_dir num_classes output_dir max_iterations max_epochs batch_size n_gpu deterministic
        base_lr img_size seed cfg opts zip cache-mode resume accumulation-steps use-checkpoint amp-opt-level tag eval
        throughput gpu_id lambda_x dino_weight alpha sigma encoder skip_aggregation lr save_path checkpoint root_dir
        volume_path z_spacing test_save_dir kd model vit_name vit_patches_size n_skip model_name is_savenii layer
        class_id""",
}


def shown(page: str) -> list[str]:
    """Commands in blocks of bash, those of torchrun too, and within sentences where they name a data set."""
    blocks = [OURS.split(line, maxsplit=1)[1] for line in lines(page) if OURS.search(line)]
    within = re.findall(rf"`nnunet-ext ((?:{'|'.join(VERBS)}) [^`]* -d [^`]+)`", page)
    return blocks + [text for text in within if "..." not in text]


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_is_named(verb: str) -> None:
    missing = {name for name in options(parser(verb)) - _long_forms(verb) if not is_named(name, PAGE)}
    assert not missing, f"docs/alice.md does not name {sorted(missing)} of {verb}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_can_be_typed(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    for line in shown(PAGES[page]):
        verb, *words = shlex.split(line, comments=True)
        try:
            parser(verb).parse_args(words)
        except SystemExit:
            pytest.fail(f"{line}\n{capsys.readouterr().err}")


def test_every_verb_has_a_command() -> None:
    assert all(commands(PAGE, [verb]) for verb in VERBS)
    assert any("torchrun" in line and OURS.search(line) for line in lines(PAGE))


def test_trainers_and_planners_exist() -> None:
    trainers = set(re.findall(r" -tr (\w+)", PAGE)) - {"nnUNetTrainer"}
    assert trainers
    assert all(parse_trainer(name) for name in trainers)
    planners = set(re.findall(r" -pl (\w+)", PAGE))
    assert planners
    assert all(parse_planner(name) for name in planners)


@pytest.mark.parametrize("name", sorted({*METHODS, *PRECISIONS, *VIEWS, *KINDS}))
def test_every_choice_is_named(name: str) -> None:
    assert re.search(rf"`[^`]*\b{name}\b[^`]*`", PAGE)


@pytest.mark.parametrize("name", [field.name for field in fields(AliceOptions)])
def test_every_option_of_alice_is_named(name: str) -> None:
    assert f"`{name}`" in PAGE


@pytest.mark.parametrize("name", ORIGINAL)
def test_every_correction_has_its_row(name: str) -> None:
    table = PAGE.partition("| topic | published |")[2].partition("\n\n")[0]
    assert f"`{name}`" in table


@pytest.mark.parametrize("page", ANSWERED)
def test_every_published_option_is_answered(page: str) -> None:
    section = PAGES[page].partition("# Your old option, ours\n")[2].split("\n## ")[0]
    left = [row.split(" | ")[0] for row in section.splitlines() if row.startswith("| ")]
    missing = [name for name in ANSWERED[page].split() if not any(is_named(f"--{name}", cell) for cell in left)]
    assert not missing, f"{page} does not answer {missing}"
    unanswered = [row for row in section.splitlines() if row.startswith("| ") and not row.split(" | ")[1].strip(" |")]
    assert not unanswered


def _long_forms(verb: str) -> set[str]:
    """Long spellings of options that have a short one, which the page uses."""
    return {
        long
        for action in parser(verb)._actions
        for long in action.option_strings
        if long.startswith("--") and any(not short.startswith("--") for short in action.option_strings)
    }
