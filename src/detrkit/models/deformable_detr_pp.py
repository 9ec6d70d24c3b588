"""Deformable DETR++ of the Relation-DETR repository (Hou et al., ECCV 2024).

Two-stage Deformable DETR in which content and position of a query are made from its box apart, each by a linear map and
a norm of its own. The repository means to bias self-attention by the position relation too, computes it and passes
it on to nothing; so do the parameters here: they are kept for its files, take no part and are not trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from detrkit.models.deformable_detr import DeformableDETR, DeformableDETRConfig
from detrkit.nn.relation import PositionRelation

__all__ = ["DeformableDETRPP", "DeformableDETRPPConfig"]


@dataclass(frozen=True, kw_only=True)
class DeformableDETRPPConfig(DeformableDETRConfig):
    """Configuration of Deformable DETR++: always two-stage."""

    ffn_dim: int = 2048
    dropout: float = 0.0
    refine_boxes: bool = True
    two_stage: bool = True
    projection_bias: bool = False
    backbone: str = "resnet50.tv2_in1k"
    eval_resize: Literal["round", "float32_truncate"] = "float32_truncate"
    size_divisor: int = 32
    relation_detr_start: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Checks values; raises ValueError naming the field."""
        super().__post_init__()
        if not self.two_stage:
            raise ValueError("Deformable DETR++ starts from the proposals of its encoder: two_stage must be True")


class DeformableDETRPP(DeformableDETR):
    """Deformable DETR++ with modules passed in; :meth:`from_config` builds the published one."""

    config: DeformableDETRPPConfig
    eps = 1e-3

    def _build_queries(self) -> None:
        dim = self.config.hidden_dim
        self._build_proposals()
        self.pos_trans = nn.Linear(2 * dim, dim)
        self.pos_trans_norm = nn.LayerNorm(dim)
        head = nn.Linear(2 * dim, dim)
        self.decoder.ref_point_head = nn.Sequential(head, nn.LayerNorm(dim))
        for linear in (self.pos_trans, head):
            nn.init.xavier_uniform_(linear.weight)
        self.decoder.relation = PositionRelation(num_heads=self.config.num_heads).requires_grad_(False)

    def _from_boxes(self, embedded: Tensor) -> tuple[Tensor, Tensor]:
        return self.pos_trans_norm(self.pos_trans(embedded)), self.decoder.ref_point_head(embedded)
