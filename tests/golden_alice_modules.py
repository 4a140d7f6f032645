"""Alice's golden fixtures but for its networks: head, CASA, losses, masks, crops, schedules, and one whole step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import published_alice as weights_of
import torch
from torch import Tensor

from nnunet_ext.architectures.alice_head import AliceHead
from nnunet_ext.architectures.blocks.patch_convolutions import channels_first
from nnunet_ext.architectures.casa import CASA
from nnunet_ext.losses import alice as losses
from nnunet_ext.losses.masked_reconstruction import whole_error
from nnunet_ext.losses.points import KDPoint
from nnunet_ext.pretraining.adapters import Adapter
from nnunet_ext.pretraining.alice import Alice, make_teacher
from nnunet_ext.pretraining.alice_network import AliceNetwork
from nnunet_ext.pretraining.alice_options import alice_options
from nnunet_ext.pretraining.crops import cut
from nnunet_ext.pretraining.schedules import cosine, teacher_temperature
from nnunet_ext.pretraining.views import Views
from nnunet_ext.weights import nnformer, transfer

Spec = dict[str, Any]
Tensors = dict[str, Tensor]
PARTS = ("cls", "patch", "reconstruction")


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


def _pretrain_step(spec: Spec, weights: Tensors, inputs: Tensors) -> Tensors:
    given = spec["constructor"]
    alice = _alice(spec, weights, inputs["absolute_pos_embed"])
    casa_outputs, cls_outputs = [], []
    alice.network.casa.register_forward_hook(lambda _, __, output: casa_outputs.append(output))
    for network in (alice.network, alice.teacher):
        network.head.register_forward_hook(lambda _, __, output: cls_outputs.append(output.cls))
    clean = torch.cat([inputs["view0"], inputs["view1"]])
    hidden = (inputs["mask_scores"] < 0.75).expand(2, 1, 2, 2, 2)
    views = Views(torch.full_like(clean, torch.nan), clean, hidden, torch.full((1, 3), torch.nan))
    values = alice.losses(alice.student, views, given["epoch"])
    values["loss"].backward()
    alice.after_step(given["epoch"])
    named = dict(alice.network.named_parameters())
    names = _names(alice.network)
    gradients = {key: named[name].grad for key, name in names.items() if name in named}
    norms = [torch.zeros(()) if (g := gradients.get(key)) is None else g.norm() for key in given["grad_norm_names"]]
    wanted = {
        "grad_patch_embed": "backbone.model_down.patch_embed.proj1.conv1.weight",
        "grad_bias_table": "backbone.model_down.layers.0.blocks.1.attn.relative_position_bias_table",
        "grad_casa_wq": "casa.Cross_Att.MH_attn.w_qs.weight",
    }
    weighted = [w * values[name] for w, name in zip(alice.options.weights, PARTS, strict=True)]
    return {
        "losses": torch.stack([*weighted, values["loss"]]),
        **dict(zip(("student_cls", "teacher_cls"), cls_outputs, strict=True)),
        **dict(zip(("student_aligned", "teacher_aligned"), casa_outputs, strict=True)),
        "grad_norms": torch.stack(norms),
        **{name: gradients[key] for name, key in wanted.items()},
        "center_after": alice.centres.cls,
        "center2_after": alice.centres.patch,
    }


def _alice(spec: Spec, weights: Tensors, positions: Tensor) -> Alice:
    """The method as published, with the fixture's weights; in eval mode, and one step an epoch."""
    given = spec["constructor"]
    fixed = {key: torch.ones_like(v) if key.endswith("weight_g") else v for key, v in weights.items()}
    backbone, head, casa = (_part(fixed, part) for part in ("backbone", "head", "casa"))
    architecture = nnformer.infer_configuration(backbone).architecture(tuple(given["img_size"]))
    network: Any = transfer.build_network(architecture, 1, 1)
    nnformer.load_weights(network, backbone)
    network.encoder.absolute_pos_embed.copy_(0.02 * positions.view_as(network.encoder.absolute_pos_embed))
    neck = KDPoint(f"encoder.norms.{len(network.encoder.norms) - 1}", channels_first)
    context = KDPoint("decoder.stages.0.blocks.1", channels_first)
    adapter = Adapter(network, neck, context, (head["mlp3.weight"].shape[1], head["mlp4.weight"].shape[1]))
    alice = Alice(adapter, given["epochs"], alice_options("original"))
    alice.network.head = import_head(head)
    alice.network.casa = import_casa(casa)
    alice.teacher = make_teacher(alice.network.eval(), alice.options)
    return alice


def _part(weights: Tensors, part: str) -> Tensors:
    return {key.removeprefix(f"{part}."): value for key, value in weights.items() if key.startswith(f"{part}.")}


def _names(network: AliceNetwork) -> dict[str, str]:
    """Published name with its part -> our name in the trained module."""
    parts = {
        ("backbone", "adapter.network"): nnformer.key_map(network.adapter.network),
        ("head", "head"): weights_of.head_key_map(),
        ("casa", "casa"): weights_of.casa_key_map(),
    }
    return {
        f"{theirs}.{key}": f"{ours}.{name}" for (theirs, ours), names in parts.items() for key, name in names.items()
    }


def _curve(given: dict[str, Any]) -> list[float]:
    each = given["iterations_per_epoch"]
    total, warm_up = given["epochs"] * each, given.get("warmup_epochs", 0) * each
    return [cosine(step, total, given["base"], given["final"], warm_up) for step in range(total)]


RUNNERS: dict[str, Callable[[Spec, Tensors, Tensors], Tensors]] = {
    "casa": _casa,
    "head": _head,
    "loss": _loss,
    "sampling": _sampling,
    "pretrain_step": _pretrain_step,
}
"""Kind of fixture -> what computes it."""


def published_hidden(
    random: np.random.RandomState, shape: Sequence[int], ratio: float, block: int = 16, stride: int = 2
) -> np.ndarray:
    """A mask of the published generator: tubes along the last axis, stored at the patch embedding's stride.

    Args:
        random: numpy's legacy generator; its stream is the published one.
        shape: (3,) voxels of the patch.
        ratio: part of the columns that is hidden, rounded up.
        block: edge of a block in voxels.
        stride: voxels a stored element stands for.

    Returns:
        (*shape / stride,) bool, True = hidden.
    """
    columns = [edge // block for edge in shape[:2]]
    hidden = np.zeros(math.prod(columns), bool)
    hidden[random.permutation(len(hidden))[: math.ceil(len(hidden) * ratio)]] = True
    blocks = np.repeat(hidden.reshape(columns)[..., None], shape[2] // block, 2)
    return np.kron(blocks, np.ones([block // stride] * 3, bool))
