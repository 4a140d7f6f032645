"""From a challenge's download to nnU-Net's raw data: one file a data set, over one base.

`CONVERTERS` is pure data, so that the command line lists it without importing anything.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from nnunet_ext.errors import UserError

if TYPE_CHECKING:
    from nnunet_ext.dataset_conversion.base import Converter

_HERE = "nnunet_ext.dataset_conversion"
CONVERTERS: dict[str, str] = {
    "synapse": f"{_HERE}.btcv:Synapse",
    "btcv": f"{_HERE}.btcv:BTCV",
    "acdc": f"{_HERE}.acdc:ACDC",
    "brats2020": f"{_HERE}.brats2020:BraTS2020",
    "brats2021": f"{_HERE}.brats2021:BraTS2021",
    "brats2023gli": f"{_HERE}.brats_gli:BraTS2023GLI",
    "brats2024gli": f"{_HERE}.brats_gli:BraTS2024GLI",
    "lits": f"{_HERE}.lits:LiTS",
    "amos_ct": f"{_HERE}.amos:AMOSTask1",
    "amos_ctmr": f"{_HERE}.amos:AMOSTask2",
    "flare22": f"{_HERE}.flare22:FLARE22",
    "msd": f"{_HERE}.msd:MSD",
    "nnunet_v1": f"{_HERE}.nnunet_v1:NnunetV1Task",
    "monai_json": f"{_HERE}.monai_json:MonaiList",
    "generic": f"{_HERE}.generic:Generic",
}
"""The data set's name on the command line -> its converter."""


def converter_class(key: str) -> type[Converter]:
    """The converter of a data set.

    Raises:
        UserError: there is none of this name.
    """
    if key not in CONVERTERS:
        raise UserError(f"no converter called {key!r}; there are: {', '.join(CONVERTERS)}")
    module, name = CONVERTERS[key].split(":")
    found: type[Converter] = getattr(importlib.import_module(module), name)
    return found
