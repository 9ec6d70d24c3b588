"""Reading COCO results in the numbers of a ground truth: a results list, or a ``predictions.json`` with names."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from detrkit.collection import without_collection
from detrkit.data.clean_rows import clean_annotation, clean_category, clean_owner, id_reader, row_problem
from detrkit.data.coco_json import Json, Row, read_json
from detrkit.data.row_slices import Chunk, RowFile, chunks_of, rows_of_list, seam_of_list, telling_progress
from detrkit.data.values import read_value
from detrkit.errors import DataError
from detrkit.metrics.coco_files import GroundTruth, by_id, in_id_order, packed_mask, packed_masks, rows_by_id
from detrkit.metrics.object_table import IdNumbers, ObjectTable, TableDraft, plain_results, renumbered
from detrkit.side_by_side import in_a_copy

__all__ = ["RowsAhead", "read_results", "reading_ahead"]

_RESULT_KEYS = ("image_id", "category_id", "bbox", "score")
_LEAST_BYTES = 8
"""Of a file for each of the seven numbers of a row, which has 56 bytes for names and signs alone."""


@dataclass(frozen=True, kw_only=True)
class RowsAhead:
    """Rows of a results file that a copy of this process reads meanwhile."""

    seam: int
    """The byte of the file at which they begin; 0: there are none."""
    numbers: Callable[[], NDArray[np.float64] | None]
    """Waits for their numbers (N, 7), with the ids of the file; None: they could not be read so. To be called once."""


class _UncutError(Exception):
    """A file cannot be read in parts after all."""


@dataclass(frozen=True, kw_only=True)
class _Results:
    """Rows of results and what they refer to."""

    chunks: Iterable[Chunk]
    images: IdNumbers
    """Of the ids in the rows, in the ground truth."""
    categories: IdNumbers
    renamed: Callable[[object, int], object] = lambda row, _: row
    """renamed(row, index): the row with the ids of the ground truth."""
    read_ahead: Callable[[Chunk], NDArray[np.float64] | None] = lambda _: None
    """read_ahead(chunk): the numbers (N, 7) of it and of all that follow, if they have been read meanwhile."""


@contextmanager
def reading_ahead(source: object, *, iou_type: str, others: object = None) -> Iterator[RowsAhead]:
    """Context in which a part of a large results file is read meanwhile, for :func:`read_results`.

    others: a file that is read in the same time.
    """
    path = Path(source) if isinstance(source, str | Path) else None
    size = Path(others).stat().st_size if isinstance(others, str | Path) and Path(others).is_file() else 0
    alone = path is None or iou_type == "segm" or _predictions_beside(path) is not None
    if path is None or alone or not (seam := seam_of_list(path, size)):
        yield RowsAhead(seam=0, numbers=lambda: None)
        return
    with in_a_copy(partial(_numbers_from, path, seam), most=path.stat().st_size // _LEAST_BYTES) as numbers:
        yield RowsAhead(seam=seam, numbers=numbers)


def _numbers_from(path: Path, start: int) -> NDArray[np.float64]:
    """The numbers of the rows from a byte on, with the ids of the file; without progress, which the other reader tells.

    Raises:
        _UncutError: they cannot be read so.
    """
    with telling_progress(lambda *_: None):
        found = _identities(_list_rows(path, start=start))
    if found is None:
        raise _UncutError
    return found


def read_results(source: object, truth: GroundTruth, *, iou_type: str, ahead: RowsAhead | None = None) -> ObjectTable:
    """Read results in the numbering of ``truth``; rows of classes it does not list are ignored with a warning.

    ahead: rows of the file that are being read already.

    Raises:
        DataError: no such file, not COCO results, or an invalid row (unknown image, score not a number, …).
    """
    name, masks = str(source) if isinstance(source, str | Path) else "results", iou_type == "segm"
    with ExitStack() as reading:
        ahead = ahead or reading.enter_context(reading_ahead(source, iou_type=iou_type))
        try:
            found = _in_parts(Path(source), truth, ahead) if isinstance(source, str | Path) else None
            table, unknown = _table(found or _whole(source, truth), truth, name, masks=masks)
        except _UncutError:
            table, unknown = _table(_whole(source, truth), truth, name, masks=masks)
    if unknown:
        listed = ", ".join(str(key) for key in in_id_order(unknown))
        message = f"{name}: category ids {listed} ({sum(unknown.values())} rows) are not in {truth.source}"
        if not len(table):
            raise DataError(f"{message}; no row is left. Its ids: {', '.join(map(str, truth.category_numbers))}")
        warnings.warn(f"{message}; left out", stacklevel=3)
    return table


def _table(results: _Results, truth: GroundTruth, name: str, *, masks: bool) -> tuple[ObjectTable, dict[Hashable, int]]:
    """The results, and how many rows have each of the unknown classes."""
    draft = TableDraft(width=7, masks=masks)
    unknown: dict[Hashable, int] = {}
    clean_row = clean_owner if masks else clean_annotation  # masks are scored without boxes

    def where(index: int) -> str:
        return f"{name}: row {index}"

    with without_collection():
        for chunk in results.chunks:
            rest = results.read_ahead(chunk)
            if rest is not None:
                draft.add(rest)
                break
            reader = partial(packed_masks, images=truth.image_rows, where=where, first=chunk.first) if masks else None
            plain = plain_results(chunk.rows if masks else chunk.columns, results.images, results.categories, reader)
            if plain is not None:
                draft.add(*plain)
                continue
            for index, raw in enumerate(chunk.exact(), start=chunk.first):
                row = clean_row(
                    results.renamed(raw, index),
                    where(index),
                    read_image_id=truth.read_image_id,
                    read_category_id=truth.read_category_id,
                )
                image = truth.image_numbers.get(row["image_id"])
                if image is None:
                    raise DataError(
                        f"{where(index)}: image_id {row['image_id']!r} is not among the {len(truth.image_numbers)} "
                        f"images of {truth.source}"
                    )
                if "score" not in row:
                    raise DataError(f"{where(index)}: no score; is this a ground-truth file?")
                score, box, packed = read_value(row, "score", where(index)), [0.0] * 4, []
                if masks:
                    packed.append(packed_mask(row, truth.image(image), where(index)))
                elif (problem := row_problem(row, flat=True)) is not None:
                    raise DataError(f"{where(index)}: {problem}")
                else:
                    box = row["bbox"]
                category = truth.category_numbers.get(row["category_id"])
                if category is None:
                    unknown[row["category_id"]] = unknown.get(row["category_id"], 0) + 1
                else:
                    draft.add([[image, *box, score, category]], packed)
    return draft.done(), unknown


def _in_parts(path: Path, truth: GroundTruth, ahead: RowsAhead) -> _Results | None:
    """The rows of a file, read some thousands at a time; None: the file must be seen whole."""
    if not path.is_file():
        return None
    beside = _predictions_beside(path)
    predictions = None if beside is None else RowFile.read(beside, "annotations")
    if beside is not None:
        known = None if predictions is None else _identities(predictions)
        own = None if known is None else _identities(_list_rows(path))
        if predictions is None or known is None or own is None:
            return None
        if np.array_equal(known, own):
            return _of_predictions(predictions.rest, predictions, truth, str(path))
    else:
        predictions = RowFile.read(path, "annotations")
        if predictions is not None:
            return _of_predictions(predictions.rest, predictions, truth, str(path))
    images, categories = _numbers_of(truth)

    def read_ahead(chunk: Chunk) -> NDArray[np.float64] | None:
        numbers = ahead.numbers() if ahead.seam and chunk.place == ahead.seam else None
        return None if numbers is None else renumbered(numbers.reshape(-1, 7), images, categories)

    chunks = _list_rows(path, seam=ahead.seam)
    return _Results(chunks=chunks, images=images, categories=categories, read_ahead=read_ahead)


def _whole(source: object, truth: GroundTruth) -> _Results:
    """The rows of a file that cannot be read in parts, or of data in memory.

    Raises:
        DataError: no such file, or not COCO results.
    """
    data, name = read_json(source, "results")
    if isinstance(data, list) and isinstance(source, str | Path):
        data = _named_results(Path(source), data) or data
    if isinstance(data, Mapping):
        return _of_predictions(data, None, truth, name)
    if not isinstance(data, Sequence) or isinstance(data, str):
        raise DataError(f"{name}: COCO results are a JSON list of {{image_id, category_id, bbox, score}}")
    images, categories = _numbers_of(truth)
    return _Results(chunks=chunks_of(data), images=images, categories=categories)


def _numbers_of(truth: GroundTruth) -> tuple[IdNumbers, IdNumbers]:
    return IdNumbers(truth.image_numbers), IdNumbers(truth.category_numbers)


def _list_rows(path: Path, **where: int) -> Iterator[Chunk]:
    for chunk in rows_of_list(path, **where):
        if chunk is None:
            raise _UncutError
        yield chunk


def _identities(chunks: Iterable[Chunk]) -> NDArray[np.float64] | None:
    """The numbers (N, 7) of results of boxes with the ids of their file; None: not all are as COCO describes them."""
    draft = TableDraft(width=7, masks=False)
    with without_collection():
        for chunk in chunks:
            plain = plain_results(chunk.columns, None, None)
            if plain is None:
                return None
            draft.add(*plain)
    return draft.done().numbers


def _of_predictions(predictions: Json, chunks: Iterable[Chunk] | None, truth: GroundTruth, name: str) -> _Results:
    """A ``predictions.json``: images are matched by file name and classes by name, since ids may differ.

    chunks: its annotations, if they are read in parts.
    """
    for key in ("images",) if chunks is not None else ("images", "annotations"):
        if not isinstance(predictions.get(key), Sequence):
            raise DataError(f"{name}: results are a list, or an object with images and annotations; no '{key}' here")
    images = rows_by_id(predictions["images"], f"{name}: images")
    image_ids = {key: _image_named(row["file_name"], truth, name) for key, row in images.items()}
    listed = predictions.get("categories", [])
    categories = by_id(listed, f"{name}: categories", partial(clean_category, read_id=id_reader(listed)))
    ids_by_name = dict(zip(truth.class_names, truth.category_numbers, strict=True))
    category_ids = {key: ids_by_name.get(row["name"], key) for key, row in categories.items()}
    read_image_id, read_category_id = id_reader(predictions["images"]), id_reader(listed)

    def renamed(row: object, index: int) -> Row:
        where = f"{name}: annotations[{index}]"
        clean = clean_owner(row, where, read_image_id=read_image_id, read_category_id=read_category_id)
        if clean["image_id"] not in image_ids:
            raise DataError(f"{where} names no image of the file: image_id {clean['image_id']!r}")
        category_id = category_ids.get(clean["category_id"], clean["category_id"])
        return {**clean, "image_id": image_ids[clean["image_id"]], "category_id": category_id}

    numbers = truth.category_numbers
    return _Results(
        chunks=chunks_of(predictions["annotations"]) if chunks is None else chunks,
        images=IdNumbers({key: truth.image_numbers[known] for key, known in image_ids.items()}),
        categories=IdNumbers(
            numbers | {key: numbers[known] for key, known in category_ids.items() if known in numbers}
        ),
        renamed=renamed,
    )


def _predictions_beside(path: Path) -> Path | None:
    beside = path.with_name("predictions.json")
    return beside if path.name == "results.json" and beside.is_file() else None


def _named_results(path: Path, rows: list[object]) -> Row | None:
    """The ``predictions.json`` beside the ``results.json`` of ``detrkit predict``: the same rows, and names of images.

    The ids of images that lie in no data set are 1, 2, …, which may be those of other images in the ground truth.
    """
    beside = _predictions_beside(path)
    if beside is None:
        return None
    try:
        predictions, _ = read_json(beside, "results")
    except DataError:
        return None
    if not isinstance(predictions, dict) or not isinstance(predictions.get("annotations"), list):
        return None
    known = [{key: row.get(key) for key in _RESULT_KEYS} for row in predictions["annotations"] if isinstance(row, dict)]
    same = known == [{key: row.get(key) for key in _RESULT_KEYS} for row in rows if isinstance(row, dict)]
    return predictions if same and len(known) == len(rows) else None


def _image_named(file_name: str, truth: GroundTruth, name: str) -> Hashable:
    """The id of the image of the ground truth with this name, else with this name in any folder."""
    whole, base = truth.images_named
    found = whole.get(file_name) or base.get(PurePosixPath(file_name).name, [])
    if len(found) == 1:
        return found[0]
    if not found:
        raise DataError(
            f"{name}: image '{file_name}' is not among the images of {truth.source}; score results of its images "
            "alone ('detrkit eval --data DIR' predicts just those of a split)"
        )
    ids = f"ids {', '.join(map(str, found[:-1]))} and {found[-1]}"
    raise DataError(
        f"{name}: image '{file_name}' occurs more than once among the images of {truth.source} ({ids}); results cannot "
        "be assigned by name"
    )
