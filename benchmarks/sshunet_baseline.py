"""The published SSH-UNet, formulated the straightforward way: the baseline that `sshunet.py` compares with.

Three views are made by transposing the *activations* and stacked on the batch axis (view-major); every 1x3x3
convolution is an ordinary `nn.Conv3d`, every normalisation an ordinary `nn.InstanceNorm3d`, slices are shifted by
assigning into a tensor of zeros, and the decoder concatenates. Parameter names are those of published checkpoints.

Source: C. I. Ugwu, S. Casarin, O. Lanz, "Spatiotemporal Modeling Encounters 3D Medical Image Analysis: Slice-Shift
UNet with Multi-View Fusion", arXiv 2307.12853; written from a description of the network, not from its code.

Differences: cubes only, as published; basic decoder blocks and dropout are left out (no published result uses them).

Run `python benchmarks/sshunet_baseline.py --check` to compare it with the golden fixtures.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = (
    "tsm_small",
    "gsm_small",
    "gsf_small",
    "tsm_vfn_small",
    "tsm_view_strides",
    "gsm_decoder_last_gate",
    "gsf_train_deepsup",
    "tsm_full_btcv",
)
PUBLISHED_FEATURES = (32, 64, 128, 256, 320)
TOLERANCE = 1e-4
VIEW_AXES = (2, 3, 4)  # view a exchanges axis 2 with axis VIEW_AXES[a], so that the view's slices lie on axis 2


def to_view(x: Tensor, view: int) -> Tensor:
    """Volume (B, C, D, H, W) to the coordinates of `view`, and back: the exchange undoes itself."""
    return x if view == 0 else x.transpose(2, VIEW_AXES[view])


def shift_slices(x: Tensor, step: int) -> Tensor:
    """(B, C, T, H, W) moved by `step` (+1 or -1) slices along axis 2, zeros moving in."""
    moved = torch.zeros_like(x)
    if step > 0:
        moved[:, :, 1:] = x[:, :, :-1]
    else:
        moved[:, :, :-1] = x[:, :, 1:]
    return moved


class SliceShift(nn.Module):
    """TSM: the first quarter of the channels comes from the slice before, the last quarter from the slice after."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) to the same shape; slices lie on axis 2."""
        channels, fold = x.shape[1], x.shape[1] // 4
        out = torch.zeros_like(x)
        out[:, :fold, 1:] = x[:, :fold, :-1]
        out[:, channels - fold :, :-1] = x[:, channels - fold :, 1:]
        out[:, fold : channels - fold] = x[:, fold : channels - fold]
        return out


class GateShift(nn.Module):
    """GSM: a learned gate decides how much of each half of the channels moves by a slice."""

    def __init__(self, channels: int, decoder: bool) -> None:
        super().__init__()
        self.steps = (1, -1) if decoder else (-1, 1)
        self.norm = nn.InstanceNorm3d(channels)
        self.conv3D = nn.Conv3d(channels, 2, 3, padding=1, groups=2)

    def split(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """For both halves of x: what moves, already moved, and what stays, each (B, C/2, T, H, W)."""
        gate = torch.tanh(self.conv3D(functional.leaky_relu(self.norm(x), 0.1)))
        parts = []
        for half, step, values in zip(range(2), self.steps, x.chunk(2, dim=1), strict=True):
            moving = gate[:, half : half + 1] * values
            parts.append((shift_slices(moving, step), values - moving))
        return parts

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) to the same shape; slices lie on axis 2."""
        return torch.cat([moved + rest for moved, rest in self.split(x)], dim=1)


class GateShiftFuse(GateShift):
    """GSF: GSM on the first quarter of the channels, with a learned weight of the moved against the remaining part."""

    def __init__(self, channels: int, decoder: bool) -> None:
        self_channels = channels // 4
        self_channels += self_channels % 2
        super().__init__(self_channels, decoder)
        self.channels = self_channels
        self.channel_conv1 = nn.Conv2d(2, 1, 3, padding=1)
        self.channel_conv2 = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) to the same shape; slices lie on axis 2."""
        out = []
        convs = (self.channel_conv1, self.channel_conv2)
        for conv, (moved, rest) in zip(convs, self.split(x[:, : self.channels]), strict=True):
            means = torch.stack([moved.mean((3, 4)), rest.mean((3, 4))], dim=1)  # (B, 2, c/2, T)
            weight = torch.sigmoid(conv(means)).squeeze(1)[..., None, None]  # (B, c/2, T, 1, 1)
            out.append(weight * moved + (1 - weight) * rest)
        return torch.cat([*out, x[:, self.channels :]], dim=1)


def make_gate(kind: str, channels: int, decoder: bool) -> nn.Module:
    """The gate called `kind` ("tsm", "gsm", "gsf")."""
    if kind == "tsm":
        return SliceShift()
    return {"gsm": GateShift, "gsf": GateShiftFuse}[kind](channels, decoder)


def triple(values: Sequence[int]) -> tuple[int, int, int]:
    """Three numbers as a tuple."""
    first, second, third = values
    return first, second, third


def named_conv(conv: nn.Module) -> nn.Sequential:
    """`conv` under the name that it has in checkpoints (`....conv.weight`)."""
    return nn.Sequential(OrderedDict(conv=conv))


def padded_conv(inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int]) -> nn.Sequential:
    """Convolution without bias that keeps (stride 1) or divides (stride 2) each axis."""
    padding = triple([(k - s + 1) // 2 for k, s in zip(kernel, stride, strict=True)])
    return named_conv(nn.Conv3d(inputs, outputs, triple(kernel), triple(stride), padding, bias=False))


class ResidualBlock(nn.Module):
    """conv, shift, norm, activation, conv, shift; plus shortcut; norm, activation (the norm acts on the sum)."""

    def __init__(
        self, inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int], gate: str | None, decoder: bool
    ) -> None:
        super().__init__()
        self.conv1 = padded_conv(inputs, outputs, kernel, stride)
        self.conv2 = padded_conv(outputs, outputs, kernel, (1, 1, 1))
        self.conv3 = padded_conv(inputs, outputs, (1, 1, 1), stride)
        self.shift = make_gate(gate, outputs, decoder) if gate else nn.Identity()
        self.norm1, self.norm2, self.norm3 = (nn.InstanceNorm3d(outputs) for _ in range(3))
        self.lrelu = nn.LeakyReLU(0.01, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(3B, C, T, H, W) in view coordinates to (3B, C', T', H', W')."""
        out = self.lrelu(self.norm1(self.shift(self.conv1(x))))
        out = self.shift(self.conv2(out))
        out += self.norm3(self.conv3(x))
        return self.lrelu(self.norm2(out))


class UpBlock(nn.Module):
    """Transposed convolution, concatenation with the skip, residual block."""

    def __init__(
        self, inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int], gate: str | None
    ) -> None:
        super().__init__()
        self.transp_conv = named_conv(nn.ConvTranspose3d(inputs, outputs, triple(stride), triple(stride)))
        self.conv_block = ResidualBlock(2 * outputs, outputs, kernel, (1, 1, 1), gate, decoder=True)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Go from (3B, C, T, H, W) and the skip of the level above to that level's (3B, C', T', H', W')."""
        return self.conv_block(torch.cat([self.transp_conv(x), skip], dim=1))


class SumFusion(nn.Module):
    """Sum of the three views in volume coordinates, 1x1x1 convolution, norm, activation, class convolution."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.conv1 = named_conv(nn.Conv3d(features, features, 1))
        self.norm = nn.InstanceNorm3d(features)
        self.conv = named_conv(nn.Conv3d(features, classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(3B, F, D, H, W), view-major, to logits (B, K, D, H, W)."""
        views = x.chunk(3, dim=0)
        total = views[0] + to_view(views[1], 1) + to_view(views[2], 2)
        return self.conv(functional.leaky_relu(self.norm(self.conv1(total)), 0.01, inplace=True))


class BasicBlock(nn.Module):
    """conv, norm, activation, twice; the first convolution may be strided."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = padded_conv(inputs, outputs, (3, 3, 3), (stride,) * 3)
        self.conv2 = padded_conv(outputs, outputs, (3, 3, 3), (1, 1, 1))
        self.norm1, self.norm2 = nn.InstanceNorm3d(outputs), nn.InstanceNorm3d(outputs)
        self.lrelu = nn.LeakyReLU(0.01, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) to (B, C', D/stride, H/stride, W/stride)."""
        out = self.lrelu(self.norm1(self.conv1(x)))
        return self.lrelu(self.norm2(self.conv2(out)))


class FusionUp(nn.Module):
    """Decoder step of the fusion network."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.transp_conv = named_conv(nn.ConvTranspose3d(inputs, outputs, 2, 2, bias=False))
        self.conv_block = BasicBlock(2 * outputs, outputs, 1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Go from (B, C, D, H, W) and a skip of twice its size to the skip's shape."""
        return self.conv_block(torch.cat([self.transp_conv(x), skip], dim=1))


class VolumetricFusion(nn.Module):
    """VFN: a small isotropic 3D U-Net on the three views' class maps, which, as published, are not aligned first."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        k = classes
        self.conv = named_conv(nn.Conv3d(features, k, 1))
        self.conv1 = BasicBlock(3 * k, 6 * k, 2)
        self.conv2 = BasicBlock(6 * k, 9 * k, 2)
        self.bottleneck = BasicBlock(9 * k, 12 * k, 2)
        self.up2 = FusionUp(12 * k, 9 * k)
        self.up1 = FusionUp(9 * k, 6 * k)
        self.up = FusionUp(6 * k, 3 * k)
        self.out = named_conv(nn.Conv3d(3 * k, k, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(3B, F, D, H, W), view-major, to logits (B, K, D, H, W)."""
        views = torch.cat(self.conv(x).chunk(3, dim=0), dim=1)  # (B, 3K, D, H, W)
        first = self.conv1(views)
        second = self.conv2(first)
        out = self.up2(self.bottleneck(second), second)
        return self.out(self.up(self.up1(out, first), views))


class PublishedSSHUNet(nn.Module):
    """SSH-UNet as published.

    Args:
        in_channels: C of the input.
        out_channels: number of classes K.
        gate_type: "tsm", "gsm" or "gsf".
        gate_pos: downsampling blocks with a gate, by index; with `gate_dec` their decoder mirrors have one as well.
        kernel_size, strides: one (slice, row, column) triple a level, at least three levels.
        filters: widths; as published where None.
        vfn: fuse the views by the volumetric fusion network instead of their sum.
        supervised: number of auxiliary heads, on the decoder levels 1, 2, ...
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        gate_type: str = "tsm",
        gate_pos: Sequence[int] = (0, 1, 2),
        gate_in_bottleneck: bool = True,
        gate_dec: bool = True,
        kernel_size: Sequence[Sequence[int]] = ((1, 3, 3),) * 5,
        strides: Sequence[Sequence[int]] = ((1, 1, 1), *((2, 2, 2),) * 4),
        filters: Sequence[int] | None = None,
        vfn: bool = False,
        supervised: int = 0,
    ) -> None:
        super().__init__()
        levels = len(strides)
        width = list(filters or PUBLISHED_FEATURES)[:levels]
        fusion = VolumetricFusion if vfn else SumFusion

        def gate(on: bool) -> str | None:
            return gate_type if on else None

        self.input_block = ResidualBlock(in_channels, width[0], kernel_size[0], strides[0], gate_type, decoder=False)
        self.downsamples = nn.ModuleList(
            ResidualBlock(width[i], width[i + 1], kernel_size[i + 1], strides[i + 1], gate(i in gate_pos), False)
            for i in range(levels - 2)
        )
        self.bottleneck = ResidualBlock(
            width[-2], width[-1], kernel_size[-1], strides[-1], gate(gate_in_bottleneck), decoder=False
        )
        self.upsamples = nn.ModuleList(
            UpBlock(width[i + 1], width[i], kernel_size[i + 1], strides[i + 1], gate(gate_dec and i - 1 in gate_pos))
            for i in reversed(range(levels - 1))
        )
        self.output_block = fusion(width[0], out_channels)
        self.deep_supervision_heads = nn.ModuleList(fusion(width[i + 1], out_channels) for i in range(supervised))

    def decode(self, x: Tensor) -> list[Tensor]:
        """Decoder features of every level, full resolution first, each (3B, F, ...) in view coordinates, view-major."""
        out = torch.cat([to_view(x, view) for view in range(3)], dim=0)
        skips = [self.input_block(out)]
        for block in self.downsamples:
            skips.append(block(skips[-1]))
        features = [self.bottleneck(skips[-1])]
        for block in self.upsamples:
            features.append(block(features[-1], skips.pop()))
            if not (self.training and self.deep_supervision_heads):
                del features[:-1]
        return features[::-1]

    def view_features(self, x: Tensor) -> Tensor:
        """(B, C, D, D, D) to the decoder's output (3B, F, D, D, D) in view coordinates, view-major."""
        return self.decode(x)[0]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, D, D) to logits (B, K, D, D, D); training with auxiliary heads (B, 1 + heads, K, D, D, D)."""
        features = self.decode(x)
        logits = self.output_block(features[0])
        if not (self.training and self.deep_supervision_heads):
            return logits
        heads = [head(values) for head, values in zip(self.deep_supervision_heads, features[1:], strict=False)]
        return torch.stack([logits, *(functional.interpolate(h, logits.shape[2:]) for h in heads)], dim=1)


def published(gate: str = "tsm", classes: int = 14, vfn: bool = False) -> PublishedSSHUNet:
    """The published configuration (five levels, 32 to 320 features, one input channel), Kaiming-initialised."""
    network = PublishedSSHUNet(1, classes, gate_type=gate, vfn=vfn)
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose3d)):
            nn.init.kaiming_normal_(module.weight, a=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


def from_fixture(constructor: Mapping[str, Any]) -> PublishedSSHUNet:
    """The network that a fixture's `constructor` (the original's keyword arguments) describes."""
    same = ("in_channels", "out_channels", "gate_type", "gate_pos", "gate_in_bottleneck", "gate_dec", "vfn", "filters")
    supervised = constructor["deep_supr_num"] if constructor["deep_supervision"] else 0
    arguments = {name: constructor[name] for name in (*same, "kernel_size", "strides")}
    return PublishedSSHUNet(**arguments, supervised=supervised)


def golden_tools(path: Path = ROOT / "tests" / "golden_tools.py") -> ModuleType:
    """The module that reads fixtures, loaded from `path`."""
    spec = importlib.util.spec_from_file_location("golden_tools", path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"{path} is missing: run this in a checkout of the project, which has the fixtures.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@torch.no_grad()
def fixture_error(golden: ModuleType, path: Path) -> float:
    """Largest difference from the fixture at `path`, as a fraction of the reference's standard deviation."""
    spec, expected = golden.load(path)
    network = from_fixture(spec["constructor"])
    network.load_state_dict({key: torch.from_numpy(value) for key, value in golden.reference_state(spec).items()})
    network.train(spec["mode"] == "train")
    x = torch.from_numpy(golden.make_input(spec["inputs"][0]))
    compute: dict[str, Callable[[Tensor], Tensor]] = {"logits": network, "view_features": network.view_features}
    names = [entry["name"] for entry in spec["outputs"]]
    return max(golden.compare(name, compute[name](x).numpy(), spec, expected) for name in names)


def main(argv: Sequence[str] | None = None) -> int:
    """Check the baseline against the golden fixtures; exit code 1 if one fails."""
    parser = argparse.ArgumentParser(description="The baseline against the golden fixtures of the authors' code.")
    parser.add_argument("--check", action="store_true", required=True, help="compare with every fixture it covers")
    parser.add_argument("--golden", type=Path, default=ROOT / "tests" / "golden" / "sshunet", help="fixture folder")
    parser.add_argument("--tools", type=Path, default=ROOT / "tests" / "golden_tools.py", help="module that reads them")
    arguments = parser.parse_args(argv)
    golden = golden_tools(arguments.tools)
    errors = {name: fixture_error(golden, arguments.golden / name) for name in FIXTURES}
    for name, error in errors.items():
        print(f"{name:24} {error:9.2e}  {'ok' if error <= TOLERANCE else 'FAILED'}")
    return int(max(errors.values()) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
