"""Efficient paired attention (EPA) of UNETR++, rewritten so that few token-sized tensors are made and kept.

The published block maps its tokens x (N, C) to queries, keys and two kinds of values, normalises queries and keys over
the tokens, and attends between channels and from tokens to projected tokens (specification unetrpp 1.4). Values, and
the keys that are projected, enter linearly, so what is done to them can be done to small matrices instead: with the
projection P = W x (p, C) of the tokens,

    projected keys = P Wkᵀ,   projected values = P Wvᵀ,

norms and temperatures are folded into those, the channel attention, its values and its output projection become one
matrix that is applied to x, and the layer scale is folded into the output projections. Queries and keys are the only
token-sized tensors beside x and the result (the Gram matrix of x would do without them, too, but cancels where tokens
hardly vary, as in constant patches). The results are the published ones up to rounding. Everything small is computed
in float32, also under autocast.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_ext.architectures.blocks.precision import at_least_float32, in_autocast_dtype, without_autocast
from nnunet_ext.architectures.blocks.spatial_attention import attend

NORM_EPS = 1e-12  # least norm of queries and keys
PROJECTIONS = ("tied", "separate", "no_bias")
FUSIONS = ("concat", "sum")
LAYOUTS = ("fixed", "legacy")


class PairedAttention(nn.Module):
    """EPA for tokens that are already normalised (Shaker et al., IEEE TMI 2024, section 3.2; specification 1.4).

    Args:
        tokens: N, tokens of an image.
        channels: C.
        size: p, tokens that keys and values are projected to.
        heads: h, divides C.
        projections: "tied": keys and values share one projection over the tokens; "separate": one each; "no_bias":
            one without bias.
        fusion: "concat": each branch has an output projection to C / 2 channels; "sum": the branches are added.
        layout: "fixed", or "legacy" for published weights, whose spatial branch takes (head width, heads, N) memory for
            (N, C) tokens.
        dropout: of both attentions' probabilities.
    """

    def __init__(
        self,
        tokens: int,
        channels: int,
        size: int,
        heads: int,
        projections: str = "tied",
        fusion: str = "concat",
        layout: str = "fixed",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.heads, self.layout, self.dropout = heads, layout, dropout
        self.channel_temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.spatial_temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkvv = nn.Linear(channels, 4 * channels, bias=False)
        self.key_projection = nn.Linear(tokens, size, bias=projections != "no_bias")
        self.value_projection = nn.Linear(tokens, size) if projections == "separate" else None
        self.spatial_out = nn.Linear(channels, channels // 2) if fusion == "concat" else None
        self.channel_out = nn.Linear(channels, channels // 2) if fusion == "concat" else None

    def forward(self, x: Tensor, residual: Tensor | None = None, scale: Tensor | None = None) -> Tensor:
        """The sum of `residual` and `scale` * EPA(x).

        Args:
            x: (B, N, C).
            residual: (B, N, C); None: zero.
            scale: (C); None: one.

        Returns:
            (B, N, C).
        """
        x = in_autocast_dtype(x)  # once, for all products
        channels = x.shape[-1]
        # Scaled so that sums over the tokens stay in float16's range; the norms undo it.
        shrink = x.shape[1] ** -0.25
        weight = at_least_float32(self.qkvv.weight)
        both = functional.linear(x, (shrink * weight[: 2 * channels]).to(x.dtype))
        queries, keys = both.chunk(2, -1)
        _, wk, wc, ws = weight.view(4, self.heads, -1, channels)
        scale = weight.new_ones(channels) if scale is None else scale
        with without_autocast(x):
            mixing, inverse_norms = self._channel_attention(queries, keys, wc, shrink)
            few_keys, few_values = self._projected(x, wk, ws)
            few_keys = few_keys * (self.spatial_temperature * inverse_norms[:, :, None])
        queries = queries.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        spatial = self._tokens(attend(queries, few_keys, few_values, self.dropout if self.training else 0.0))
        return self._fuse(x, spatial, mixing, residual, scale)

    def _channel_attention(self, queries: Tensor, keys: Tensor, wc: Tensor, shrink: float) -> tuple[Tensor, Tensor]:
        """The matrix (B, C, C) that turns x into the channel branch, and 1 / |query| (B, h, d) over the tokens."""
        products = at_least_float32(queries.mT @ keys).unflatten(1, (self.heads, -1)).unflatten(3, (self.heads, -1))
        inverse_q, inverse_k = (
            _inverse_norm(tokens, shrink * NORM_EPS).unflatten(1, (self.heads, -1)) for tokens in (queries, keys)
        )
        logits = products.diagonal(dim1=1, dim2=3).movedim(-1, 1)  # the blocks of equal heads: (B, h, d, d)
        logits = logits * (inverse_q[..., None] * inverse_k[..., None, :]) * self.channel_temperature
        weights = functional.dropout(logits.softmax(-1), self.dropout, self.training)
        return (weights @ wc).flatten(1, 2), inverse_q

    def _projected(self, x: Tensor, wk: Tensor, ws: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, h, p, d) of the spatial attention."""
        key_tokens = at_least_float32(self.key_projection.weight.to(x.dtype) @ x)
        value_projection, value_tokens = self.key_projection, key_tokens
        if self.value_projection is not None:
            value_projection = self.value_projection
            value_tokens = at_least_float32(value_projection.weight.to(x.dtype) @ x)
        keys, values = key_tokens.unsqueeze(1) @ wk.mT, value_tokens.unsqueeze(1) @ ws.mT
        if self.key_projection.bias is not None:
            keys = keys + self.key_projection.bias[:, None]
            values = values + value_projection.bias[:, None]
        return keys, values

    def _tokens(self, spatial: Tensor) -> Tensor:
        """(B, h, N, d) as tokens (B, N, C)."""
        order = (0, 2, 1, 3) if self.layout == "fixed" else (0, 3, 1, 2)
        batch, _, tokens, _ = spatial.shape
        return spatial.permute(order).reshape(batch, tokens, -1)

    def _fuse(self, x: Tensor, spatial: Tensor, mixing: Tensor, residual: Tensor | None, scale: Tensor) -> Tensor:
        """Output projections and layer scale as one matrix a branch, applied to tokens (B, N, C).

        The size of the layer scale, 1e-6 at first, is taken out of the matrices, which may be in float16.
        """
        size = scale.detach().abs().amax().clamp(min=torch.finfo(scale.dtype).tiny)
        scale = scale / size
        if self.spatial_out is None or self.channel_out is None:
            out = torch.bmm(x, (scale[:, None] * mixing).mT.to(x.dtype))
            out = torch.addcmul(out, spatial, scale.to(out.dtype))
        else:
            half = len(scale) // 2
            # Rows of zeros for the other branch's channels: cheaper than to concatenate token-sized halves.
            weight = functional.pad(scale[:half, None] * self.spatial_out.weight, (0, 0, 0, half))
            matrix = functional.pad(scale[half:, None] * (self.channel_out.weight @ mixing), (0, 0, half, 0))
            bias = scale * torch.cat([self.spatial_out.bias, self.channel_out.bias])
            out = functional.linear(spatial, weight.to(spatial.dtype), bias.to(spatial.dtype))
            out = torch.baddbmm(out, x, matrix.mT.to(x.dtype))
        if residual is None:
            return out * size.to(out.dtype)
        return torch.addcmul(residual, out.to(residual.dtype), size.to(residual.dtype))


def _inverse_norm(tokens: Tensor, least: float) -> Tensor:
    """1 / max(norm over the tokens, least) of (B, N, C), as (B, C), float32 at least."""
    wide = torch.promote_types(tokens.dtype, torch.float32)
    return torch.linalg.vector_norm(tokens, dim=1, dtype=wide).clamp(min=least).reciprocal()
