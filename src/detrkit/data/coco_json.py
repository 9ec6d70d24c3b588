"""Reading COCO JSON files.

Training, ``data check``, conversion and scoring share this reader, and :mod:`detrkit.data.clean_rows` for the rows.
Does not import torch, so that scoring starts at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from detrkit.data.row_slices import Chunk, RowFile, chunks_of
from detrkit.errors import DataError
from detrkit.files import check_regular
from detrkit.structures import FREQUENCIES, NEGATIVES, NOT_EXHAUSTIVE

__all__ = [
    "Json",
    "Row",
    "annotation_lists",
    "image_file",
    "is_federated",
    "lvis_problems",
    "read_annotations",
    "read_json",
]

Row = dict[str, Any]
"""One JSON object; its values may have any type until they are checked."""
Json = Mapping[str, Any]
"""A JSON object that is only read."""


def read_json(
    source: object, what: str = "annotation", *, change: Callable[[Row], Row] | None = None
) -> tuple[object, str]:
    """Read a JSON file.

    Args:
        source: a path, or data that are parsed already and returned unchanged.
        what: the kind of file, for messages.
        change: called with every JSON object while the file is parsed, to keep less of it in memory.

    Returns:
        The parsed data and their name for messages: the path, or ``what`` for data that are parsed already.

    Raises:
        DataError: the file is missing, not text, or not JSON.
    """
    if not isinstance(source, str | Path):
        return source, what

    path = Path(source)
    check_regular(path)
    try:
        data = path.read_bytes()
        text = data.decode(json.detect_encoding(data), "surrogatepass")
        del data  # of COCO's size; parsing needs the text alone
        return json.loads(text, object_hook=change), str(path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such {what} file") from error
    except IsADirectoryError as error:
        hint = f"; of a data folder: detrkit data convert {path} --to coco --out FILE" if what == "ground truth" else ""
        raise DataError(f"{path}: the {what} is a JSON file, but this is a folder{hint}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: is not JSON: {error.msg} in line {error.lineno}") from error
    except ValueError as error:  # Python reads no integers of more than 4300 digits
        raise DataError(f"{path}: has a number of thousands of digits, which no {what} has") from error
    except RecursionError as error:
        raise DataError(f"{path}: is nested too deeply for an {what} file") from error


def read_annotations(source: object, what: str = "annotation") -> tuple[object, Iterable[Chunk], str]:
    """Read COCO annotations, the rows some thousands at a time where the file allows it.

    Returns:
        The parsed data, whose list ``annotations`` is empty if its rows were left out; the annotations; the name of the
        data for messages.

    Raises:
        DataError: as ``read_json`` raises it, or not COCO annotations.
    """
    if isinstance(source, str | Path):
        found = RowFile.read(Path(source), "annotations")
        if found is not None:
            return {**found.rest, "annotations": []}, found, str(source)
    data, name = read_json(source, what)
    return data, chunks_of(annotation_lists(data, name)[1]), name


def annotation_lists(data: object, name: object) -> tuple[Sequence[Row], Sequence[Row], Sequence[Row]]:
    """The lists images, annotations and categories of parsed COCO annotations; ``name`` stands for them in messages.

    Raises:
        DataError: not COCO annotations.
    """
    if isinstance(data, list):
        raise DataError(
            f"{name}: is a list, which COCO uses for results; annotations are an object with the keys images, "
            "annotations and categories"
        )
    found = []
    for key in ("images", "annotations", "categories"):
        rows = data.get(key) if isinstance(data, Mapping) else None
        if not isinstance(rows, Sequence) or isinstance(rows, str):
            raise DataError(f"{name}: is not COCO JSON: it has no list '{key}'")
        found.append(rows)
    images, annotations, categories = found
    return images, annotations, categories


def image_file(image: Json) -> str:
    """The file name of an image; for LVIS, which has only URLs, folder and name: val2017/000000397133.jpg."""
    name = image.get("file_name")
    return name if isinstance(name, str) else "/".join(str(image.get("coco_url", "")).split("/")[-2:])


def is_federated(images: Sequence[Json]) -> bool:
    """Whether the images list classes that are verified to be absent, as in LVIS."""
    return any(NEGATIVES in image for image in images)


def lvis_problems(images: Sequence[Json], categories: Sequence[Json]) -> Iterator[str]:
    """Problems in the LVIS fields (class lists of images, frequencies of categories), one line per problem."""
    known = {row["id"] for row in categories}
    for image in images:
        for key in (NEGATIVES, NOT_EXHAUSTIVE):
            ids = image.get(key)
            if not isinstance(ids, list | tuple):
                yield f"image id {image['id']} has no list '{key}', which LVIS annotations give for every image"
                continue
            unknown = [number for number in ids if not isinstance(number, int | str | float) or number not in known]
            if unknown:
                listed = ", ".join(map(repr, unknown))
                yield f"image id {image['id']}: {key} has {listed}, which the categories do not have"
    for row in categories:
        if row.get("frequency") not in FREQUENCIES:
            yield f"category id {row['id']}: frequency is {row.get('frequency')!r}, but LVIS has 'r', 'c' or 'f'"
