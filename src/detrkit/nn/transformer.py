"""Encoder and decoder layers of DETR (paper, appendix "Detailed architecture"), batch first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from detrkit.nn.attention import MultiheadAttention
from detrkit.nn.queries import Block, within_blocks
from detrkit.ops.dropout import add_dropout, relu_dropout
from detrkit.ops.exporting import is_exporting

__all__ = ["DecoderLayer", "Encoder", "EncoderLayer", "FeedForwardLayer", "run_layer", "xavier_"]

HIDDEN_KEPT = 2**23
"""Largest hidden layer of a feed-forward block, in numbers, that a GPU keeps for the backward pass (16 MiB in bf16)."""


def keeps_hidden(x: Tensor, width: int) -> bool:
    """Whether the hidden layer (B, N, width) of a feed-forward block of x is kept for the backward pass.

    The thousands of tokens of a multi-scale encoder make large ones, 40 % of what a layer keeps. On a GPU they are
    computed again, one product of matrices more where the block has six; on a CPU that took an eighth of a step.
    """
    return x.device.type == "cpu" or is_exporting() or x.shape[:-1].numel() * width <= HIDDEN_KEPT


def xavier_(module: nn.Module) -> None:
    """Initialise every parameter of two or more dimensions Xavier-uniform, as DETR's transformer."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)


def run_layer(layer: nn.Module, *inputs: Any, checkpointing: bool) -> Any:
    """Run a layer and return its output.

    checkpointing: keep only the inputs for the backward pass, which computes the layer's activations again.
    """
    if checkpointing and torch.is_grad_enabled():
        return checkpoint(layer, *inputs, use_reentrant=False)
    return layer(*inputs)


class FeedForwardLayer(nn.Module):
    """Base class of layers: residual sub-blocks with the norm after (post-norm, published) or before (pre-norm)."""

    def __init__(self, *, dim: int, ffn_dim: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, dim)
        self.dropout = dropout
        self.pre_norm = pre_norm

    @property
    def _rate(self) -> float:
        return self.dropout if self.training else 0.0

    def residual(self, x: Tensor, norm: nn.Module, block: Callable[[Tensor], Tensor]) -> Tensor:
        """Return x (B, N, C) plus the output of ``block``, normalised before or after the block."""
        if self.pre_norm:
            return add_dropout(x, block(norm(x)), self._rate)
        return norm(add_dropout(x, block(x), self._rate))

    def feed_forward(self, x: Tensor) -> Tensor:
        """Apply two linear layers with ReLU between them: (B, N, C) -> (B, N, C)."""
        if torch.is_grad_enabled() and not keeps_hidden(x, self.linear1.out_features):
            out: Tensor = checkpoint(self._feed_forward, x, use_reentrant=False, preserve_rng_state=self._rate > 0)
            return out
        return self._feed_forward(x)

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.linear2(relu_dropout(self.linear1(x), self._rate))


class EncoderLayer(FeedForwardLayer):
    """Self-attention over the image tokens, then a feed-forward block; positions are added in every layer."""

    def __init__(self, *, dim: int, num_heads: int, ffn_dim: int, dropout: float, pre_norm: bool = False) -> None:
        super().__init__(dim=dim, ffn_dim=ffn_dim, dropout=dropout, pre_norm=pre_norm)
        self.self_attn = MultiheadAttention(dim=dim, num_heads=num_heads, dropout=dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor, position: Tensor, padding_mask: Tensor) -> Tensor:
        """tokens and position (B, S, C), padding_mask (B, S) -> (B, S, C)."""

        def attend(x: Tensor) -> Tensor:
            placed = x + position
            attended: Tensor = self.self_attn(placed, placed, x, padding_mask)
            return attended

        tokens = self.residual(tokens, self.norm1, attend)
        return self.residual(tokens, self.norm2, self.feed_forward)


class Encoder(nn.Module):
    """A stack of encoder layers; pre-norm adds a final norm, post-norm has none."""

    def __init__(
        self, *, num_layers: int, dim: int, num_heads: int, ffn_dim: int, dropout: float, pre_norm: bool = False
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            EncoderLayer(dim=dim, num_heads=num_heads, ffn_dim=ffn_dim, dropout=dropout, pre_norm=pre_norm)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim) if pre_norm else nn.Identity()

    def forward(self, tokens: Tensor, position: Tensor, padding_mask: Tensor) -> Tensor:
        """tokens and position (B, S, C), padding_mask (B, S) -> memory (B, S, C)."""
        for layer in self.layers:
            tokens = layer(tokens, position, padding_mask)
        return self.norm(tokens)


class DecoderLayer(FeedForwardLayer):
    """Self-attention among the queries, cross-attention to image features, feed-forward block.

    Cross-attention is passed in as a function, so that DETR (the whole memory) and DE-DETR (keys sampled per query)
    share the layer.
    """

    def __init__(self, *, dim: int, num_heads: int, ffn_dim: int, dropout: float, pre_norm: bool = False) -> None:
        super().__init__(dim=dim, ffn_dim=ffn_dim, dropout=dropout, pre_norm=pre_norm)
        self.self_attn = MultiheadAttention(dim=dim, num_heads=num_heads, dropout=dropout)
        self.multihead_attn = MultiheadAttention(dim=dim, num_heads=num_heads, dropout=dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(
        self, content: Tensor, position: Tensor, cross_attend: Callable[[Tensor], Tensor], blocks: Sequence[Block]
    ) -> Tensor:
        """content and position (B, Q, C) of the queries -> content (B, Q, C).

        cross_attend: maps content to the attended features (B, Q, C). blocks: which queries attend to each other.
        """

        def attend(x: Tensor, position: Tensor, bias: object) -> Tensor:
            placed = x + position
            attended: Tensor = self.self_attn(placed, placed, x, bias=bias)
            return attended

        content = self.residual(content, self.norm1, lambda x: within_blocks(attend, blocks, x, position))
        content = self.residual(content, self.norm2, cross_attend)
        return self.residual(content, self.norm3, self.feed_forward)
