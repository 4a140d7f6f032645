"""The self-test of an exported file: nnU-Net's own loader must make the very network out of it that was exported."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from torch import Tensor, nn

from nnunet_ext.errors import UserError
from nnunet_ext.pretraining.copying import HEADS
from nnunet_ext.pretraining.exporting import Target

_OTHER_SEED = 2**31 + 1  # of the network that the file is loaded into; no seed of an export
_CELLS = 2  # of the deepest map along each axis, in the input of nnU-Net's own networks


class _EnoughError(Exception):
    pass


def check(path: Path, target: Target, weights: Mapping[str, Tensor]) -> None:
    """Load the file as fine-tuning will, and compare weights and encoder outputs.

    Args:
        path: the written file.
        target: the network that it is for.
        weights: what must come out of the loader, by all names.

    Raises:
        UserError: the file cannot be loaded, or makes another network.
    """
    try:
        torch.load(path, map_location="cpu", weights_only=True)
        loaded = target.network(_OTHER_SEED)
        with contextlib.redirect_stdout(io.StringIO()):
            load_pretrained_weights(loaded, str(path))
    except Exception as error:
        raise UserError(f"{path}: nnU-Net's loader refuses the exported file: {error}") from error
    expected = target.network(_OTHER_SEED)
    expected.load_state_dict(dict(weights))
    state, wished = loaded.state_dict(), expected.state_dict()
    different = [key for key in wished if HEADS not in key and not torch.equal(state[key], wished[key])]
    if different or not _equal(encoder_outputs(loaded, target), encoder_outputs(expected, target)):
        raise UserError(
            f"{path}: nnU-Net's loader makes another network of the exported file ({', '.join(different[:3])}): please "
            "report this"
        )


@torch.no_grad()
def encoder_outputs(network: nn.Module, target: Target) -> list[Tensor]:
    """What ``network.encoder`` gives for one image of noise; nothing, where no part is called so."""
    encoder = getattr(network, "encoder", None)
    if not isinstance(encoder, nn.Module):
        return []
    taken: list[Tensor] = []

    def take(_: nn.Module, __: Any, output: Any) -> None:
        taken.extend(_tensors(output))
        raise _EnoughError  # the decoder would only take time

    handle = encoder.register_forward_hook(take)
    image = torch.randn(1, target.channels, *input_size(target), generator=torch.Generator().manual_seed(0))
    try:
        with contextlib.suppress(_EnoughError):
            network.eval()(image)
    finally:
        handle.remove()
    return taken


def input_size(target: Target) -> tuple[int, ...]:
    """The plans' patch; for nnU-Net's own networks a smaller one, which says as much in less time."""
    settings = target.settings
    architecture = settings["architecture"]
    patch = tuple(int(edge) for edge in settings["patch_size"])
    if not architecture["network_class_name"].startswith("dynamic_network_architectures."):
        return patch
    total = [math.prod(axis) for axis in zip(*architecture["arch_kwargs"]["strides"], strict=True)]
    return tuple(min(edge, _CELLS * step) for edge, step in zip(patch, total, strict=True))


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, list | tuple):
        for piece in output:
            yield from _tensors(piece)


def _equal(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
