"""The images that a recipe names."""

from __future__ import annotations

from pathlib import Path

from detrkit.config import Recipe, SplitFiles
from detrkit.data import DetectionDataset, load_dataset
from detrkit.errors import DataError

__all__ = ["load_recipe_data", "require_root"]


def load_recipe_data(recipe: Recipe, split: str, task: str) -> DetectionDataset:
    """Load a split for a task as an evaluation sees it: every image once.

    Raises:
        DataError: images or annotations cannot be used.
    """
    files = recipe.data.train if split == "train" else recipe.data.val
    require_root(recipe, files)
    return load_dataset(
        recipe.data.root,
        split=split,
        format=recipe.data.format,
        annotations=files.annotations,
        images=files.images,
        on_error=recipe.data.on_error,
        task=task,
        max_detections=recipe.data.max_detections,
    )


def require_root(recipe: Recipe, files: SplitFiles) -> None:
    """Check that the data folder is there: a recipe, or a run, may have been made in another folder.

    Raises:
        DataError: it is not, and the recipe does not say where the annotations of the split are.
    """
    if files.annotations is None and not Path(recipe.data.root).exists():
        raise DataError(
            f"{recipe.data.root}: no such data folder; data.root=DIR says where the data of the recipe are now"
        )
