"""Images on which exported models are proved and timed."""

from __future__ import annotations

from pathlib import Path

from detrkit.data.listing import images_in
from detrkit.errors import DataError
from detrkit.weights.find import ASSETS

__all__ = ["example_images"]


def example_images(images: str | Path | None, data: str | Path | None) -> list[Path]:
    """Image files in order of their names: of the folder ``images``, else of ``data``, else the embedded blood smears.

    Raises:
        DataError: there are none.
    """
    folder = Path(images or data or ASSETS / "blood_cells" / "images")
    found = images_in(folder, recursive=True)
    if not found:
        raise DataError(f"{folder}: no images")
    return found
