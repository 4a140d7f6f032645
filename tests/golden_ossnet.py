"""OSS-Net's golden fixtures: every part of the published method, computed with this package's code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from published_points import clamped_entropy, point_scores
from torch import Tensor, nn
from torch.nn import functional

from nnunet_ext.architectures.blocks.conditional_norm import ConditionalBatchNorm
from nnunet_ext.architectures.blocks.occupancy_decoder import PointDecoder
from nnunet_ext.architectures.blocks.occupancy_encoder import ResidualBlock, average_pool
from nnunet_ext.architectures.blocks.pade import pade
from nnunet_ext.architectures.blocks.patch_mapping import PatchMapping, large_windows, pooled_pairs, small_windows
from nnunet_ext.architectures.blocks.point_grid import voxel_coordinates
from nnunet_ext.inference.published_decoding import coarse_at_first_stage, expedited_labels, standard_labels
from nnunet_ext.inference.published_volume import normalise, pad
from nnunet_ext.losses.occupancy import OccupancyLoss, OccupancyTarget
from nnunet_ext.losses.point_sampling import RADIUS, Points, border_mask
from nnunet_ext.trainers.lookahead import Lookahead
from nnunet_ext.weights import ossnet
from nnunet_ext.weights.loading import CheckpointError
from nnunet_ext.weights.ossnet_configuration import HEAD, infer_configuration

Spec = dict[str, Any]
Tensors = dict[str, Tensor]
GRADIENT_VALUES = 3000  # so many of a gradient are stored
PROBES = (1e-6, 1e-3, 0.5, 1.0, 3.0, 10.0, 100.0, 1e3, 1e4, 1e6)


def run(spec: Spec, weights: Tensors, inputs: Tensors) -> Tensors:
    """The outputs of a fixture.

    Args:
        spec: the fixture's description.
        weights: by the original's names.
        inputs: by name.
    """
    outputs = RUNNERS[spec["kind"]](spec, weights, inputs)
    return {entry["name"]: outputs[entry["name"]].detach() for entry in spec["outputs"] if entry["name"] in outputs}


def import_ossnet(spec: Spec, weights: Tensors) -> Any:
    """Our network with the fixture's weights, by way of the importer; in eval mode."""
    config = spec["constructor"].get("config", spec["constructor"])
    configuration = infer_configuration(weights)
    channels = config["encoder_channels"]
    expected = {
        "input_channels": channels[0][0],
        "features": tuple(pair[1] for pair in channels),
        "latent_features": config["latent_features"],
        "decoder_width": config["decoder_features"][0][1],
        "decoder_blocks": len(config["decoder_features"]),
        "patches": config["patches"],
        "large_patches": config["large_patches"],
        "skip": config["encoder"] == "ConvolutionalEncoderSkip",
        "head": config["encoder_segmentation_mapping"] and config["encoder"] == "ConvolutionalEncoderSkip",
        "fourier": config["decoder_fourier_input_features"],
    }
    if vars(configuration) != expected:
        raise CheckpointError(f"the importer inferred {configuration}, the original was built with {config}")
    grid = [cells * 2 ** (len(channels) + 1) for cells in config["encoder_output_shape"]]
    network = ossnet.build_network(configuration, None if configuration.data_set else grid)
    ossnet.load_weights(network, ossnet.canonical_state(weights))
    return network.eval()


def logit(logits: Tensor) -> Tensor:
    """The published logit (B, N) of the logits (B, 2, N) of an imported network."""
    return logits[:, 1] - logits[:, 0]


def _loaded(module: nn.Module, weights: Tensors, name: str) -> nn.Module:
    """A module of the network with the original's weights; `name` is its place."""
    whole = nn.Module()
    whole.add_module(name, module)
    ossnet.load_weights(whole, ossnet.canonical_state({f"{name}.{key}": value for key, value in weights.items()}))
    return module.eval()


def _pade(spec: Spec, weights: Tensors, inputs: Tensors) -> Tensors:
    given = {
        f"weight_{name}": torch.tensor(spec["constructor"][name]) for name in spec["constructor"] if name != "order"
    }
    coefficients = [(given | weights)[f"weight_{name}"] for name in ("numerator", "denominator")]
    probes = torch.tensor([0.0, *(sign * size for size in PROBES for sign in (1, -1))])
    with torch.enable_grad():
        leaves = [t.clone().requires_grad_() for t in (4 * inputs["x"], *coefficients, probes)]
        y, at_probes = pade(*leaves[:3]), pade(leaves[3], *leaves[1:3])
        grads = torch.autograd.grad(y, leaves[:3], inputs["grad_output"], retain_graph=True)
        (probe_grad,) = torch.autograd.grad(at_probes.sum(), leaves[3:])
    gradients = dict(zip(("grad_x", "grad_numerator", "grad_denominator"), grads, strict=True))
    return {"y": y, **gradients, "probe_y": at_probes, "probe_grad_x": probe_grad}


def _residual_block(spec: Spec, weights: Tensors, inputs: Tensors) -> Tensors:
    c = spec["constructor"]
    block = _loaded(ResidualBlock(c["in_channels"], c["out_channels"], (2, 2, 2), nn.Conv3d), weights, "block")
    block.train(spec["mode"] == "train")
    y = block(inputs["x"])
    buffers = dict(block.named_buffers())
    running = {
        f"running_{what}_{i}": buffers[f"main_mapping.{i}.running_{what}"] for what in ("mean", "var") for i in (1, 6)
    }
    return {"y": y, **running}


def _conditional_batch_norm(spec: Spec, weights: Tensors, inputs: Tensors) -> Tensors:
    c = spec["constructor"]
    norm: Any = _loaded(ConditionalBatchNorm(c["latent_features"], c["input_features"]), weights, "norm")
    latent = inputs["latent"][:, 0]
    h = inputs["x"].view(len(latent), -1, c["input_features"])
    evaluated, trained = norm(h, latent), norm.train()(h, latent)
    running = torch.cat([norm.normalization.running_mean, norm.normalization.running_var])
    return {"eval": evaluated.view_as(inputs["x"]), "train": trained.view_as(inputs["x"]), "running": running}


def _patch_mapping(spec: Spec, weights: Tensors, inputs: Tensors) -> Tensors:
    mapping = _loaded(PatchMapping(spec["constructor"]["in_channels"], nn.Conv3d), weights, "mapping")
    patches = inputs["patches"]
    return {"y": mapping(patches[None])[0].view(len(patches), 1, *patches.shape[2:])}


def _decoder(spec: Spec, weights: Tensors, inputs: Tensors) -> Tensors:
    c, latents = spec["constructor"], inputs["latents"]
    channels = c["patch_channels"] * (2 if c["large_patches"] else 1) if c["patch_mapping"] else 0
    width, blocks, fourier = c["features"][0][1], len(c["features"]), c["fourier_input_features"]
    empty = PointDecoder(3, channels, c["latent_features"], width, blocks, ossnet.CLASSES, fourier, nn.Conv3d)
    decoder: Any = _loaded(empty, weights, "decoder")
    seen = []
    for block in decoder.blocks:  # the first one is not called, but all end with an activation
        block.final_activation.register_forward_hook(lambda _, __, output: seen.append(output.flatten(0, 1)))
    coords = inputs["coordinates"][:, 0].unflatten(0, (len(latents), -1))
    windows = inputs["patches"].unflatten(0, (len(latents), -1)) if channels else None
    z = logit(decoder(coords, windows, latents).mT).reshape(-1, 1)
    blocks_seen = {f"block{i}": output[:32, :64] for i, output in enumerate(seen)}
    return {"probability": z.sigmoid(), "logit": z[..., None], **blocks_seen}


def _model(spec: Spec, weights: Tensors, inputs: Tensors) -> Tensors:
    network, volume = import_ossnet(spec, weights), inputs["volume"]
    context = network.encode_halved(volume)
    coords = (inputs["coordinates_unit"] * torch.tensor([2 * edge for edge in volume.shape[2:]])).floor()
    z = logit(network.decode_windows(context, coords, inputs.get("patches")))[..., None]
    outputs = {"occupancy": z.sigmoid(), "logit": z.flatten(0, 1)[..., None], "latent": context.latents}
    return outputs | ({"segmentation": context.head.sigmoid()} if context.head is not None else {})


def _train_step(spec: Spec, weights: Tensors, inputs: Tensors) -> Tensors:
    network, volume = import_ossnet(spec, weights).train(), inputs["volume"]
    coords = (inputs["coordinates_unit"] * torch.tensor([2 * edge for edge in volume.shape[2:]])).floor()
    labels = (inputs["labels_unit"] > 0.6).long().mT
    target = OccupancyTarget(
        Points(coords, labels, torch.ones_like(labels, dtype=torch.float32), labels.shape[2]),
        (inputs["segmentation_unit"] > 0.5).long(),
        None,
    )
    loss = OccupancyLoss(None, False, 0.1, "foreground")
    with torch.enable_grad():
        context = network.encode_halved(volume)
        logits, coarse = network.decode_windows(context, coords, inputs.get("patches")), network.coarse(context)
        total = loss((logits, coarse), target)
        total.backward()
        low = loss.coarse_loss(coarse, target) if coarse else torch.zeros(())
        losses = torch.stack([loss.point_loss(logits, target.points), low, total])
    names = ossnet.key_map(network)
    values, buffers = dict(network.named_parameters()), dict(network.named_buffers())
    gradients = {f"grad:{key}": values[name].grad for key, name in names.items() if name in values}
    gradients[f"grad:{HEAD}"] = gradients[f"grad:{HEAD}"][1:]  # the background's logit is not the original's
    norms = [norm.normalization for b in network.decoder.blocks for norm in (b.cnb_1, b.cnb_2)]
    return {
        "occupancy": logit(logits).sigmoid()[..., None],
        "segmentation": coarse[0].sigmoid() if coarse else torch.zeros(0),
        "losses": losses,
        **{name: gradient.flatten()[:GRADIENT_VALUES] for name, gradient in gradients.items()},
        **{f"after:{name}": value for name, value in buffers.items()},
        "after_cbn": torch.cat([torch.cat([norm.running_mean, norm.running_var]) for norm in norms]),
    }


def _patch_extraction(spec: Spec, _: Tensors, inputs: Tensors) -> Tensors:
    x, index = inputs["volume"][None], torch.tensor(spec["constructor"]["coordinates"])[None]
    large = {f"large_{how[:3]}": large_windows(pooled_pairs(x, how), index)[0] for how in ("average", "max")}
    return {"small": small_windows(x, index)[0], "large_avg": large["large_ave"], "large_max": large["large_max"]}


def _sample_geometry(spec: Spec, _: Tensors, inputs: Tensors) -> Tensors:
    c = spec["constructor"]
    padded = pad(normalise(3 * inputs["image"] + 5), c["padding_shape"])
    label = pad((300 * inputs["label_unit"] - 297).clamp(min=0).ceil()[None], c["padding_shape"])
    occurs = functional.adaptive_max_pool3d((label > 0).float(), c["segmentation_shape"])
    halved = average_pool(padded[None], [c["downscale"]] * 3)[0]
    return {"padded": padded, "label": label[0], "encoder_input": halved, "segmentation": occurs}


def _border_map(spec: Spec, _: Tensors, inputs: Tensors) -> Tensors:
    label = inputs["label"][None, None]
    border = border_mask(label, [RADIUS] * 3)[0, 0]
    # the original's own edges: ours are made without them
    padded = functional.pad(label, [1] * 6, mode="replicate")
    smooth, slope = torch.tensor([1.0, 2, 1]), torch.tensor([-1.0, 0, 1])
    axes = [[slope if i == axis else smooth for i in range(3)] for axis in range(3)]
    kernels = torch.stack([torch.einsum("i,j,k->ijk", *parts) for parts in axes])[:, None]
    edges = (functional.conv3d(padded, kernels)[0] != 0).any(0)
    return {"border": border.float(), "gradient": edges.float()}


def _inference(spec: Spec, weights: Tensors, inputs: Tensors) -> Tensors:
    c, network = spec["constructor"], import_ossnet(spec, weights)
    volume = 6 * functional.avg_pool3d(inputs["noise"], 5, 1, 2, count_include_pad=False)
    resolution, points = volume.shape[1:], voxel_coordinates(volume.shape[1:])
    outputs, fields = {"volume": volume}, {}
    for pooling in ("max", "average"):
        network.large_pooling = pooling
        context = network.encode(volume[None])
        fields[pooling] = logit(network.field(context, volume[None])(points)[None])[0].sigmoid().view(resolution)
    dense, coarse = fields["max"], context.head.sigmoid()
    options: Any = {"threshold": c["threshold"]}

    def probability(index: Tensor) -> Tensor:
        return dense[tuple(index.mT)]

    low = c["threshold_low_res_seg"]
    return outputs | {
        "probability_inference": dense,
        "segmentation_low_res": coarse,
        "low_res_upsampled": coarse_at_first_stage(coarse, resolution),
        "grid_standard": standard_labels(probability, resolution, **options).float(),
        "grid_optimized": expedited_labels(probability, resolution, coarse, coarse_threshold=low, **options).float(),
        "probability_training_pooling": fields["average"][::2, ::2, ::2],
    }


def _optimizer(spec: Spec, _: Tensors, inputs: Tensors) -> Tensors:
    c, start = spec["constructor"], inputs["start"]

    def moved(rates: list[float]) -> Tensor:
        parameters = [nn.Parameter(values.clone()) for values in start]
        groups = [{"params": [p], "lr": rate} for p, rate in zip(parameters, rates, strict=True)]
        inner = torch.optim.RAdam(groups, betas=tuple(c["betas"]), eps=c["eps"])
        optimizer, steps = Lookahead(inner, c["k"], c["alpha"]), []
        for gradients in inputs["gradients"]:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            steps.append(torch.stack([p.detach().clone() for p in parameters]) - start)
        return torch.stack(steps)

    return {"as_published": moved([c["lr"][0]] * len(start)), "as_intended": moved(c["lr"])}


def _loss_metrics(spec: Spec, _: Tensors, inputs: Tensors) -> Tensors:
    prediction, label = inputs["prediction"], (inputs["label_unit"] > 0.7).float()
    dice, iou = point_scores(prediction, label)
    empty, _iou = point_scores(torch.zeros_like(prediction), torch.zeros_like(label))
    extreme = zip(torch.tensor([0.0, 1.0, 0.0, 1.0, 1e-7, 1 - 1e-7]), torch.tensor([0.0, 1, 1, 0, 1, 0]), strict=True)
    return {
        "scores": torch.stack([dice, iou, empty, clamped_entropy(prediction, label)]),
        "bce_extreme": torch.stack([clamped_entropy(p, true) for p, true in extreme]),
    }


RUNNERS: dict[str, Callable[[Spec, Tensors, Tensors], Tensors]] = {
    "pade": _pade,
    "residual_block": _residual_block,
    "conditional_batch_norm": _conditional_batch_norm,
    "patch_mapping": _patch_mapping,
    "decoder": _decoder,
    "model": _model,
    "train_step": _train_step,
    "patch_extraction": _patch_extraction,
    "sample_geometry": _sample_geometry,
    "border_map": _border_map,
    "inference": _inference,
    "optimizer": _optimizer,
    "loss_metrics": _loss_metrics,
}
"""Kind of fixture -> what computes it."""
