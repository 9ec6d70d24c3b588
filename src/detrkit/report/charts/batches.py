"""A training batch as the model sees it: after augmentation, with its targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from detrkit.drawing.marks import Mark, draw_captions, draw_marks
from detrkit.drawing.palette import category_color, instance_colors
from detrkit.drawing.tint import tint_masks
from detrkit.report.charts.tiles import sheet
from detrkit.structures import Categories, Masks

if TYPE_CHECKING:
    from detrkit.structures import Batch, Target

__all__ = ["draw_batch"]

_MOST = 16  # images on a sheet
_ALL_NAMED = 25  # objects of an image
_LEAST = 360  # pixels of the longer side of a drawn image: lines and names need room


def draw_batch(
    batches: Sequence[Batch], categories: Categories, *, mean: Sequence[float], std: Sequence[float]
) -> Image.Image:
    """Draw the images of a step with their boxes or masks; padding is left out.

    Args:
        batches: its micro-batches, normalised.
        categories: the classes.
        mean: what was subtracted from RGB in [0, 1].
        std: what it was divided by.
    """
    pictures, captions = [], []
    for batch in batches:
        for index, target in enumerate(batch.targets):
            valid = ~batch.padding_mask[index].cpu().numpy()
            height, width = int(valid.any(1).sum()), int(valid.any(0).sum())
            pixels = batch.images[index, :, :height, :width].float().cpu().numpy().transpose(1, 2, 0)
            pixels = (pixels * np.asarray(std) + np.asarray(mean)).clip(0, 1)
            picture = Image.fromarray((255 * pixels).round().astype(np.uint8))
            pictures.append(_with_targets(picture, target, categories))
            captions.append(f"image {target.image_id}: {width}x{height}, {len(target)} objects")
    pictures, captions = pictures[:_MOST], captions[:_MOST]
    return sheet(pictures, columns=min(4, -(-len(pictures) // 2) if len(pictures) > 3 else 3), captions=captions)


def _with_targets(picture: Image.Image, target: Target, categories: Categories) -> Image.Image:
    labels = target.labels.tolist()
    height, width = picture.height, picture.width
    scale = -(-_LEAST // max(width, height))
    picture = picture.resize((scale * width, scale * height), Image.Resampling.BICUBIC)
    centre = target.boxes.cpu().numpy() * np.asarray([picture.width, picture.height] * 2)
    boxes = np.concatenate([centre[:, :2] - centre[:, 2:] / 2, centre[:, :2] + centre[:, 2:] / 2], axis=1)
    colors = [category_color(categories[label], label) for label in labels]
    if target.masks is not None:
        colors = instance_colors(colors)
        inside = target.masks[:, :height, :width].cpu().numpy().repeat(scale, axis=1).repeat(scale, axis=2)
        tint_masks(picture, Masks.of(inside, (picture.height, picture.width)), colors)
    marks = [
        Mark(tuple(box), label, str(categories[label].name), shade=color)
        for box, label, color in zip(boxes.tolist(), labels, colors, strict=True)
    ]
    if target.masks is not None:
        draw_captions(picture, marks, fitting=True, most=1 / 12)
    else:
        draw_marks(picture, marks, labels="all" if len(marks) <= _ALL_NAMED else "auto")
    return picture
