"""Image ids of the data set that predicted images belong to, so that their results can be scored against its file."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from detrkit.data.formats import FORMATS, Format, Source, read_source
from detrkit.data.formats.base import SPLIT_WORDS
from detrkit.errors import DataError
from detrkit.inference.sources import ImageInput

__all__ = ["DataSetIds", "data_set_ids"]

# Formats whose files say the ids of images.
_WITH_IDS = ("coco", "roboflow", "lvis", "coco_panoptic")
# Folders above that of the images in which the data set may begin, as in data/images/val.
_LEVELS = 3


@dataclass(frozen=True)
class DataSetIds:
    """Ids of images. origin: the annotation file that lists them · by_path: of every image, by its real path."""

    origin: Path
    by_path: dict[str, int]

    def of(self, images: Iterable[ImageInput]) -> dict[str, int]:
        """The id of each image by its file name; images that the file does not list have numbers above its ids."""
        unlisted = itertools.count(max(self.by_path.values()) + 1)
        found = {image.file_name: self.by_path.get(os.path.realpath(image.source)) for image in images}
        return {name: next(unlisted) if number is None else number for name, number in found.items()}


def data_set_ids(folders: Sequence[Path], images: Iterable[ImageInput]) -> DataSetIds | None:
    """The ids that a data set gives the images of folders, or None if none of its annotation files lists most of them.

    folders: folders to predict; the data set is looked for in them and in the folders above.
    """
    wanted = {os.path.realpath(image.source) for image in images}
    for source in _sources(folders):
        try:
            table = read_source(replace(source, segmentations="none"))
        except DataError:
            continue
        by_path = {os.path.realpath(table.path(image)): image["id"] for image in table.images}
        if len(by_path) < len(table.images) or min(by_path.values(), default=0) < 0:
            continue  # a file that is listed twice has no one id
        if 2 * len(wanted & by_path.keys()) > len(wanted):
            return DataSetIds(table.origin, by_path)
    return None


def _sources(folders: Sequence[Path]) -> Iterator[Source]:
    """The annotation files of the nearest data set, those of a split that the folders are named after first.

    COCO files of other names, such as Label Studio's, are looked at too, in every folder up to that data set.
    """
    paths = [folder.resolve() for folder in folders]
    for root in dict.fromkeys(above for path in paths for above in (path, *path.parents)[: _LEVELS + 1]):
        forms = [FORMATS[name] for name in _WITH_IDS]
        certain = [form for form in forms if form.recognises(root)]
        sources = [source for form in forms if form in certain or form.may_be(root) for source in _splits(form, root)]
        if sources:
            named = [part.lower() for path in paths for part in Path(os.path.relpath(path, root)).parts]
            yield from sorted(sources, key=lambda source: not any(source.split in part for part in named))
        if certain:
            return


def _splits(form: Format, root: Path) -> Iterator[Source]:
    for split in SPLIT_WORDS:
        try:
            source = form.locate(root, split)
        except DataError:  # several files fit
            continue
        if source is not None:
            yield source
