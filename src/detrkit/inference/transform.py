"""How a model wants its images: the one place where a configuration becomes a transform."""

from __future__ import annotations

from typing import TYPE_CHECKING

from detrkit.data import EvalTransform

if TYPE_CHECKING:
    from detrkit.models import DetectorConfig

__all__ = ["eval_transform"]


def eval_transform(config: DetectorConfig) -> EvalTransform:
    """Resize and normalisation of evaluation and prediction."""
    return EvalTransform(
        short_side=config.eval_short_side,
        max_side=config.eval_max_side,
        resize=config.eval_resize,
        mean=config.image_mean or (),
        std=config.image_std or (),
    )
