"""How a model wants its images: the one place where a configuration becomes a transform."""

from __future__ import annotations

from typing import TYPE_CHECKING

from detrkit.data import EvalTransform

if TYPE_CHECKING:
    from detrkit.models.config import Architecture, DetectorConfig

__all__ = ["eval_transform"]


def eval_transform(config: DetectorConfig[Architecture]) -> EvalTransform:
    """Resize and normalisation of evaluation and prediction."""
    return EvalTransform(
        short_side=config.input.eval_short_side,
        max_side=config.input.eval_max_side,
        resize=config.input.eval_resize,
        mean=config.input.image_mean or (),
        std=config.input.image_std or (),
    )
