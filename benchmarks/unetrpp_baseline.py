"""The published UNETR++, formulated the straightforward way: the baseline that `unetrpp.py` compares with.

Tokens are flattened and transposed, queries, keys and both values are tensors of their own, queries and keys are
normalised by `functional.normalize`, both attentions are matrix products with their probabilities in memory, and the
branches are concatenated. Parameter names are those of published checkpoints.

Source: A. M. Shaker, M. Maaz, H. Rasheed, S. Khan, M.-H. Yang, F. S. Khan, "UNETR++: Delving into Efficient and
Accurate 3D Medical Image Segmentation", IEEE TMI 2024, arXiv 2212.04497; written from a description of the network
(specification unetrpp 1 and 2.1), not from its code.

Run `python benchmarks/unetrpp_baseline.py --check` to compare it with the golden fixtures.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = (
    *("synapse_small", "acdc_small", "lung_small", "tumor_small", "synapse_full"),
    *("epa_synapse", "epa_acdc", "epa_tumor", "block_synapse", "block_acdc", "block_tumor"),
)
TOLERANCE = 2e-4
PROJECTION_SIZE = 64  # of every stage but the encoder's last, which has half
DECODER_HEADS, DECODER_BLOCKS = 4, 3


@dataclass(frozen=True)
class Variant:
    """What tells the published networks apart; `stride` is the patch embedding's, `patch` (D, H, W) in voxels."""

    patch: tuple[int, int, int]
    stride: tuple[int, int, int]
    projections: str = "separate"
    convolutions: int = 2
    dropout: float = 0.1


VARIANTS = {
    "synapse": Variant((64, 128, 128), (2, 4, 4), "tied", 1, 0.15),
    "acdc": Variant((16, 160, 160), (1, 4, 4)),
    "lung": Variant((32, 192, 192), (1, 4, 4)),
    "tumor": Variant((128, 128, 128), (4, 4, 4), "parameter", 1),
}


class Convolution(nn.Module):
    """A convolution under the name `conv`, as published checkpoints call it; "same" padding unless it strides."""

    def __init__(self, inputs: int, outputs: int, kernel: Any, stride: Any = 1, bias: bool = False) -> None:
        super().__init__()
        padding = kernel // 2 if isinstance(kernel, int) and stride == 1 else 0
        self.conv = nn.Conv3d(inputs, outputs, kernel, stride, padding, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, D, H, W) to (B, outputs, D', H', W')."""
        out: Tensor = self.conv(x)
        return out


class Upsampling(nn.Module):
    """A transposed convolution under the name `conv`, its kernel as large as its stride."""

    def __init__(self, inputs: int, outputs: int, stride: Any) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose3d(inputs, outputs, stride, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, D, H, W) to (B, outputs, D * s, H * s, W * s)."""
        out: Tensor = self.conv(x)
        return out


class ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions with norms, and a shortcut (with a convolution where the widths differ)."""

    def __init__(self, inputs: int, outputs: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.conv1, self.conv2 = Convolution(inputs, outputs, 3), Convolution(outputs, outputs, 3)
        self.norm1, self.norm2 = norm(outputs), norm(outputs)
        self.lrelu = nn.LeakyReLU(0.01, inplace=True)
        if inputs != outputs:
            self.conv3, self.norm3 = Convolution(inputs, outputs, 1), norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, D, H, W) to (B, outputs, D, H, W)."""
        out = self.lrelu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        shortcut = self.norm3(self.conv3(x)) if hasattr(self, "conv3") else x
        result: Tensor = self.lrelu(out + shortcut)
        return result


class EPA(nn.Module):
    """Efficient paired attention: channel attention and spatial attention share queries and keys."""

    def __init__(self, tokens: int, channels: int, size: int, heads: int, projections: str, dropout: float) -> None:
        super().__init__()
        self.heads, self.projections = heads, projections
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.temperature2 = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkvv = nn.Linear(channels, 4 * channels, bias=False)
        if projections == "parameter":
            self.EF = nn.Parameter(torch.empty(tokens, size).uniform_(-1, 1) / math.sqrt(size))
        else:
            self.E = nn.Linear(tokens, size)
            self.F = self.E if projections == "tied" else nn.Linear(tokens, size)
            self.out_proj = nn.Linear(channels, channels // 2)
            self.out_proj2 = nn.Linear(channels, channels // 2)
        self.attn_drop, self.attn_drop_2 = nn.Dropout(dropout), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, C), normalised, to (B, N, C)."""
        batch, tokens, channels = x.shape
        qkvv = self.qkvv(x).reshape(batch, tokens, 4, self.heads, channels // self.heads)
        queries, keys, channel_values, spatial_values = qkvv.permute(2, 0, 3, 1, 4)  # each (B, heads, N, d)
        queries, keys = queries.transpose(-2, -1), keys.transpose(-2, -1)
        channel_values, spatial_values = channel_values.transpose(-2, -1), spatial_values.transpose(-2, -1)
        if self.projections == "parameter":
            projected_keys, projected_values = keys @ self.EF, spatial_values @ self.EF
        else:
            projected_keys, projected_values = self.E(keys), self.F(spatial_values)
        queries = functional.normalize(queries, dim=-1)
        keys = functional.normalize(keys, dim=-1)
        between_channels = (queries @ keys.transpose(-2, -1)) * self.temperature
        between_channels = self.attn_drop(between_channels.softmax(-1))
        channel_tokens = (between_channels @ channel_values).permute(0, 3, 1, 2).reshape(batch, tokens, channels)
        to_tokens = (queries.transpose(-2, -1) @ projected_keys) * self.temperature2
        to_tokens = self.attn_drop_2(to_tokens.softmax(-1))
        spatial = to_tokens @ projected_values.transpose(-2, -1)  # (B, heads, N, d)
        spatial_tokens = spatial.permute(0, 3, 1, 2).reshape(batch, tokens, channels)  # the published order
        if self.projections == "parameter":
            return spatial_tokens + channel_tokens
        return torch.cat((self.out_proj(spatial_tokens), self.out_proj2(channel_tokens)), -1)


class TransformerBlock(nn.Module):
    """Position embedding, normalised EPA with layer scale, residual convolutions, 1x1x1 convolution."""

    def __init__(self, tokens: int, channels: int, size: int, heads: int, variant: Variant) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.gamma = nn.Parameter(1e-6 * torch.ones(channels))
        self.epa_block = EPA(tokens, channels, size, heads, variant.projections, variant.dropout)
        self.conv51 = ResidualBlock(channels, channels, nn.BatchNorm3d)
        if variant.convolutions == 2:
            self.conv52 = ResidualBlock(channels, channels, nn.BatchNorm3d)
        self.conv8 = nn.Sequential(nn.Dropout3d(0.1), nn.Conv3d(channels, channels, 1))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) to the same shape."""
        batch, channels, *grid = x.shape
        tokens = x.reshape(batch, channels, -1).transpose(1, 2) + self.pos_embed
        tokens = tokens + self.gamma * self.epa_block(self.norm(tokens))
        volume = tokens.transpose(1, 2).reshape(batch, channels, *grid)
        out = self.conv51(volume)
        if hasattr(self, "conv52"):
            out = self.conv52(out)
        result: Tensor = volume + self.conv8(out)
        return result


class Encoder(nn.Module):
    """Four stages of strided convolution, group norm and transformer blocks."""

    def __init__(
        self, inputs: int, dims: Sequence[int], depths: Sequence[int], grids: Sequence[int], heads: int, v: Variant
    ) -> None:
        super().__init__()
        self.downsample_layers, self.stages = nn.ModuleList(), nn.ModuleList()
        for i, (channels, depth) in enumerate(zip(dims, depths, strict=True)):
            before, stride = (dims[i - 1], (2, 2, 2)) if i else (inputs, v.stride)
            norm = nn.GroupNorm(before, channels)
            self.downsample_layers.append(nn.Sequential(Convolution(before, channels, stride, stride), norm))
            size = PROJECTION_SIZE if i < 3 else PROJECTION_SIZE // 2
            self.stages.append(
                nn.Sequential(*(TransformerBlock(grids[i], channels, size, heads, v) for _ in range(depth)))
            )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, inputs, D, H, W) to the features of the four stages, high resolution first."""
        features = []
        for down, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(down(x))
            features.append(x)
        return features


class UpBlock(nn.Module):
    """Transposed convolution, sum with the skip connection, then transformer blocks or a residual block."""

    def __init__(self, inputs: int, outputs: int, stride: Any, tokens: int | None, variant: Variant) -> None:
        super().__init__()
        self.transp_conv = Upsampling(inputs, outputs, stride)
        if tokens is None:
            self.decoder_block = nn.ModuleList([ResidualBlock(outputs, outputs, nn.InstanceNorm3d)])
            return
        blocks = (
            TransformerBlock(tokens, outputs, PROJECTION_SIZE, DECODER_HEADS, variant) for _ in range(DECODER_BLOCKS)
        )
        self.decoder_block = nn.ModuleList([nn.Sequential(*blocks)])

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Takes x (B, inputs, D, H, W) and skip (B, outputs, D', H', W') to the skip's shape."""
        out: Tensor = self.decoder_block[0](self.transp_conv(x) + skip)
        return out


class Head(nn.Module):
    """Logits by a 1x1x1 convolution, two names deep as in published checkpoints."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.conv = Convolution(inputs, classes, 1, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, D, H, W) to (B, classes, D, H, W)."""
        out: Tensor = self.conv(x)
        return out


class PublishedUNETRPP(nn.Module):
    """One of the four published networks; always with its three outputs."""

    def __init__(
        self,
        variant: str | Variant,
        inputs: int,
        classes: int,
        features: int = 16,
        heads: int = 4,
        depths: Sequence[int] = (3, 3, 3, 3),
    ) -> None:
        super().__init__()
        v = VARIANTS[variant] if isinstance(variant, str) else variant
        dims = [features * 2**i for i in range(1, 5)]
        first = math.prod(p // s for p, s in zip(v.patch, v.stride, strict=True))
        tokens = [first // 8**i for i in range(4)]
        self.encoder1 = ResidualBlock(inputs, features, nn.InstanceNorm3d)
        self.unetr_pp_encoder = Encoder(inputs, dims, depths, tokens, heads, v)
        self.decoder5 = UpBlock(dims[3], dims[2], 2, tokens[2], v)
        self.decoder4 = UpBlock(dims[2], dims[1], 2, tokens[1], v)
        self.decoder3 = UpBlock(dims[1], dims[0], 2, tokens[0], v)
        self.decoder2 = UpBlock(dims[0], features, v.stride, None, v)
        self.out1, self.out2, self.out3 = Head(features, classes), Head(dims[0], classes), Head(dims[1], classes)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, inputs, D, H, W) to logits at three resolutions, full resolution first."""
        full = self.encoder1(x)
        e1, e2, e3, e4 = self.unetr_pp_encoder(x)
        d3 = self.decoder5(e4, e3)
        d2 = self.decoder4(d3, e2)
        d1 = self.decoder3(d2, e1)
        d0 = self.decoder2(d1, full)
        return [self.out1(d0), self.out2(d1), self.out3(d2)]


def load_published(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load weights by their published names; second names of tied weights and batch counters may be missing."""
    missing, unexpected = module.load_state_dict(dict(weights), strict=False)
    allowed = ("num_batches_tracked", ".F.weight", ".F.bias")
    lacking = [key for key in missing if not f".{key}".endswith(allowed)]
    if lacking or unexpected:
        raise RuntimeError(f"not the published names: {lacking} missing, {unexpected} unexpected")


def build_fixture(spec: Mapping[str, Any]) -> nn.Module:
    """The module that a fixture describes."""
    c = spec["constructor"]
    variant = VARIANTS[c["variant"]]
    if spec["kind"] == "network":
        return PublishedUNETRPP(
            variant, c["in_channels"], c["out_channels"], c["feature_size"], c["num_heads"], c["depths"]
        )
    arguments = (c["input_size"], c["hidden_size"], c["proj_size"], c["num_heads"])
    if spec["kind"] == "block":
        return TransformerBlock(*arguments, variant)
    return EPA(*arguments, variant.projections, variant.dropout)


def fixture_error(golden: Any, path: Path) -> float:
    """Largest difference from a golden fixture, in the output's standard deviation."""
    spec, expected = golden.load(path)
    module = build_fixture(spec).eval()
    load_published(module, {key: torch.from_numpy(value) for key, value in golden.reference_state(spec).items()})
    with torch.inference_mode():
        outputs = module(torch.from_numpy(golden.make_input(spec["inputs"][0])))
    listed = [outputs] if isinstance(outputs, Tensor) else outputs
    entries = zip(spec["outputs"], listed, strict=True)
    return max(float(golden.compare(entry["name"], output.numpy(), spec, expected)) for entry, output in entries)


def fixture_errors() -> dict[str, float]:
    """`fixture_error` of every golden fixture, by name."""
    tests = ROOT / "tests"
    if str(tests) not in sys.path:
        sys.path.append(str(tests))
    import golden_tools

    return {name: fixture_error(golden_tools, tests / "golden" / "unetrpp" / name) for name in FIXTURES}


def main(argv: Sequence[str] | None = None) -> int:
    """Compare with the golden fixtures; returns 1 if one of them fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", required=True, help="compare with the golden fixtures")
    parser.parse_args(argv)
    errors = fixture_errors()
    for name, error in errors.items():
        print(f"{name:15} {error:.1e} {'FAILED' if error > TOLERANCE else 'ok'}")
    return int(max(errors.values()) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
