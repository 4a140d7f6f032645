"""A step of OSSNetLocal with the trainer's loss; light to import, for tests in several processes."""

from __future__ import annotations

from typing import Any

import support
import torch
from kd_step import gradients
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.helpers import softmax_helper_dim1
from torch import Tensor, nn

from nnunet_ext.architectures.ossnet_local import OSSNetLocal
from nnunet_ext.losses.occupancy import OccupancyLoss, OccupancyTarget
from nnunet_ext.losses.point_sampling import Points, Sampling, draw_points

SIZE = (8, 8, 16)
SAMPLING = Sampling(40, 0.25, 0.25, 0.5, (3, 3, 3), importance=False)


def seeded() -> OSSNetLocal:
    """The same network every time, training."""
    torch.manual_seed(0)
    strides = [[1] * 3, [2] * 3, [2] * 3]
    return OSSNetLocal(1, 3, [4, 4, 8], nn.Conv3d, [[3] * 3] * 3, strides, 3, n_points=40, decoder_blocks=1).train()


def batch() -> tuple[Tensor, OccupancyTarget]:
    """Two images and their points."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(0, 3, (2, 1, *SIZE), generator=generator)
    points = draw_points(labels, SAMPLING, generator=generator)
    return torch.randn(2, 1, *SIZE, generator=generator), OccupancyTarget(points, labels, None)


def part(target: OccupancyTarget, item: int) -> OccupancyTarget:
    """The target of one image."""
    points, one = target.points, slice(item, item + 1)
    few = Points(points.coords[one], points.target[one], points.weights[one], points.on_grid)
    return OccupancyTarget(few, target.dense[one], None)


def step(network: Any, x: Tensor, target: OccupancyTarget, ddp: bool) -> None:
    """Forward and backward pass with the Dice over the batch, of all processes where there are several."""
    dice = MemoryEfficientSoftDiceLoss(softmax_helper_dim1, batch_dice=True, do_bg=False, smooth=1e-5, ddp=ddp)
    output = network(x, target.points.coords, target.points.on_grid)
    OccupancyLoss(dice, False, 0.3)(output, target).backward()


def parallel_step(rank: int, folder: str) -> Tensor:
    """The gradients that one of two processes gets of a DDP step on its image."""
    network = seeded()
    x, target = batch()
    with support.one_of_two(rank, folder):
        step(nn.parallel.DistributedDataParallel(network), x[rank : rank + 1], part(target, rank), ddp=True)
    return gradients(network)


def other_process(index: int, folder: str) -> None:
    """The second process."""
    torch.set_num_threads(1)
    parallel_step(index + 1, folder)
