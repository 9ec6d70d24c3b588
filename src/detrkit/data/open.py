"""Loading a data set from a folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from detrkit.data.build_records import build_records
from detrkit.data.dataset import DetectionDataset
from detrkit.data.formats import Source, explained, find_source, read_source
from detrkit.data.once import remembered
from detrkit.data.records import ImageRecord, OnError, ScoreProtocol, Table, frequencies_of
from detrkit.data.samplers import repeat_factors, with_copies
from detrkit.data.segments import TASKS
from detrkit.data.subsets import published_sample, sample_table
from detrkit.errors import DataError, did_you_mean
from detrkit.structures import Categories

__all__ = ["load_dataset", "load_source"]

# How results are scored where the task decides it and not the data.
_PROTOCOLS: dict[str, ScoreProtocol] = {"sem": "semantic", "pan": "panoptic"}


@dataclass(frozen=True)
class _Split:
    """The annotations of a split or of a sample of it, as cached. notes: one line per row that was left out."""

    records: list[ImageRecord]
    categories: Categories
    notes: list[str]
    protocol: ScoreProtocol
    frequencies: list[str] | None


def load_dataset(
    root: str | Path,
    *,
    split: str = "train",
    task: str = "det",
    format: str = "auto",
    annotations: str | Path | None = None,
    images: str | Path | None = None,
    on_error: OnError = "raise",
    sample_rate: float | None = None,
    sample_repeat: bool = False,
    sample_seed: int = 0,
    repeat: int = 1,
    repeat_threshold: float | None = None,
    max_detections: int | None = None,
) -> DetectionDataset:
    """Load one split of a data folder; images are opened only when samples are requested.

    Args:
        root: the data folder, or its ``data.yaml`` or COCO file.
        split: train, val or test.
        task: det, inst, sem or pan: which annotations become objects, and whether they have masks.
        format: auto, or a key of ``detrkit.data.formats.FORMATS``: coco, yolo, voc, …
        annotations: a COCO file, relative to ``root`` or to the working directory, for unusual layouts.
        images: the image folder of ``annotations``, likewise relative.
        on_error: "raise" an error for bad boxes and images, or "skip" and count them.
        sample_rate: fraction of the images to use. This is the published COCO subset if ``../CocoFormatAnnos`` has its
            file, otherwise a subset chosen by ``sample_seed``; smaller subsets are contained in larger ones.
        sample_repeat: repeat the images int(1 / sample_rate) times, so that an epoch keeps its length.
        sample_seed: the seed of the subset.
        repeat: how many times to list every image, for longer epochs on few images.
        repeat_threshold: repeat images more often if one of their classes occurs in less than this fraction of the
            images, for example 0.001 (``detrkit.data.samplers.repeat_factors``).
        max_detections: detections of an image that AP counts; None: as many as the protocol says.

    Raises:
        DataError: the data cannot be used; the message names the file, key or value.
    """
    if on_error not in ("raise", "skip"):
        raise DataError(f"on_error '{on_error}' is unknown.{did_you_mean(on_error, ['raise', 'skip'])}")
    if task not in TASKS:
        raise DataError(f"task '{task}' is unknown.{did_you_mean(task, TASKS)}")
    root = Path(root)
    source = find_source(
        root,
        split,
        task=task,
        format=format,
        annotations=None if annotations is None else Path(annotations),
        images=None if images is None else Path(images),
    )
    return load_source(
        source,
        task=task,
        on_error=on_error,
        sample_rate=sample_rate,
        sample_repeat=sample_repeat,
        sample_seed=sample_seed,
        repeat=repeat,
        repeat_threshold=repeat_threshold,
        max_detections=max_detections,
    )


def load_source(
    source: Source,
    *,
    task: str = "det",
    on_error: OnError = "raise",
    sample_rate: float | None = None,
    sample_repeat: bool = False,
    sample_seed: int = 0,
    repeat: int = 1,
    repeat_threshold: float | None = None,
    max_detections: int | None = None,
) -> DetectionDataset:
    """Load the data set of a source; arguments as in ``load_dataset``."""
    published = None if sample_rate is None else published_sample(source.root, source.annotations, sample_rate)
    if published is not None:
        source = replace(source, annotations=published)
    sampled = sample_rate is not None and published is None
    arguments = (source, task, on_error, sample_rate if sampled else None, sample_seed)
    split = remembered(arguments, lambda: _read_split(*arguments))
    records = split.records
    if sample_repeat:
        if sample_rate is None:
            raise DataError("sample_repeat needs sample_rate")
        repeat *= max(1, int(1 / sample_rate + 1e-9))
    chances = None
    if repeat_threshold is not None:
        positions, chances = with_copies(repeat_factors([r.labels for r in records], threshold=repeat_threshold))
        records, chances = [records[position] for position in positions], np.tile(chances, repeat)
    return DetectionDataset(
        records=records * repeat,
        categories=split.categories,
        name=source.root.resolve().name,
        task=task,
        on_error=on_error,
        load_errors=split.notes,
        protocol=split.protocol,
        max_detections=max_detections,
        frequencies=split.frequencies,
        chances=chances,
    )


def _protocol(table: Table, task: str) -> ScoreProtocol:
    """How results of a task on these annotations are scored."""
    instances = {} if table.instance_protocol is None else {"inst": table.instance_protocol}
    return {**_PROTOCOLS, **instances}.get(task, table.protocol)


def _read_split(source: Source, task: str, on_error: OnError, sample_rate: float | None, sample_seed: int) -> _Split:
    table = read_source(replace(source, segmentations="packed" if TASKS[task].masks else "none"))
    if sample_rate is not None:
        table = sample_table(table, seed=sample_seed, rate=sample_rate)
    with explained(source):
        records, categories, notes = build_records(table, task=task, on_error=on_error)
    return _Split(records, categories, notes, _protocol(table, task), frequencies_of(table))
