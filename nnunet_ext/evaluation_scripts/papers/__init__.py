"""Published tables, one file each, with what must be known to compare with them.

Rows are those that the project's specifications vouch for; every other value is None, with the reason.
"""

from __future__ import annotations

from nnunet_ext.errors import UserError
from nnunet_ext.evaluation_scripts.papers import (
    ossnet_brats,
    ossnet_lits,
    selfreg_acdc,
    selfreg_synapse,
    sshunet_amos,
    sshunet_btcv,
    unetrpp_acdc,
    unetrpp_brats,
    unetrpp_lung,
    unetrpp_synapse,
)
from nnunet_ext.evaluation_scripts.papers.paper import Column, Paper, Row

PAPERS: dict[str, Paper] = {
    module.PAPER.key: module.PAPER
    for module in (
        unetrpp_synapse,
        unetrpp_acdc,
        unetrpp_brats,
        unetrpp_lung,
        sshunet_btcv,
        sshunet_amos,
        ossnet_brats,
        ossnet_lits,
        selfreg_synapse,
        selfreg_acdc,
    )
}

__all__ = ["PAPERS", "Column", "Paper", "Row", "paper_named"]


def paper_named(name: str) -> Paper:
    """A published table by its key; underscores do as well.

    Raises:
        UserError: there is none of this name.
    """
    key = name.lower().replace("_", "-")
    if key not in PAPERS:
        raise UserError(f"no table {name!r}; there are: {', '.join(PAPERS)}")
    return PAPERS[key]
