"""Islands of full precision within mixed precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor in float32 where it is in half precision; wider types stay."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def in_autocast_dtype(x: Tensor) -> Tensor:
    """The tensor in the type that autocast computes products in, where it is on."""
    if x.is_meta or not torch.is_autocast_enabled(x.device.type):
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))


def without_autocast(like: Tensor) -> AbstractContextManager[Any]:
    """A context on `like`'s device in which autocast changes nothing (the meta device has none)."""
    return nullcontext() if like.is_meta else torch.autocast(like.device.type, enabled=False)
