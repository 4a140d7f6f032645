"""The self-regularisation's golden fixtures, computed with this package's losses."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from nnunet_ext.losses.self_regularisation import Channels, Features, Options, SelfRegularisation, Terms

Indices = dict[str, tuple[Tensor, Tensor]]


def run(spec: dict[str, Any], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The outputs of a fixture of kind kd_inter, kd_intra, kd_total or kd_general."""
    indices = {
        entry["student"]: (torch.tensor(entry["idx_s"]), torch.tensor(entry["idx_t"]))
        for entry in spec.get("channels", [])
    }
    with torch.enable_grad():
        leaves = {name: value.detach().clone().requires_grad_() for name, value in inputs.items()}
        if spec["kind"] == "kd_intra":
            value = one_map(leaves["feature"], leaves["feature"], None, "mean").ifd
            outputs = {"losses": torch.stack([value, 2 * value])} | gradients(value, leaves, "grad.")
        elif spec["kind"] == "kd_inter":
            value = one_map(leaves["student"], leaves["teacher"], indices["student"], "random").scr
            outputs = {"losses": torch.stack([value, 2 * value])} | gradients(value, leaves, "grad.")
        else:
            outputs = _whole(spec, leaves, indices)
    wanted = [entry["name"] for entry in spec["outputs"]]
    return {name: outputs[name].detach().float() for name in wanted}


def one_map(student: Tensor, teacher: Tensor, drawn: tuple[Tensor, Tensor] | None, matching: str) -> Terms:
    """Both terms of a single map."""
    channels = None if drawn is None else {("decoder", 0, "last"): drawn}
    return SelfRegularisation(Options(matching=matching))(Features([], [[[student]]], [teacher]), channels=channels)


def gradients(value: Tensor, leaves: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The gradient of every input that has one; the teacher has none."""
    found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    return {prefix + name: grad for name, grad in zip(leaves, found, strict=True) if grad is not None}


def features(leaves: dict[str, Tensor]) -> Features:
    """The maps by their names: enc0 or enc0.0 and enc0.1, dec0, ..., final."""

    def stages(part: str) -> list[Any]:
        numbers = sorted({int(match[1]) for name in leaves if (match := re.match(rf"{part}(\d+)", name))})
        return [
            [[leaves[name]] for name in sorted(leaves) if re.fullmatch(rf"{part}{i}(\.\d)?", name)] for i in numbers
        ]

    return Features(stages("enc"), stages("dec"), [leaves["final"]])


def chosen(indices: Indices) -> Channels:
    """The fixture's channel indices by part, stage and set."""
    found = {}
    for name, drawn in indices.items():
        match = re.fullmatch(r"(enc|dec)(\d+)(?:\.(\d))?", name)
        assert match is not None
        part = {"enc": "encoder", "dec": "decoder"}[match[1]]
        found[part, int(match[2]), "first" if match[3] == "0" else "last"] = drawn
    return found


def _whole(spec: dict[str, Any], leaves: dict[str, Tensor], indices: Indices) -> dict[str, Tensor]:
    constructor = spec["constructor"]
    both = constructor.get("lambda_x")
    scr_weight = constructor["lambda_scr"] if both is None else both
    ifd_weight = constructor["lambda_ifd"] if both is None else both
    general = spec["kind"] == "kd_general"
    totals: list[Tensor] = []
    outputs: dict[str, Tensor] = {}
    for matching in ("random", "mean") if general else ("random",):
        loss = SelfRegularisation(Options(scr_weight, ifd_weight, matching))
        terms = loss(features(leaves), channels=chosen(indices) if matching == "random" else None)
        totals.append(loss.total(terms))
        outputs |= gradients(totals[-1], leaves, f"grad.{matching}." if general else "grad.")
    students = {name: value for name, value in leaves.items() if name != "final"}
    values = [one_map(f, leaves["final"], None, "mean").ifd for f in students.values()]
    values += [one_map(leaves[name], leaves["final"], drawn, "random").scr for name, drawn in indices.items()]
    if general:
        values += [one_map(leaves[name], leaves["final"], None, "mean").scr for name in indices]
    return {"losses": torch.stack([*totals, *values])} | outputs
