"""Checks of which files were read: what the annotations leave out, and what detrkit does not use."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from detrkit.data.findings import Finding, finding
from detrkit.data.formats import Source
from detrkit.data.formats.base import SPLIT_WORDS
from detrkit.data.listing import IMAGE_SUFFIXES, files_in, images_in
from detrkit.data.records import Table

__all__ = ["file_findings", "reading_findings"]

# Files beside images that are no images and need no mention.
_COMPANION_NAMES = ".txt .xml .json .yaml .yml .csv .tsv .md .names .data .cache .html .log .zip .py .ipynb"
_KNOWN = IMAGE_SUFFIXES | frozenset(_COMPANION_NAMES.split())
# Text files in the folders of label files that are none, and the lists of splits.
_NO_LABELS = {"classes", "obj", "notes", "readme", "license", "labelmap", "predefined_classes", "trainval", "default"}
_NO_LABELS |= {word for words in SPLIT_WORDS.values() for word in words}
# Folders of pictures that are no photos.
_MASKS = ("masks", "segmentationclass", "segmentationobject", "gtfine", "panoptic", "labels")


def reading_findings(split: str, table: Table) -> Iterator[Finding]:
    """What reading the annotations of a split met: rows and files that are none, and what the reader decided."""
    problems = [str(image["problem"]) for image in table.images if "problem" in image] if table.label_files else []
    yield finding("error", "label files", split, problems, "annotation files that are missing or cannot be read")
    yield finding("error", "label rows", split, table.faults, "rows of annotation files that cannot be used")
    shared = [str(path) for path, count in Counter(table.label_files).items() if count > 1]
    yield finding("warning", "shared labels", split, shared, "label files that several images share, by their name")
    yield from table.remarks


def file_findings(sources: dict[str, Source], tables: dict[str, Table]) -> Iterator[Finding]:
    """Files of a data folder that no split uses: images, label files, files of other kinds."""
    splits = " & ".join(tables)
    used = {os.path.abspath(table.path(image)) for table in tables.values() for image in table.images}
    folders = sorted({Path(path).parent for path in used})
    beside = [path for folder in folders for path in files_in(folder)]
    unused = [path for path in beside if _is_image(path) and str(path) not in used]
    unread = [path for path in beside if path.suffix.lower() not in _KNOWN]
    message = "images beside those of the data set that no split lists"
    yield finding("warning", "unused images", splits, _names(unused), message)
    message = "files beside the images of kinds that are not read"
    yield finding("warning", "unread files", splits, _by_suffix(unread), message)
    labels = {os.path.abspath(path) for table in tables.values() for path in table.label_files}
    stems = {path.stem for path in unused}
    orphans = [path for path in _label_files(labels, folders) if str(path) not in labels and path.stem not in stems]
    yield finding("warning", "orphan labels", splits, _names(orphans), "label files without an image that is read")
    roots = {source.root for source in sources.values()}
    elsewhere = _other_folders(roots, used, tables)
    yield finding("info", "unused folders", splits, elsewhere, "folders of images that no split uses")


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _names(paths: Iterable[Path]) -> list[str]:
    return [str(path) for path in paths]


def _by_suffix(paths: Iterable[Path]) -> list[str]:
    groups = defaultdict(list)
    for path in paths:
        groups[path.suffix.lower() or "no ending"].append(path)
    return [f"{suffix}: {len(found)}, such as {found[0]}" for suffix, found in sorted(groups.items())]


def _label_files(labels: set[str], folders: list[Path]) -> list[Path]:
    """All files of the kind of label files in the folders that have some, or where they would be."""
    suffixes = {Path(path).suffix.lower() for path in labels}
    places = {Path(path).parent for path in labels} | ({*folders} if suffixes else set())
    found = (path for place in sorted(places) for path in files_in(place, suffixes))
    return [path for path in found if path.stem.lower() not in _NO_LABELS]


def _other_folders(roots: set[Path], used: set[str], tables: dict[str, Table]) -> list[str]:
    """Folders below the roots with images of which none is used, each with their number; those of masks left out."""
    files = (image["map"].path for table in tables.values() for image in table.images if "map" in image)
    maps = {os.path.abspath(path.parent) for path in files}
    counts: Counter[Path] = Counter()
    with_used = {os.path.dirname(path) for path in used}
    for root in sorted(roots):
        for path in images_in(Path(os.path.abspath(root)), recursive=True):
            parent = str(path.parent)
            within = [part.lower() for part in path.relative_to(os.path.abspath(root)).parts[:-1]]
            masks = parent in maps or any(word in part for part in within for word in _MASKS)
            if parent not in with_used and not masks:
                counts[path.parent] += 1
    return [f"{folder}: {count} images" for folder, count in counts.items()]
