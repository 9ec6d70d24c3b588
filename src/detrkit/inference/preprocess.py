"""The image transform of a model, made from its configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from detrkit.data import EvalTransform

if TYPE_CHECKING:
    from detrkit.models.config import Architecture, DetectorConfig

__all__ = ["eval_transform"]


def eval_transform(config: DetectorConfig[Architecture], *, canvas: tuple[int, int] | None = None) -> EvalTransform:
    """The resize and normalisation for evaluation and prediction.

    canvas: (height, width) that images must fit into, of a model that takes only one size (``Detector.canvas``).
    """
    return EvalTransform(
        short_side=config.input.eval_short_side,
        max_side=config.input.eval_max_side,
        resize=config.input.eval_resize,
        mean=config.input.image_mean or (),
        std=config.input.image_std or (),
        canvas=canvas,
    )
