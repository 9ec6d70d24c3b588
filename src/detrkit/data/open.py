"""Reading the annotated images of a split. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from detrkit.data.annotated_images import AnnotatedImages
from detrkit.data.build_records import build_records
from detrkit.data.formats import Source, explained, read_source
from detrkit.data.once import remembered
from detrkit.data.records import ImageRecord, OnError, ScoreProtocol, Table, frequencies_of
from detrkit.data.repeats import repeat_factors, with_copies
from detrkit.data.segments import TASKS
from detrkit.data.subsets import published_sample, sample_table
from detrkit.errors import DataError
from detrkit.structures import Categories

__all__ = ["load_source"]

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
) -> AnnotatedImages:
    """The annotated images of a source; arguments as in ``load_dataset``."""
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
    return AnnotatedImages(
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
