"""The published formulations of DE-DETR and Relation-DETR, re-expressed in plain torch around models of this package.

Only what the published repositories do in another way is here: frozen batch norm in two steps, feed-forward blocks with
every intermediate kept, grid sampling, the full relation with its features kept, keys and values pooled by image and
level with torchvision's RoIAlign and projected afterwards, one criterion pass per layer. Everything else is
shared with the package, which favours the published side. Parameters keep their names, so that both sides can be
compared with the same recorded outputs.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou, roi_align

from detrkit.nn.backbone.frozen_norm import FrozenBatchNorm
from detrkit.nn.position import sine_embedding
from detrkit.nn.relation import box_relation
from detrkit.nn.transformer import FeedForwardLayer
from detrkit.ops.boxes import cxcywh_to_xyxy
from detrkit.structures import Predictions, Target

__all__ = ["detr_losses", "publish", "publish_relation"]


class _TwoStepNorm(nn.Module):
    """Frozen batch norm as a product and a sum."""

    def __init__(self, norm: FrozenBatchNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, mean, variance = (
            getattr(self.norm, name).view(1, -1, 1, 1) for name in ("weight", "bias", "running_mean", "running_var")
        )
        scale = weight * (variance + self.norm.eps).rsqrt()
        y: Tensor = self.norm.act(x * scale + (bias - mean * scale))
        return y


def publish(model: Any) -> Any:
    """Turn a model of this package into the published form, in place; also set ``DETRKIT_BACKEND=reference``."""
    for parent in list(model.backbone.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, FrozenBatchNorm):
                setattr(parent, name, _TwoStepNorm(child))
    for layer in model.modules():
        if isinstance(layer, FeedForwardLayer):
            layer.feed_forward = types.MethodType(_feed_forward, layer)
            layer.residual = types.MethodType(_residual, layer)
    if getattr(model.decoder, "relation", None) is not None:
        publish_relation(model.decoder.relation)
    if hasattr(model.decoder, "sample_keys"):
        model.decoder.number = model.config.architecture.num_queries
        model.decoder.sample_keys = types.MethodType(_sample_keys, model.decoder)
        model.decoder.run_layer = types.MethodType(_run_layer, model.decoder)
    return model


def publish_relation(relation: Any) -> Any:
    """Turn a full relation into the published form, in place."""
    relation.rows = None
    relation.forward = types.MethodType(_relation, relation)
    return relation


def _feed_forward(layer: Any, x: Tensor) -> Tensor:
    y: Tensor = layer.linear2(F.dropout(F.relu(layer.linear1(x)), layer.dropout, layer.training))
    return y


def _residual(layer: Any, x: Tensor, norm: nn.Module, block: Any) -> Tensor:
    y: Tensor = norm(x + F.dropout(block(x), layer.dropout, layer.training))
    return y


def _relation(relation: Any, source: Tensor, target: Tensor) -> Tensor:
    """The bias as a convolution of all features, which has one copy of them more."""
    with torch.no_grad():
        values = box_relation(source.float(), target.float()) * relation.scale
        embedded = sine_embedding(values, relation.features, relation.temperature).flatten(-2).permute(0, 3, 1, 2)
    return torch.relu(relation.pos_proj(embedded.to(relation.pos_proj.weight.dtype)))


def _sample_keys(decoder: Any, layer: nn.Module, memory: Any, boxes: Sequence[Tensor]) -> tuple[Any, Tensor | None]:
    """Content and position of the keys of every query: (B, Q, S, C) each.

    The first layer copies the whole encoded level for every query (padding mask (B, S)); later ones pool both from the
    boxes of the layer before, also of unencoded levels.
    """
    encoded = memory.encoded
    if not boxes:
        queries = decoder.number
        copies = [x[:, None].expand(-1, queries, -1, -1).contiguous() for x in (encoded.content, encoded.position)]
        return copies, encoded.padding_mask
    architecture, levels = decoder.architecture, len(memory.shapes)
    corners = cxcywh_to_xyxy(boxes[-1].detach()) * memory.sizes_px.flip(1).repeat(1, 2)[:, None]
    position = memory.position.expand_as(memory.content)
    both = torch.cat((memory.content, position), dim=-1).split([h * w for h, w in memory.shapes], dim=1)
    images = []
    for image, regions in enumerate(corners):
        pooled = [
            roi_align(
                both[level][image].T.unflatten(1, memory.shapes[level])[None],
                [regions],
                architecture.roi_resolution,
                1 / memory.strides[level],
                architecture.roi_sampling_ratio,
                architecture.roi_aligned,
            ).flatten(2)
            for level in range(levels)
        ]
        images.append(torch.cat(pooled, dim=2).transpose(1, 2))
    content, position = torch.stack(images).chunk(2, dim=-1)
    return [content, position], None


def _run_layer(
    decoder: Any,
    index: int,
    content: Tensor,
    position: Tensor,
    reference: Tensor,
    keys: Sequence[Tensor],
    mask: Tensor | None,
    blocks: Any,
) -> Tensor:
    layer = decoder.layers[index]
    attention = layer.multihead_attn

    def attend(x: Tensor) -> Tensor:
        """One problem per query: a query, its own keys and values; the weights are made and averaged, as published."""
        batch, queries, dim = x.shape
        values, places = (part.flatten(0, 1).transpose(0, 1) for part in keys)  # (S, B·Q, C)
        query = (x + position).reshape(1, batch * queries, dim)
        padding = None if mask is None else mask[:, None].expand(-1, queries, -1).flatten(0, 1)
        attended, _ = F.multi_head_attention_forward(
            query, values + places, values, dim, attention.num_heads, attention.in_proj_weight, attention.in_proj_bias,
            None, None, False, attention.dropout, attention.out_proj.weight, attention.out_proj.bias,
            training=attention.training, key_padding_mask=padding, need_weights=True,
        )  # fmt: skip
        return attended.view(batch, queries, dim)

    output: Tensor = layer(content, position, attend, blocks)
    return output


def detr_losses(out: Predictions, targets: list[Target], no_object_weight: float = 0.1) -> dict[str, Tensor]:
    """Losses of DETR, layer by layer: cost of every query with every object of the batch, one assignment per image.

    Unweighted, by their names in logs: ``loss_class``, ``loss_bbox``, ``loss_giou`` of the last layer, with the
    number of the layer for the others.
    """
    layers, objects = len(out.logits), sum(len(target) for target in targets)
    labels = torch.cat([target.labels for target in targets])
    wanted = torch.cat([target.boxes for target in targets])
    losses: dict[str, Tensor] = {}
    for layer in (layers - 1, *range(layers - 1)):
        logits, boxes = out.logits[layer], out.boxes[layer]
        with torch.no_grad():
            flat = boxes.flatten(0, 1)
            cost = 5 * torch.cdist(flat, wanted, p=1) - logits.flatten(0, 1).softmax(-1)[:, labels]
            cost = cost - 2 * generalized_box_iou(cxcywh_to_xyxy(flat), cxcywh_to_xyxy(wanted))
            parts = cost.view(*logits.shape[:2], -1).cpu().split([len(target) for target in targets], dim=-1)
            pairs = [linear_sum_assignment(part[image]) for image, part in enumerate(parts)]
        batch = torch.cat([torch.full((len(query),), image) for image, (query, _) in enumerate(pairs)])
        query = torch.cat([torch.as_tensor(query) for query, _ in pairs])
        classes = torch.full(logits.shape[:2], logits.shape[-1] - 1)
        classes[batch, query] = torch.cat(
            [target.labels[chosen] for target, (_, chosen) in zip(targets, pairs, strict=True)]
        )
        weight = torch.ones(logits.shape[-1])
        weight[-1] = no_object_weight
        found = boxes[batch, query]
        aims = torch.cat([target.boxes[chosen] for target, (_, chosen) in zip(targets, pairs, strict=True)])
        giou = torch.diag(generalized_box_iou(cxcywh_to_xyxy(found), cxcywh_to_xyxy(aims)))
        end = "" if layer == layers - 1 else f"_{layer}"
        losses[f"loss_class{end}"] = F.cross_entropy(logits.transpose(1, 2), classes, weight)
        losses[f"loss_bbox{end}"] = F.l1_loss(found, aims, reduction="none").sum() / objects
        losses[f"loss_giou{end}"] = (1 - giou).sum() / objects
    return losses
