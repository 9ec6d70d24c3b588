"""The images that a recipe names."""

from __future__ import annotations

from pathlib import Path

from detrkit.config import Recipe, SplitFiles
from detrkit.data import DetectionDataset, load_dataset
from detrkit.errors import DataError

__all__ = ["load_recipe_data"]


def load_recipe_data(recipe: Recipe, split: str, task: str, *, sampled: bool = False) -> DetectionDataset:
    """Load a split for a task, every image once.

    sampled: only the images that the recipe samples, as often as it repeats them.

    Raises:
        DataError: images or annotations cannot be used.
    """
    data = recipe.data
    files = data.train if split == "train" else data.val
    _require_root(data.root, files)
    return load_dataset(
        data.root,
        split=split,
        format=data.format,
        annotations=files.annotations,
        images=files.images,
        on_error=data.on_error,
        sample_rate=data.sample_rate if sampled else None,
        sample_repeat=data.sample_repeat and sampled,
        sample_seed=data.sample_seed,
        task=task,
        max_detections=data.max_detections,
        repeat=data.repeat if sampled else 1,
        repeat_threshold=data.sampling_threshold if sampled and data.sampling == "repeat_factor" else None,
    )


def _require_root(root: str, files: SplitFiles) -> None:
    """Check that the data folder is there: a recipe, or a run, may have been made in another folder.

    Raises:
        DataError: it is not, and the recipe does not say where the annotations of the split are.
    """
    if files.annotations is None and not Path(root).exists():
        raise DataError(f"{root}: no such data folder; data.root=DIR says where the data of the recipe are now")
