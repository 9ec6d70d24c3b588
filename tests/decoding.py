"""Internals of deformable detectors for tests: memory, proposals, bias of self-attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from detrkit.nn.proposals import Proposals
from detrkit.nn.queries import Queries, attention_blocks
from detrkit.nn.tokens import Tokens

__all__ = ["bias_of", "memory_of", "proposals_of"]


def memory_of(model: Any, images: Tensor, mask: Tensor) -> Tokens:
    """Return the memory, the input of the decoder."""
    tokens = model.tokens(model.backbone(images, mask), mask)
    memory: Tokens = model.refine(tokens, model.score(tokens)) if hasattr(model, "refine") else model.encoder(tokens)
    return memory


def proposals_of(model: Any, memory: Tokens) -> Proposals:
    """Return the proposals of all tokens."""
    return Proposals.of(*model.candidates(memory), model.enc_class_embed, model.enc_bbox_embed)


def bias_of(queries: Queries, number: int) -> Tensor:
    """Return the bias of self-attention of denoising queries followed by ``number`` matching queries."""
    matching = Queries(content=queries.content.new_zeros(len(queries.content), number, queries.content.shape[-1]))
    (block,) = attention_blocks([queries, matching])
    assert block.blocked is not None
    return torch.as_tensor(block.blocked)
