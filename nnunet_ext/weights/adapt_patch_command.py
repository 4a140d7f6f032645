"""`nnunet-ext adapt-patch`: a UNETR++ checkpoint for another patch size, for nnU-Net's `-pretrained_weights`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from nnunet_ext.architectures.unetrpp_plans import NETWORK_CLASS
from nnunet_ext.errors import UserError

_KEEP = (
    "the plans must keep the checkpoint's network: all arch_kwargs but patch_size, also proj_size, which planners fit "
    "to the patch"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments; imports neither torch nor nnU-Net."""
    parser.add_argument("checkpoint", type=Path, help="a .pth of a trained or imported UNETR++")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the checkpoint to write")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--plans", type=Path, metavar="FILE", help="the plans that you are going to fine-tune with")
    target.add_argument("--patch-size", type=int, nargs="+", metavar="N", help="voxels, in the plans' axis order")
    parser.add_argument("-c", "--configuration", help="of --plans; default: the checkpoint's")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")


def run(args: argparse.Namespace) -> int:
    """Adapt the checkpoint and say what was done; returns the exit code.

    Raises:
        UserError: the checkpoint, the plans or the patch size cannot be used.
    """
    from nnunet_ext.weights.loading import safe_load
    from nnunet_ext.weights.patch_size import adapt_patch_size
    from nnunet_ext.weights.saving import save_atomically

    output: Path = args.output
    if output.exists() and not args.overwrite:
        raise UserError(f"{output} exists; choose another name, or add --overwrite")
    if not args.checkpoint.is_file():
        raise UserError(f"{args.checkpoint}: there is no such file")
    content = safe_load(args.checkpoint)
    plans, configuration = _origin(content, args.checkpoint.name)
    _, arguments = _network(plans, configuration, args.checkpoint.name)
    old = tuple(arguments["patch_size"])
    new = tuple(args.patch_size) if args.plans is None else _wished(args, arguments, configuration)
    if len(new) != len(old):
        raise UserError(f"the network has {len(old)} spatial axes; got the patch size {new}")
    try:
        weights = adapt_patch_size(content["network_weights"], arguments["strides"], old, new)
    except ValueError as error:
        raise UserError(f"{args.checkpoint.name}: {error}") from error
    plans["configurations"][configuration]["patch_size"] = list(new)
    arguments["patch_size"] = list(new)
    kept = {key: content[key] for key in ("init_args", "trainer_name") if key in content}
    save_atomically({"network_weights": weights, **kept}, output)
    print(f"adapted  patches of {_times(old)} voxels to {_times(new)}")
    if arguments.get("sa_layout") == "legacy":
        print("note     the published spatial layout (legacy) depends on the patch: expect a longer fine-tuning")
    print(f"written  {output}")
    print(f"use      nnUNetv2_train DATASET {configuration} FOLD -tr UNETRPPTrainer -p PLANS \\")
    print(f"           -pretrained_weights {output}")
    print(f"         with plans of patch_size {list(new)} (in both places) and strides {arguments['strides']}")
    print(f"note     {_KEEP}")
    return 0


def _origin(content: Any, name: str) -> tuple[dict[str, Any], str]:
    """The plans in a checkpoint and the configuration that was trained."""
    if not isinstance(content, dict) or "network_weights" not in content or "init_args" not in content:
        raise UserError(
            f"{name}: not a checkpoint of nnU-Net (it has no network_weights and init_args); published weights first "
            "need `nnunet-ext import-weights unetrpp`, whose folder has fold_0/checkpoint_final.pth"
        )
    weights, origin = content["network_weights"], content["init_args"]
    if not isinstance(origin, dict) or not {"plans", "configuration"} <= origin.keys():
        raise UserError(f"{name}: its init_args lack plans and configuration, which nnU-Net writes; it cannot be used")
    if not isinstance(weights, dict) or not all(hasattr(value, "shape") for value in weights.values()):
        raise UserError(f"{name}: its network_weights are not named tensors, as nnU-Net writes them; it cannot be used")
    return origin["plans"], origin["configuration"]


def _network(plans: Any, configuration: str, name: str) -> tuple[str, dict[str, Any]]:
    """The configuration that holds another's UNETR++ (itself, or one that it inherits from), and the arguments there.

    Raises:
        UserError: another network, or incomplete plans.
    """
    try:
        owner, arguments = _find_network(plans, configuration, name)
        sizes = [arguments["patch_size"], *arguments["strides"]]
        if not all(type(edge) is int and edge > 0 for size in sizes for edge in size):
            raise UserError(f"{name}: patch_size and strides must be lists of positive whole numbers; got {sizes}")
    except (AttributeError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"[:160]
        raise UserError(f"{name}: these are not complete plans of nnU-Net ({reason})") from error
    except RecursionError as error:
        raise UserError(f"{name}: configuration {configuration!r} inherits from itself") from error
    return owner, arguments


def _find_network(plans: dict[str, Any], configuration: str, name: str) -> tuple[str, dict[str, Any]]:
    settings = plans["configurations"].get(configuration)
    if settings is None:
        known = ", ".join(plans["configurations"])
        raise UserError(f"{name} has no configuration {configuration!r}; it has {known}")
    if "architecture" not in settings and "inherits_from" in settings:
        return _find_network(plans, settings["inherits_from"], name)
    architecture = settings["architecture"]
    if architecture["network_class_name"] != NETWORK_CLASS:
        raise UserError(
            f"{name}: {configuration} has the network {architecture['network_class_name']}; only UNETR++ has weights "
            "that depend on the patch size, others can be given to -pretrained_weights as they are"
        )
    return configuration, architecture["arch_kwargs"]


def _wished(args: argparse.Namespace, arguments: dict[str, Any], configuration: str) -> tuple[int, ...]:
    """The patch size of --plans, whose network must otherwise be the checkpoint's."""
    from nnunet_ext.weights.patch_size import changed_arguments

    try:
        plans = json.loads(args.plans.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {args.plans} as plans: {error!r}") from error
    owner, wished = _network(plans, args.configuration or configuration, args.plans.name)
    changed = changed_arguments(arguments, wished)
    if changed:
        edits = "; ".join(f"{_entry(name, arguments)} instead of {_value(name, wished)}" for name in changed)
        raise UserError(
            f"the networks of {args.checkpoint.name} and {args.plans.name} differ in more than the patch size, and "
            f"{_KEEP}; in {args.plans.name}, configurations.{owner}.architecture.arch_kwargs, set {edits}"
        )
    return tuple(wished["patch_size"])


def _entry(name: str, arguments: dict[str, Any]) -> str:
    """What to write into the plans."""
    return f'"{name}": {_value(name, arguments)}' if name in arguments else f'no "{name}"'


def _value(name: str, arguments: dict[str, Any]) -> str:
    return json.dumps(arguments[name], default=str) if name in arguments else "nothing"


def _times(values: tuple[int, ...]) -> str:
    return " x ".join(map(str, values))
