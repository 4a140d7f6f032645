"""The arguments of `nnunet-ext pretrain`; neither torch nor nnU-Net are imported for them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nnunet_ext.pretraining.settings import METHODS, PRECISIONS, VIEWS

DEFAULTS: dict[str, Any] = {
    "method": "mae",
    "trainer": "nnUNetTrainer",
    "plans": "nnUNetPlans",
    "configuration": "3d_fullres",
    "steps": 250_000,
    "seed": 0,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments; imports neither torch nor nnU-Net."""
    parser.epilog = (
        "Images are the data set's imagesTr, which need no labels, and those of --unlabelled. Checkpoints and logs go "
        "to nnUNet_results/DATASET/nnunet_ext_pretraining/METHOD__TRAINER__PLANS__CONFIGURATION; make of a checkpoint "
        "a file for nnUNetv2_train -pretrained_weights with nnunet-ext pretrain-export. Several GPUs: torchrun "
        "--nproc_per_node=8 -m nnunet_ext pretrain ... SIGTERM, SIGUSR1 and Ctrl-C save and stop; --resume goes on "
        "as if nothing had happened."
    )
    parser.add_argument("-d", dest="dataset", required=True, metavar="DATASET", help="name or number; its plans count")
    parser.add_argument(
        "-c",
        dest="configuration",
        help=f"a 3D one, no second stage of a cascade (default: {DEFAULTS['configuration']})",
    )
    parser.add_argument("-p", dest="plans", help=f"default: {DEFAULTS['plans']}")
    parser.add_argument("-tr", dest="trainer", help=f"whose network is pre-trained (default: {DEFAULTS['trainer']})")
    _images(parser.add_argument_group("images"))
    _method(parser.add_argument_group("method"))
    _optimisation(parser.add_argument_group("training"))
    _run(parser.add_argument_group("run"))


def _images(group: Any) -> None:
    group.add_argument("--unlabelled", type=Path, nargs="+", default=[], metavar="FOLDER", help="more images")
    group.add_argument("--only-unlabelled", action="store_true", help="without the data set's own imagesTr")
    group.add_argument("--exclude-fold", metavar="FOLD", help="leave out the cases that nnU-Net validates this fold on")
    group.add_argument("--exclude", nargs="+", default=[], metavar="CASE", help="leave out these cases of the data set")
    group.add_argument(
        "--transductive",
        action="store_true",
        help="validation images are meant to be among them: no warning, here and when fine-tuning",
    )
    group.add_argument("-np", dest="processes", type=int, help="that prepare images; default: the cores")


def _method(group: Any) -> None:
    group.add_argument("--method", choices=METHODS, help=f"default: {DEFAULTS['method']}")
    group.add_argument("--patch", type=int, nargs=3, metavar="N", help="voxels; default: the plans'")
    group.add_argument("--mask-ratio", type=float, help="share of the blocks that is hidden (default: 0.75)")
    group.add_argument("--mask-block", type=int, metavar="N", help="voxels along the finest axis (default: 16)")
    group.add_argument("--mask-style", choices=("blocks", "tube"), help="tube: columns along the first axis")
    group.add_argument("--visible-weight", type=float, help="of visible voxels in the reconstruction (default: 0)")
    group.add_argument("--no-augmentation", action="store_true", help="neither turned nor changed intensities")
    group.add_argument(
        "--views",
        choices=VIEWS,
        help="alice: where pairs of two patients come from, by nnunet-ext correspond; auto: whatever table is there, "
        "else one is made; overlap: pairs of one volume only (default: auto)",
    )
    group.add_argument("--anatomical-share", type=float, help="alice: pairs of two patients (default: 0.5)")
    group.add_argument("--shuffled", action="store_true", help="alice: wrong pairs on purpose, as a control")
    group.add_argument("--fidelity", choices=("ours", "original"), help="alice: original undoes all corrections")
    group.add_argument(
        "--alice",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="alice: single options, such as prototypes=256 weights=1,1,5",
    )


def _optimisation(group: Any) -> None:
    group.add_argument("--steps", type=int, help=f"default: {DEFAULTS['steps']:,}, nnU-Net's own number")
    group.add_argument("--batch-size", type=int, metavar="N", help="of all processes together; default: by the plans")
    group.add_argument("--optimiser", choices=("sgd", "adamw"), help="default: by method and network")
    group.add_argument("--learning-rate", type=float, help="default: by optimiser and batch size")
    group.add_argument("--amp", dest="precision", choices=PRECISIONS, help="default: fp16 on a GPU, else off")
    group.add_argument("--checkpointing", action="store_true", help="less memory: activations are computed twice")
    group.add_argument("--seed", type=int, help="default: 0")


def _run(group: Any) -> None:
    group.add_argument("-o", "--output", type=Path, metavar="DIR", help="instead of the folder in nnUNet_results")
    group.add_argument("--resume", action="store_true", help="go on with the training in the folder")
    group.add_argument("--stop-after", type=int, metavar="N", help="save and stop after so many steps of this call")
    group.add_argument("-device", choices=("cpu", "cuda", "mps"), help="default: cuda where there is one, else cpu")
    group.add_argument("--workers", type=int, help="processes that make samples; default: 4, on a CPU 0")
    group.add_argument("--log-every", type=int, default=50, metavar="N", help="steps (default: 50)")
    group.add_argument("--save-every", type=int, default=1000, metavar="N", help="steps (default: 1000)")
    group.add_argument("--keep-every", type=int, default=0, metavar="N", help="steps; default: keep none but the last")
    group.add_argument("--draw-every", type=int, default=5000, metavar="N", help="steps (default: 5000)")
