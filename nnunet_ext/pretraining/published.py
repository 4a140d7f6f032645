"""Published checkpoints of Alice and nnFormer as a source of an export (specification alice 1.9 and 2)."""

from __future__ import annotations

from pathlib import Path

import torch

from nnunet_ext.architectures.nnformer_plans import NETWORK_CLASS
from nnunet_ext.errors import UserError
from nnunet_ext.pretraining.exporting import Source, Target
from nnunet_ext.weights.nnformer import FIRST, initialise
from nnunet_ext.weights.nnformer_layouts import STUDENT, Found, read_backbone

METHOD, TRAINER, PLANS, CONFIGURATION = "alice", "NNFormerTrainer", "NNFormerPlans", "3d_fullres"
_EPOCH = "epoch"


def find_published(path: Path, branch: str | None) -> Found | None:
    """The backbone in a file of Alice's or nnFormer's authors, in any of their layouts.

    Args:
        path: of the file.
        branch: of a raw checkpoint; None: the teacher.

    Returns:
        None for a file of something else.

    Raises:
        UserError: it is one, and has not that branch.
    """
    for network in (None, STUDENT):  # a raw checkpoint may lack the teacher, which None takes
        try:
            found = read_backbone(path, network)
        except UserError:
            continue
        if FIRST in found.checkpoint.state:
            return found if branch == network else read_backbone(path, branch)
    return None


def published_source(found: Found, target: Target, seed: int) -> tuple[Source, list[str]]:
    """The published weights, fitted to the network to be fine-tuned, and sentences on what was changed for it.

    Args:
        found: of `find_published`.
        target: an nnFormer.
        seed: of its heads.

    Raises:
        UserError: another network, or another width or depth.
    """
    architecture = target.settings["architecture"]
    if architecture["network_class_name"] != NETWORK_CLASS:
        raise UserError(
            f"{found.checkpoint.file_name} holds an nnFormer, and -tr {target.trainer.__name__} trains "
            f"{architecture['network_class_name'].rpartition('.')[2]}: export for -tr {TRAINER}"
        )
    network = target.network(seed)
    with torch.no_grad():
        _, notes = initialise(network, found.checkpoint.state)
    facts = {
        "method": METHOD,
        "branch": found.network,
        "provenance": {
            "published": found.checkpoint.file_name,
            "layout": found.layout,
            _EPOCH: found.checkpoint.numbers.get(_EPOCH),
            "changes": notes,
        },
    }
    patch = tuple(target.settings["patch_size"])
    return Source(network.state_dict(), architecture, patch, target.channels, facts), notes
