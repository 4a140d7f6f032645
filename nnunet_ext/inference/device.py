"""The device that a verb's -device names, checked before anything is loaded."""

from __future__ import annotations

import torch

from nnunet_ext.errors import UserError


def chosen_device(name: str | None) -> torch.device:
    """What to predict on.

    Args:
        name: "cpu", "cuda" or "mps"; None: cuda where there is one, else cpu.

    Raises:
        UserError: there is no such device here.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name is None:
        return torch.device("cuda" if there["cuda"] else "cpu")
    if not there.get(name, False):
        raise UserError(
            f"-device {name}: PyTorch finds no such device here; there is: "
            f"{', '.join(device for device, found in there.items() if found)} (see nnunet-ext doctor)"
        )
    return torch.device(name)
