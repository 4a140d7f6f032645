"""Names of Alice's published head and CASA, for `transfer.load_weights` (specification alice 1.6, 1.9)."""

from __future__ import annotations

_HEAD = {
    **{f"mlp.{i}.{what}": f"mlp.{i}.{what}" for i in (0, 2, 4) for what in ("weight", "bias")},
    **{f"mlp3.{what}": f"neck_projection.{what}" for what in ("weight", "bias")},
    **{f"mlp4.{what}": f"context_projection.{what}" for what in ("weight", "bias")},
}
_PROTOTYPES = {"last_layer": "cls_prototypes", "last_layer2": "patch_prototypes"}
_ATTENTION, _FEED_FORWARD = "Cross_Att.MH_attn", "Cross_Att.pos_ffn"
UNUSED_CASA = tuple(
    f"projection_{side}{out}.{what}"
    for side in ("student", "teacher")
    for out in ("", "_out")
    for what in ("weight", "bias")
)
"""Published entries that no forward pass uses, and that our CASA lacks."""


def head_key_map() -> dict[str, str]:
    """Published name, without `head.` -> our name in `AliceHead`; both are there for a teacher's shared matrix too."""
    parts = {"weight_g": "scale", "weight_v": "weight"}
    return _HEAD | {
        f"{layer}.{theirs}": f"{prototypes}.{ours}"
        for layer, prototypes in _PROTOTYPES.items()
        for theirs, ours in parts.items()
    }


def casa_key_map() -> dict[str, str]:
    """Published name -> our name in `CASA`, without `UNUSED_CASA`."""
    linear = {"w_qs": "query", "w_ks": "key", "w_vs": "value", "fc": "output"}
    modules = {
        f"{_ATTENTION}.layer_norm": "attention_norm",
        f"{_FEED_FORWARD}.w_1": "feed_forward.0",
        f"{_FEED_FORWARD}.w_2": "feed_forward.2",
        f"{_FEED_FORWARD}.layer_norm": "feed_forward_norm",
    }
    return {
        **{f"{_ATTENTION}.{theirs}.weight": f"{ours}.weight" for theirs, ours in linear.items()},
        **{f"{theirs}.{what}": f"{ours}.{what}" for theirs, ours in modules.items() for what in ("weight", "bias")},
    }
