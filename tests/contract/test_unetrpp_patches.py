"""UNETR++ through all network checks at patches that tiny data do not lead to: published, in between, and 2D."""

from __future__ import annotations

from typing import Any

import pytest
from contract.network_checks import CHECKS, NetworkCase

from nnunet_ext.architectures.unetrpp_plans import fitting_topology, unetrpp_architecture
from nnunet_ext.registry import NETWORKS

PATCHES = ((16, 160, 160), (40, 48, 80), (6, 96, 32), (96, 160))
STYLES: dict[tuple[int, ...], dict[str, Any]] = {
    (16, 160, 160): {"projections": "separate", "n_res_blocks": 2},
    (6, 96, 32): {"projections": "no_bias", "fusion": "sum", "sa_layout": "legacy"},
}


def case(patch: tuple[int, ...]) -> NetworkCase:
    fitted, strides = fitting_topology(patch)
    short = {"n_blocks_per_stage": [1] * 4, "n_blocks_per_stage_decoder": [1] * 3}
    block = unetrpp_architecture(fitted, strides, base_width=4, **short, **STYLES.get(patch, {}))
    scales = [[1.0] * len(patch)]
    for stride in strides[1:-1]:
        scales.append([scale / step for scale, step in zip(scales[-1], stride, strict=True)])
    return NetworkCase(NETWORKS["UNETRPP"], block, fitted, scales)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("patch", PATCHES, ids=str)
def test_network(patch: tuple[int, ...], check: object) -> None:
    assert callable(check)
    check(case(patch))
