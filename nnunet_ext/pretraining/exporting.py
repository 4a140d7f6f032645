"""A file for nnU-Net's ``-pretrained_weights`` from a checkpoint of pre-training (specification alice 4.5)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn

from nnunet_ext import __version__
from nnunet_ext.architectures.nnformer_plans import NETWORK_CLASS as NNFORMER
from nnunet_ext.architectures.unetrpp_plans import NETWORK_CLASS as UNETRPP
from nnunet_ext.errors import UserError
from nnunet_ext.pretraining import planned
from nnunet_ext.pretraining.adaptation_plan import adaptation_plan
from nnunet_ext.pretraining.citations import CITATIONS
from nnunet_ext.pretraining.copying import Copied, copy_weights
from nnunet_ext.weights import nnformer_patch
from nnunet_ext.weights.patch_size import adapt_patch_size

ENOUGH = 0.95  # of the encoder's parameters
EPOCH = 250  # steps of an epoch of nnU-Net

State = dict[str, Tensor]


@dataclass(frozen=True)
class Target:
    """The network that is going to be fine-tuned.

    Attributes:
        trainer: its class.
        plans: as the trainer adapts them.
        configuration: its name there.
        dataset_json: of the data set; tells channels and classes.
    """

    trainer: type[Any]
    plans: dict[str, Any]
    configuration: str
    dataset_json: dict[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration with all that it inherits."""
        settings: dict[str, Any] = PlansManager(self.plans).get_configuration(self.configuration).configuration
        return settings

    @property
    def channels(self) -> int:
        """Of the network's input."""
        manager = PlansManager(self.plans)
        return int(
            determine_num_input_channels(manager, manager.get_configuration(self.configuration), self.dataset_json)
        )

    def network(self, seed: int) -> nn.Module:
        """A fresh network on the CPU, whose weights depend on the seed alone.

        Raises:
            UserError: it cannot be built.
        """
        heads = PlansManager(self.plans).get_label_manager(self.dataset_json).num_segmentation_heads
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return planned.build_network(self.trainer, self.plans, self.configuration, self.channels, heads)


def make_target(trainer: str, plans: Mapping[str, Any], configuration: str, dataset_json: Mapping[str, Any]) -> Target:
    """The network of a trainer for plans.

    Raises:
        UserError: no such trainer or configuration, or a cascade's second stage, whose input has more than images.
    """
    if configuration not in plans["configurations"]:
        raise UserError(
            f"-c {configuration}: the plans {plans['plans_name']} have {', '.join(plans['configurations'])}"
        )
    found = planned.find_trainer(trainer)
    adapted = planned.adapted_plans(found, plans, configuration, dataset_json)
    if PlansManager(adapted).get_configuration(configuration).previous_stage_name is not None:
        raise UserError(
            f"-c {configuration} is the second stage of a cascade, whose input has channels of predictions: export "
            "for 3d_fullres or 3d_lowres"
        )
    return Target(found, adapted, configuration, dict(dataset_json))


@dataclass(frozen=True)
class Source:
    """Pre-trained weights and what is known of them.

    Attributes:
        state: of the network, complete, under our names.
        architecture: its block of plans.
        patch_size: that it was pre-trained with, voxels.
        channels: of its images.
        facts: plain values for the file: method, step, total_steps, branch, cases, provenance, ...
        plans, configuration: of the pre-training; None for weights from elsewhere.
    """

    state: Mapping[str, Tensor]
    architecture: Mapping[str, Any]
    patch_size: tuple[int, ...]
    channels: int
    facts: Mapping[str, Any]
    plans: Mapping[str, Any] | None = None
    configuration: str | None = None


def default_part(source: Source) -> str:
    """What is worth taking over: "encoder" after masked autoencoding, else "all".

    The last decoder stages of an autoencoder have learned intensities, and a segmentation has to unlearn them: measured
    in benchmarks/few_label.py. Networks without a part called encoder are taken over whole.
    """
    apart = any(key.startswith("encoder.") for key in source.state)
    return "encoder" if apart and source.facts.get("method") == "mae" else "all"


def source_of(content: Mapping[str, Any], branch: str | None = None) -> Source:
    """The weights of a checkpoint of pre-training.

    Args:
        content: of `checkpoint_format.read`.
        branch: "student" or "teacher"; None: the teacher, whose weights are smoother, where there is one.

    Raises:
        UserError: the checkpoint has no such branch.
    """
    networks = content["networks"]
    chosen = branch or ("teacher" if "teacher" in networks else "student")
    if chosen not in networks:
        raise UserError(
            f"--branch {chosen}: pre-training by {content['method']} has no {chosen}; the checkpoint has "
            f"{', '.join(networks)}"
        )
    settings = PlansManager(content["plans"]).get_configuration(content["configuration"]).configuration
    facts = {key: content[key] for key in ("method", "step", "total_steps", "trainer", "cases", "provenance")}
    return Source(
        networks[chosen],
        settings["architecture"],
        tuple(content["patch_size"]),
        content["input_channels"],
        {**facts, "branch": chosen},
        content["plans"],
        content["configuration"],
    )


def export(
    source: Source, target: Target, *, what: str = "all", partial: bool = False, seed: int = 0
) -> tuple[dict[str, Any], Copied]:
    """The file's content, and what became of every weight.

    Args:
        source: pre-trained.
        target: to be fine-tuned.
        what: "all", or "encoder": leave the decoder random.
        partial: allow that less than `ENOUGH` of the encoder fits.
        seed: of what stays random.

    Raises:
        UserError: the networks have nothing or too little in common.
    """
    network = target.network(seed)
    if what == "encoder" and not isinstance(getattr(network, "encoder", None), nn.Module):
        raise UserError(f"--what encoder: {type(network).__name__} has no part called encoder; export all")
    state, resampled = _for_patch(source, target)
    copied = copy_weights(
        network,
        state,
        channels=(source.channels, target.channels),
        encoder_only=what == "encoder",
        resampled=resampled,
    )
    _require_enough(copied, source, target, partial)
    return _content(network.state_dict(), source, target, copied, what, seed), copied


def _for_patch(source: Source, target: Target) -> tuple[Mapping[str, Tensor], set[str]]:
    """The state for the target's patch size, and the names of what was changed for it."""
    name, patch = source.architecture["network_class_name"], tuple(target.settings["patch_size"])
    resample = RESAMPLERS.get(name)
    same = name == target.settings["architecture"]["network_class_name"]
    if resample is None or not same or patch == tuple(source.patch_size):
        return source.state, set()
    try:
        state = resample(dict(source.state), source.architecture, source.patch_size, patch)
    except ValueError as error:
        raise UserError(f"the weights cannot be adapted to the patch {patch}: {error}") from error
    return state, {key for key, value in state.items() if value is not source.state.get(key)}


def _unetrpp(state: State, architecture: Mapping[str, Any], old: Sequence[int], new: Sequence[int]) -> State:
    return adapt_patch_size(state, architecture["arch_kwargs"]["strides"], old, new)


RESAMPLERS: dict[str, Callable[[State, Mapping[str, Any], Sequence[int], Sequence[int]], State]] = {
    UNETRPP: _unetrpp,
    NNFORMER: nnformer_patch.adapt_patch_size,
}
"""Network class to a function of state, architecture block, old and new patch size, for weights that depend on it."""


def _require_enough(copied: Copied, source: Source, target: Target, partial: bool) -> None:
    has_encoder = any(weight.part == "encoder" for weight in copied.weights)
    share = copied.share("encoder" if has_encoder else "rest")
    if share >= ENOUGH or (partial and share > 0):
        return
    reasons = [f"{w.name}: {w.reason}" for w in copied.weights if w.part != "heads" and w.fate == "left random"]
    names = [a["network_class_name"].rpartition(".")[2] for a in (source.architecture, target.settings["architecture"])]
    where = "encoder" if has_encoder else "network"
    raise UserError(
        f"only {100 * share:.1f} % of the {where}'s parameters fit ({names[0]} pre-trained, {names[1]} to be "
        f"fine-tuned): {'; '.join(reasons[:3])}. Pre-train with the plans that you fine-tune with (bring them by "
        "nnUNetv2_move_plans_between_datasets)" + ("" if share == 0 else ", or export what fits with --partial")
    )


def _content(
    state: Mapping[str, Tensor], source: Source, target: Target, copied: Copied, what: str, seed: int
) -> dict[str, Any]:
    architecture = target.settings["architecture"]
    facts = source.facts
    content: dict[str, Any] = {
        "network_weights": {key: value.detach() for key, value in state.items()},
        "citations": CITATIONS.get(str(facts["method"]), []),
        "trainer_name": target.trainer.__name__,
        "init_args": {
            "plans": target.plans,
            "configuration": target.configuration,
            "fold": "all",
            "dataset_json": target.dataset_json,
        },
        "current_epoch": int(facts.get("step", 0)) // EPOCH,
        "nnunet_ext": {
            **facts,
            "version": __version__,
            "what": what,
            "seed": seed,
            "transferred": copied.names("transferred"),
            "adapted": copied.names("adapted"),
            "left_random": copied.names("left random"),
        },
    }
    if source.plans is not None and source.configuration is not None:
        plan = adaptation_plan(architecture, target.channels, source.plans, source.configuration, source.patch_size)
        if plan is not None:
            content["nnssl_adaptation_plan"] = plan
    return content
