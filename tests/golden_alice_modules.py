"""Alice's golden fixtures but for its networks: head, CASA, losses, masks, crops, schedules, and one whole step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunet_ext.architectures.alice_head import AliceHead
from nnunet_ext.architectures.casa import CASA
from nnunet_ext.losses import alice as losses
from nnunet_ext.losses.masked_reconstruction import whole_error
from nnunet_ext.pretraining.crops import cut
from nnunet_ext.pretraining.masks import published_hidden
from nnunet_ext.pretraining.schedules import cosine, teacher_temperature
from nnunet_ext.weights import alice as weights_of
from nnunet_ext.weights import transfer

Spec = dict[str, Any]
Tensors = dict[str, Tensor]


def run(spec: Spec, weights: Tensors, inputs: Tensors) -> Tensors:
    """The outputs of a fixture.

    Args:
        spec: the fixture's description.
        weights: by the original's names.
        inputs: by name.
    """
    with torch.enable_grad():
        outputs = RUNNERS[spec["kind"]](spec, weights, inputs)
    return {entry["name"]: outputs[entry["name"]].detach() for entry in spec["outputs"]}


def import_head(weights: Tensors, shared: bool = False) -> AliceHead:
    """Our head with published weights."""
    shape = weights["mlp3.weight"].shape
    head = AliceHead(shape[1], weights["mlp4.weight"].shape[1], shape[0])
    if shared:
        head.share_prototypes()
    transfer.load_weights(head, weights, weights_of.head_key_map())
    return head.eval()


def import_casa(weights: Tensors) -> CASA:
    """Our CASA with published weights, in eval mode."""
    casa = CASA()
    used = {key: value for key, value in weights.items() if key not in weights_of.UNUSED_CASA}
    transfer.load_weights(casa, used, weights_of.casa_key_map())
    return casa.eval()


def _head(spec: Spec, weights: Tensors, inputs: Tensors) -> Tensors:
    shared = spec["constructor"]["shared_head"]
    if shared:
        weights = {key: weights[key.replace("last_layer.", "last_layer2.")] for key in weights}
    projections = import_head(weights, shared)(inputs["cls_token"], inputs["neck"], inputs["decoder_feature"])
    return dict(zip(("cls", "patch_encoder", "patch_decoder"), projections, strict=True))


def _casa(spec: Spec, weights: Tensors, inputs: Tensors) -> Tensors:
    casa, query = import_casa(weights), inputs["student_patch_encoder"].requires_grad_()
    student = casa(query, inputs["student_patch_decoder"])
    (gradient,) = torch.autograd.grad(student.square().mean(), query)
    teacher = casa(query, inputs["teacher_patch_decoder"])
    return {"student_aligned": student, "teacher_aligned": teacher, "grad_query": gradient}


def _loss(spec: Spec, _: Tensors, inputs: Tensors) -> Tensors:
    given = spec["constructor"]
    centres = losses.Centres(0.02 * inputs["center"], 0.02 * inputs["center2"])
    teacher_cls, teacher_patch = 0.02 * inputs["teacher_cls"], 0.02 * inputs["teacher_patch"]
    student = {name: inputs[f"student_{name}"].requires_grad_() for name in ("cls", "patch", "recon")}
    temperature = teacher_temperature(
        given["epoch"],
        given["warmup_teacher_temp_epochs"],
        given["warmup_teacher_temp"],
        given["teacher_temp"],
    )
    cls_target = losses.teacher_distribution(teacher_cls, centres.cls, temperature)
    patch_target = losses.teacher_distribution(teacher_patch, centres.patch, temperature)
    clean = torch.cat([inputs["view0"], inputs["view1"]])
    values = [
        given["lambda1"] * losses.cls_loss(cls_target, student["cls"], given["student_temp"]),
        given["lambda2"] * losses.patch_loss(patch_target, student["patch"], given["student_temp"]),
        given["lambda3"] * whole_error(student["recon"], clean),
    ]
    total = torch.stack(values).sum()
    gradients = torch.autograd.grad(total, list(student.values()))
    centres.update(losses.token_mean(teacher_cls), losses.token_mean(teacher_patch), given["center_momentum"])
    return {
        "losses": torch.stack([*values, total]),
        **{f"grad_student_{name}": gradient for name, gradient in zip(student, gradients, strict=True)},
        "center_after": centres.cls,
        "center2_after": centres.patch,
    }


def _sampling(spec: Spec, _: Tensors, inputs: Tensors) -> Tensors:
    given = spec["constructor"]
    random = np.random.RandomState(given["mask_a"]["numpy_seed"])
    wanted = {"mask_a": given["mask_a"], "mask_b": given["mask_a"], "mask_c": given["mask_c"]}
    masks = {
        name: published_hidden(random, m["input_size"], m["mask_ratio"], m["mask_patch_size"], m["model_patch_size"])
        for name, m in wanted.items()
    }
    crops = {
        name: cut(inputs["image"][0].numpy(), given[name]["centre"], given[name]["roi"])[None]
        for name in ("crop_a", "crop_b")
    }
    curves = {name: _curve(given[name]) for name in ("lr", "wd", "momentum")}
    return {name: torch.from_numpy(np.asarray(v, np.float32)) for name, v in (masks | crops | curves).items()}


def _curve(given: dict[str, Any]) -> list[float]:
    each = given["iterations_per_epoch"]
    total, warm_up = given["epochs"] * each, given.get("warmup_epochs", 0) * each
    return [cosine(step, total, given["base"], given["final"], warm_up) for step in range(total)]


RUNNERS: dict[str, Callable[[Spec, Tensors, Tensors], Tensors]] = {
    "casa": _casa,
    "head": _head,
    "loss": _loss,
    "sampling": _sampling,
}
"""Kind of fixture -> what computes it."""
