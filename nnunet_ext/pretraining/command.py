"""`nnunet-ext pretrain`: self-supervised pre-training of the network that a data set's plans and a trainer make."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from nnunet_ext.errors import UserError
from nnunet_ext.pretraining.arguments import DEFAULTS, add_arguments

__all__ = ["add_arguments", "run"]

#: Options that are settings of the training by the same name; None: not given.
SETTINGS = (
    "batch_size",
    "mask_ratio",
    "mask_style",
    "visible_weight",
    "anatomical_share",
    "optimiser",
    "learning_rate",
    "precision",
)


def run(args: argparse.Namespace) -> int:
    """Pre-train; 0 also where the training was stopped and can go on.

    Raises:
        UserError: arguments that cannot work.
    """
    _check(args)
    from nnunet_ext.cores import limit_torch_threads
    from nnunet_ext.inference.device import chosen_device
    from nnunet_ext.pretraining.distributed import joined

    device = chosen_device(args.device)
    if device.type == "cpu":
        limit_torch_threads()
    with joined(device.type) as processes:
        return _train(args, processes)


def _train(args: argparse.Namespace, processes: Any) -> int:
    from nnunet_ext.pretraining.assembling import assemble, choose_settings, plan
    from nnunet_ext.pretraining.loop import Intervals
    from nnunet_ext.pretraining.run_folder import RunFolder, has_run
    from nnunet_ext.pretraining.starting import (
        checkpoint_to_resume,
        landmark_table,
        pool_of,
        require_same_images,
        require_same_plans,
        require_same_table,
    )

    warn = _warn if processes.is_first else _say_nothing
    earlier = checkpoint_to_resume(args.output or _default_folder(args)) if args.resume else None
    args.plans = args.plans or (earlier["provenance"]["plans"] if earlier else DEFAULTS["plans"])
    args.configuration = args.configuration or (earlier or DEFAULTS)["configuration"]
    folder = args.output or _default_folder(args)
    if earlier is None and has_run(folder):
        raise UserError(f"{folder} holds a training already: go on with --resume, or choose another folder with -o")
    with processes.first_before_others():
        pool = pool_of(args, progress=processes.is_first)
        _tell_left_out(pool, processes)
    if earlier is not None:
        require_same_images(earlier, pool)
    stored = None if earlier is None else earlier["resume"]["settings"]
    trainer = args.trainer or (stored["trainer"] if stored else DEFAULTS["trainer"])
    seed = _given(args.seed, stored, "seed")
    patch = args.patch or (list(stored["patch_size"]) if stored else None)
    planned = plan(pool, trainer, seed, patch)
    with processes.first_before_others():
        table = landmark_table(pool, _method_of(args, stored), args.views, stored, warn)
    if earlier is None:
        _need_table(args, table)
        settings = choose_settings(pool, planned, **_wishes(args, processes, table))
    else:
        require_same_plans(earlier, planned.plans)
        require_same_table(earlier, table)
        settings = _continued(args, earlier)
    transductive = args.transductive or bool(earlier and earlier["provenance"].get("transductive"))
    training = assemble(pool, planned, settings, processes, table, warn=warn, transductive=transductive)
    if earlier is not None:
        training.load(earlier)
        del earlier
    writes = RunFolder(folder) if processes.is_first else None
    if writes is not None:
        _begin(writes, training, pool, settings, args)
    workers = args.workers if args.workers is not None else (0 if processes.device.type == "cpu" else 4)
    over = training.run(
        writes,
        stop_after=args.stop_after,
        workers=workers,
        intervals=Intervals(args.log_every, args.save_every, args.keep_every, args.draw_every),
        progress=processes.is_first,
    )
    if writes is not None:
        writes.close()
        _end(writes, training.step, settings.steps, over)
    return 0


def _check(args: argparse.Namespace) -> None:
    for name in ("steps", "batch_size", "stop_after", "processes", "mask_block", "workers"):
        value, least = getattr(args, name), 0 if name == "workers" else 1
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} must be at least {least}; got {value}")
    if args.mask_ratio is not None and not 0 < args.mask_ratio < 1:
        raise UserError(f"--mask-ratio must lie between 0 and 1; got {args.mask_ratio}")
    if args.anatomical_share is not None and not 0 <= args.anatomical_share <= 1:
        raise UserError(f"--anatomical-share must be from 0 to 1; got {args.anatomical_share}")
    if args.exclude_fold == "all":
        raise UserError("--exclude-fold all: fold all validates on no case of its own; name a fold, or leave it out")
    if args.only_unlabelled and not args.unlabelled:
        raise UserError("--only-unlabelled needs --unlabelled FOLDER")
    if args.method != "alice" and not args.resume:
        for name in ("views", "anatomical_share", "fidelity"):
            if getattr(args, name) is not None:
                raise UserError(f"--{name.replace('_', '-')} is for --method alice")
        if args.shuffled or args.alice:
            raise UserError("--shuffled and --alice are for --method alice")


def _need_table(args: argparse.Namespace, table: Any) -> None:
    """Refuse options for pairs of two patients where there are none."""
    for name in ("anatomical_share", "shuffled"):
        if table is None and getattr(args, name):
            raise UserError(
                f"--{name.replace('_', '-')} is for pairs of two patients, but there is no landmark table to draw them "
                "from: make one with nnunet-ext correspond, or leave the option out"
            )


def _given(value: Any, stored: Any, name: str) -> Any:
    if value is not None:
        return value
    return DEFAULTS[name] if stored is None else stored[name]


def _method_of(args: argparse.Namespace, stored: Any) -> str:
    return str(_given(args.method, stored, "method"))


def _wishes(args: argparse.Namespace, processes: Any, table: Any) -> dict[str, Any]:
    """Arguments of `choose_settings`."""
    wishes = {name: getattr(args, name) for name in SETTINGS if getattr(args, name) is not None}
    wishes.setdefault("precision", "fp16" if processes.device.type == "cuda" else "off")
    if args.mask_block is not None:
        wishes["block"] = args.mask_block
    alice = _alice(args)
    return {
        **wishes,
        "method": args.method or DEFAULTS["method"],
        "steps": args.steps or DEFAULTS["steps"],
        "seed": DEFAULTS["seed"] if args.seed is None else args.seed,
        "augment": not args.no_augmentation,
        "landmarks": "overlap" if table is None else table.kind,
        "shuffled": args.shuffled,
        "checkpointing": args.checkpointing,
        "alice": alice,
    }


def _alice(args: argparse.Namespace) -> dict[str, Any]:
    """Options of Alice by name, of --fidelity and --alice."""
    from nnunet_ext.pretraining.starting import parse_option

    options = dict(parse_option(text) for text in args.alice)
    if args.fidelity is not None:
        options["fidelity"] = args.fidelity
    if options.keys() & {"fill", "scale"}:
        raise UserError("--alice fill, scale: they are the mean and the deviation of the images, not to be chosen")
    return options


def _continued(args: argparse.Namespace, earlier: Any) -> Any:
    """The settings of the earlier training; what the command line says otherwise is refused."""
    from nnunet_ext.pretraining.settings import Settings

    settings = Settings.from_dict(earlier["resume"]["settings"])
    given = {name: getattr(args, name) for name in (*SETTINGS, "method", "trainer", "steps", "seed")}
    given |= {"patch_size": tuple(args.patch) if args.patch else None}
    flags = {"checkpointing": args.checkpointing, "shuffled": args.shuffled, "augment": args.no_augmentation or None}
    given |= {name: (name != "augment") if flag else None for name, flag in flags.items()}
    wished = replace(settings, **{name: value for name, value in given.items() if value is not None})
    different = [name for name in settings.as_dict() if getattr(settings, name) != getattr(wished, name)]
    if args.views and settings.method != "alice":
        different.append("views")
    if different or args.alice or args.fidelity or args.mask_block:
        named = different or ["alice, fidelity or mask_block"]
        raise UserError(
            f"--resume goes on with the settings that the training was begun with; given otherwise: {', '.join(named)}."
            " Leave these options out, or begin a new training with -o"
        )
    return settings


def _default_folder(args: argparse.Namespace) -> Path:
    from nnunet_ext.plan import named_folder
    from nnunet_ext.pretraining.preparing import FOLDER, dataset_name

    parts = [getattr(args, name) or DEFAULTS[name] for name in ("method", "trainer", "plans", "configuration")]
    return named_folder("nnUNet_results") / dataset_name(args.dataset) / FOLDER / "__".join(parts)


def _tell_left_out(pool: Any, processes: Any) -> None:
    if processes.is_first:
        for name, reason in pool.left_out:
            print(f"left out  {name}: {reason}", file=sys.stderr)


def _begin(folder: Any, training: Any, pool: Any, settings: Any, args: argparse.Namespace) -> None:
    from nnunet_ext.pretraining.starting import leakage_notice

    folder.forget_after(training.step)
    parameters = sum(p.numel() for p in training.adapter.network.parameters())
    print(
        f"{settings.method}: {type(training.adapter.network).__name__}, {parameters:,} parameters; {len(pool.cases)} "
        f"images; patch {settings.patch_size}, batch {settings.batch_size}, mask blocks {settings.mask_block}; "
        f"{settings.optimiser}, learning rate {settings.learning_rate:g}; steps {training.step} to {settings.steps}"
    )
    print(f"folder  {folder.path}")
    if folder.tensorboard is None:
        print("no TensorBoard here (pip install 'nnunet-ext[tensorboard]'); the numbers are in log.jsonl all the same")
    notice = leakage_notice(pool, training.describe()["provenance"]["transductive"], args.exclude_fold)
    if notice:
        _warn(notice)


def _end(folder: Any, step: int, steps: int, over: bool) -> None:
    from nnunet_ext.pretraining.run_folder import FINAL, LATEST

    if over:
        print(f"written  {folder.path / FINAL}\nnext     nnunet-ext pretrain-export {folder.path / FINAL} -o FILE.pth")
    else:
        print(f"stopped after step {step} of {steps}; --resume goes on\nwritten  {folder.path / LATEST}")


def _say_nothing(_: str) -> None:
    """Other processes have the same to say as the first."""


def _warn(message: str) -> None:
    print(f"WARNING: {message}", file=sys.stderr)
