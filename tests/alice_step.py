"""A tiny network and steps of its pre-training; light to import, for tests in several processes."""

from __future__ import annotations

from typing import Any

import support
import torch
from torch import Tensor, nn

from nnunet_ext.losses.points import KDPoint
from nnunet_ext.pretraining.adapters import Adapter
from nnunet_ext.pretraining.alice import Alice
from nnunet_ext.pretraining.alice_options import AliceOptions, alice_options
from nnunet_ext.pretraining.unused import freeze_unused
from nnunet_ext.pretraining.views import Views

PATCH = (8, 16, 16)
SMALL: dict[str, Any] = {
    "width": 8,
    "hidden": 16,
    "bottleneck": 8,
    "prototypes": 16,
    "heads": 2,
    "casa_hidden": 16,
    "dropout": 0.0,
}


class Tiny(nn.Module):
    """Two strides, a head that is not used as with deep supervision off, running statistics and, perhaps, dropout."""

    def __init__(self, channels: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv3d(channels, 4, 3, 2, 1), nn.GELU(), nn.Dropout3d(dropout))
        self.norm = nn.BatchNorm3d(4)
        self.deep = nn.Conv3d(4, 6, 3, 2, 1)
        self.up = nn.ConvTranspose3d(6, 4, 2, 2)
        self.seg_layers = nn.ModuleList([nn.Conv3d(4, channels, 1), nn.ConvTranspose3d(4, channels, 2, 2)])

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.seg_layers[1](self.up(self.deep(self.norm(self.down(x)))))
        return output


def adapter(channels: int = 2, dropout: float = 0.0) -> Adapter:
    """Around the tiny network, the same every time."""
    torch.manual_seed(0)
    return Adapter(Tiny(channels, dropout), KDPoint("deep"), KDPoint("up"), (6, 4))


def options(fidelity: Any = "ours", **chosen: Any) -> AliceOptions:
    """Of a small head."""
    return alice_options(fidelity, **{**SMALL, **chosen})


def alice(fidelity: Any = "ours", total: int = 100, dropout: float = 0.0, **chosen: Any) -> Alice:
    """The method, the same every time."""
    made = adapter(dropout=dropout)
    return Alice(made, total, options(fidelity, **chosen))


def views(samples: int = 2, seed: int = 0, channels: int = 2, number: int = 2) -> Views:
    """Random images with mask blocks of 4 voxels; the first pair is of one volume, others are anatomical."""
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randn(number * samples, channels, *PATCH, generator=generator)
    images = clean + 0.1 * torch.randn(clean.shape, generator=generator)
    scores = torch.rand(number * samples, 32, generator=generator)
    hidden = (scores.argsort(1).argsort(1) < 24).view(-1, 1, 2, 4, 4)
    shift = torch.full((samples, 3), torch.nan)
    if number == 2:
        shift[0] = torch.tensor([2.0, -4.0, 0.0])
    return Views(images, clean, hidden, shift)


def of_sample(given: Views, sample: int) -> Views:
    """The views of one of two samples."""
    return Views(given.images[sample::2], given.clean[sample::2], given.hidden[sample::2], given.shift[sample, None])


def step(method: Any, given: Views, number: int, student: nn.Module | None = None) -> dict[str, Tensor]:
    """One step by plain gradient descent."""
    student = method.student if student is None else student
    values: dict[str, Tensor] = method.losses(student, given, number)
    method.student.zero_grad()
    values["loss"].backward()
    with torch.no_grad():
        for parameter in method.student.parameters():
            if parameter.grad is not None:
                parameter -= 0.01 * parameter.grad
    method.after_step(number)
    return values


def parallel_steps(rank: int, folder: str) -> Alice:
    """Two steps of one of two processes, each with one of two samples; its teacher begins with other weights."""
    method = alice()
    freeze_norm(method)
    if rank:
        with torch.no_grad():
            method.teacher.head.neck_projection.weight.add_(1)
    for name in ("0.weight", "0.bias"):
        method.network.get_parameter(f"adapter.network.seg_layers.{name}").requires_grad_(False)
    with support.one_of_two(rank, folder):
        student = nn.parallel.DistributedDataParallel(method.student)
        for number in range(2):
            step(method, of_sample(views(seed=number), rank), number, student)
    return method


def statistics(rank: int, folder: str) -> list[Tensor]:
    """The running variance of both processes' teachers after a step of different samples."""
    method = alice()
    freeze_unused(method.student, 2, PATCH)
    with support.one_of_two(rank, folder):
        step(method, of_sample(views(), rank), 0, nn.parallel.DistributedDataParallel(method.student))
        own = method.teacher.get_buffer("adapter.network.norm.running_var")
        found = [torch.empty_like(own) for _ in range(2)]
        torch.distributed.all_gather(found, own)
    return found


def other_statistics(index: int, folder: str) -> None:
    """The second process."""
    torch.set_num_threads(1)
    statistics(index + 1, folder)


def freeze_norm(method: Alice) -> None:
    """Let batches not matter to the network's norm."""
    for module in method.network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eval()


def other_process(index: int, folder: str) -> None:
    """The second process."""
    torch.set_num_threads(1)
    parallel_steps(index + 1, folder)
