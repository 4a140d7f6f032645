"""Conditional anatomical semantic alignment: masked positions are completed from a decoder's (specification 1.6)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

EPS = 1e-6


class CASA(nn.Module):
    """One layer of cross-attention and a feed-forward block, each with its residual and layer norm after it.

    The published module has four more linear layers, which it never uses; they are left out.

    Args:
        width: of tokens, the number of prototypes.
        heads: of the attention.
        hidden: width of the feed-forward block.
        dropout: of attention weights and of both blocks' outputs.

    Raises:
        ValueError: a width that the heads do not divide.
    """

    def __init__(self, width: int = 512, heads: int = 8, hidden: int = 2048, dropout: float = 0.1) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}")
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.attention_norm = nn.LayerNorm(width, eps=EPS)
        self.feed_forward = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))
        self.feed_forward_norm = nn.LayerNorm(width, eps=EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        """Align tokens with a memory.

        Args:
            queries: (B, L_q, width), the masked student's encoder tokens.
            memory: (B, L_k, width), decoder tokens of the student or of the teacher.

        Returns:
            (B, L_q, width).
        """
        q, k, v = self._split(self.query(queries)), self._split(self.key(memory)), self._split(self.value(memory))
        attended = functional.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout.p if self.training else 0.0)
        joined = attended.transpose(1, 2).flatten(2)
        u = self.attention_norm(queries + self.dropout(self.output(joined)))
        aligned: Tensor = self.feed_forward_norm(u + self.dropout(self.feed_forward(u)))
        return aligned

    def _split(self, x: Tensor) -> Tensor:
        """(B, L, width) as (B, heads, L, width / heads)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)
