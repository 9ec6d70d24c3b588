"""Checking a data set before hours of training on it."""

from __future__ import annotations

import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from detrkit.data.clean_rows import row_area, row_problem
from detrkit.data.coco_json import lvis_problems
from detrkit.data.file_checks import file_findings, reading_findings
from detrkit.data.findings import Finding, Level, finding, row_name
from detrkit.data.formats import FORMATS, Source, read_source
from detrkit.data.frame_signs import frame_signs
from detrkit.data.frames import BORDER_TOLERANCE, turned_images, upright
from detrkit.data.images import image_size, read_image
from detrkit.data.inventory import explanation
from detrkit.data.mask_checks import mask_findings
from detrkit.data.once import read_once
from detrkit.data.records import Table, missing_files, without_images
from detrkit.data.repeat_checks import duplicate_annotations, id_findings
from detrkit.data.shift_checks import shifted_classes
from detrkit.data.value_checks import VALUE_CHECKS, class_differences
from detrkit.errors import DataError
from detrkit.files import check_regular
from detrkit.structures import NEGATIVES

__all__ = ["DataContents", "Report", "SplitCounts", "check"]

# Warn about classes with 20 times fewer boxes than the most frequent class.
_IMBALANCE = 20
_SHOWN_CLASSES = 8
_NEARLY_ALL = 0.9  # of the images without boxes: rather labels that were not found
# The highest value of cameras with 12 bits, which write them into files of 16.
_TWELVE_BITS = 4095
# Square pixels by which an area may be above that of its box, which may be rounded.
_AREA_SLACK = 16


@dataclass(frozen=True, kw_only=True)
class SplitCounts:
    """What a split has: images, boxes that can be used, and how many of these have a mask."""

    images: int
    boxes: int
    masks: int


@dataclass(frozen=True, kw_only=True)
class DataContents:
    """What a data set has. classes: of all splits."""

    format: str
    splits: dict[str, SplitCounts]
    classes: tuple[str, ...]

    def __str__(self) -> str:
        counts = (f"{split} {found.images} images, {found.boxes} boxes" for split, found in self.splits.items())
        shown = ", ".join(self.classes[:_SHOWN_CLASSES]) + (", …" if len(self.classes) > _SHOWN_CLASSES else "")
        return (
            f"{self.format}: {'; '.join(counts)}; {len(self.classes)} class{'es' * (len(self.classes) != 1)} ({shown})"
        )

    @property
    def ready_for(self) -> str:
        """The tasks that training and validation can begin with: boxes, masks; and what masks lack."""
        used = {split: found for split, found in self.splits.items() if split != "test"}
        if not any(found.masks for found in used.values()):
            return "boxes; masks: no row has an outline"
        lacking = {split: found for split, found in used.items() if found.masks < found.boxes}
        if not lacking:
            return "boxes and masks"
        counts = ", ".join(f"{found.boxes - found.masks} of {found.boxes} in {name}" for name, found in lacking.items())
        return f"boxes; masks only with data.on_error=skip, which leaves out the rows without an outline: {counts}"


@dataclass(frozen=True, kw_only=True)
class Report:
    """The findings of all checks, and what the data set has."""

    findings: tuple[Finding, ...]
    contents: DataContents

    @property
    def failed(self) -> bool:
        """Whether any check found an error."""
        return any(found.level == "error" for found in self.findings)


@dataclass
class _Scan:
    """The result of reading the image files: SHA-256 by index, the highest value of those of 16 bits by path, and one
    message per problem."""

    digests: dict[int, str] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)
    highest: dict[str, int] = field(default_factory=dict)
    resized: list[str] = field(default_factory=list)
    unrotated: list[str] = field(default_factory=list)


def check(
    sources: dict[str, Source],
    *,
    quick: bool = False,
    progress: Callable[[int, int], None] | None = None,
    tell: Callable[[DataContents], object] | None = None,
) -> Report:
    """Check every split.

    Args:
        sources: the source of each split.
        quick: read only the headers of the images, which finds neither damaged nor duplicate images, and draw no masks.
        progress: called as progress(done, total of the split) after every image.
        tell: called with what the data set has once the annotations are read, before the images are.

    Raises:
        DataError: annotations cannot be read at all.
    """
    findings: list[Finding] = []
    with read_once():
        tables = {split: read_source(source, announce=False) for split, source in sources.items()}
    turned = {split: turned_images(table, table.images) for split, table in tables.items()}
    upright_images = {split: upright(table.images, turned[split]) for split, table in tables.items()}
    tables = {split: replace(table, images=upright_images[split]) for split, table in tables.items()}
    contents = _contents(sources, tables)
    if tell is not None:
        tell(contents)
    scans: dict[str, _Scan] = {}
    for split, table in tables.items():
        findings.append(_frames(split, table, turned[split]))
        missing = missing_files([table.path(image) for image in table.images])
        scans[split] = _scan(table, set(missing), quick, progress)
        examinations = [id_findings, _category_ids, _boxes, frame_signs, duplicate_annotations, _federated]
        if len(scans[split].resized) * 2 > len(table.images):  # the sizes are wrong, not the boxes
            examinations.remove(frame_signs)
        for examine in (reading_findings, *VALUE_CHECKS, *examinations):
            findings += examine(split, table)
        findings += [*_balance(split, table, set(missing)), *_empty(split, table, set(missing))]
        findings += mask_findings(split, table, quick=quick)
        findings.append(_missing(sources[split], table, missing))
        findings += _scanned(split, table, scans[split], quick)
    findings += file_findings(sources, tables)
    findings += _absent(sources)
    findings += [*_across(tables), *shifted_classes(tables)]
    if not quick:
        findings += _shared_images(tables, scans)
    return Report(findings=tuple(findings), contents=contents)


def _contents(sources: dict[str, Source], tables: dict[str, Table]) -> DataContents:
    names = {str(row.get("name", row["id"])): None for table in tables.values() for row in table.categories}
    counts = {}
    for split, table in tables.items():
        counts[split] = SplitCounts(images=len(table.images), boxes=table.counts.usable, masks=table.counts.masks)
    return DataContents(format=next(iter(sources.values())).format, splits=counts, classes=tuple(names))


def _frames(split: str, table: Table, turned: Mapping[int, tuple[int, int]]) -> Finding:
    images = ((image["file_name"], turned[image["id"]]) for image in table.images if image["id"] in turned)
    found = [f"{name}: listed as {height}x{width}" for name, (width, height) in images]  # here they are upright
    message = (
        "photos with width and height of the file as stored, but boxes of the upright picture (EXIF): swap width and "
        "height; training uses them upright"
    )
    return finding("error", "image frame", split, found, message)


def _category_ids(split: str, table: Table) -> Iterator[Finding]:
    known = {row["id"] for row in table.categories}
    used = table.counts.categories
    if used <= known:
        unknown = list[str]()
    else:
        unknown = [
            f"{row_name(row)}: {row['category_id']}" for row in table.annotations if row["category_id"] not in known
        ]
    message = "category ids that the categories do not have"
    for shift in (1, -1):
        if unknown and {value + shift for value in used} <= known:
            message += (
                f"; off by one: annotations use {min(used)} to {max(used)}, categories have {min(known)} to "
                f"{max(known)}, so add {shift} to every category_id"
            )
    yield finding("error", "category ids", split, unknown, message)


def _boxes(split: str, table: Table) -> Iterator[Finding]:
    sizes = table.sizes
    outside, beyond, areas = [], [], []
    for row in table.annotations:
        if row_problem(row) is not None:
            continue
        area, box_area = row_area(row), row["bbox"][2] * row["bbox"][3]
        if box_area >= _AREA_SLACK and not 0 < area <= 1.5 * box_area + _AREA_SLACK:
            areas.append(f"{row_name(row)}: area {area:g}, box {row['bbox']}")
        width, height = sizes.get(row["image_id"], (None, None))
        if not width or not height:
            continue
        x, y, w, h = row["bbox"]
        if x >= width or y >= height or x + w <= 0 or y + h <= 0:
            outside.append(f"{row_name(row)}: {row['bbox']} in {width}x{height}")
        elif min(x, y) < -BORDER_TOLERANCE or x + w > width + BORDER_TOLERANCE or y + h > height + BORDER_TOLERANCE:
            beyond.append(f"{row_name(row)}: {row['bbox']} in {width}x{height}")
    yield finding("error", "boxes outside", split, outside, "boxes completely outside their image: dropped")
    yield finding("warning", "boxes beyond border", split, beyond, "boxes that extend beyond the image: clipped")
    message = "areas of 0, or far above that of the box: AP of small, medium and large objects goes by them; without "
    yield finding("warning", "areas", split, areas, f"{message}'area' they are measured")


def _missing(source: Source, table: Table, missing: list[int]) -> Finding:
    message = "missing"
    if missing and (line := explanation(source.root, format=source.format, split=source.split)) is not None:
        message += f". {line}"
    elif missing and len(missing) == len(table.images):
        message += f", all of them: {without_images(table.image_folder)}"
    lost = [str(table.path(table.images[index])) for index in missing]
    return finding("error", "image files", source.split, lost, message)


def _balance(split: str, table: Table, missing: set[int]) -> Iterator[Finding]:
    found = table.counts.classes
    counts = Counter({number: count for (number, crowd), count in found.items() if not crowd})
    crowds = {number for number, crowd in found if crowd}  # another check names them
    names = {row["id"]: str(row.get("name", row["id"])) for row in table.categories}
    absent = [names[number] for number in names if not counts[number] and number not in crowds]
    if not table.annotations and len(missing) == len(table.images):  # YOLO's boxes need the sizes of the images
        absent = []
    stuff = {row["id"] for row in table.categories if row.get("isthing", 1) == 0}  # one area of an image at most
    present = sorted((counts[number], name) for number, name in names.items() if counts[number] and number not in stuff)
    rare = [f"{name}: {number}" for number, name in present if number * _IMBALANCE < present[-1][0]]
    # small val splits often lack rare classes
    yield finding("warning" if split == "train" else "info", "absent classes", split, absent, "have no box here")
    largest = f"{present[-1][1]} has {present[-1][0]}" if present else ""
    yield finding("warning", "class balance", split, rare, f"classes with few boxes ({largest})")


def _empty(split: str, table: Table, missing: set[int]) -> Iterator[Finding]:
    filled = table.counts.images
    present = (row for index, row in enumerate(table.images) if index not in missing)
    empty = [str(row["file_name"]) for row in present if row["id"] not in filled]
    level: Level = "warning" if len(empty) * 2 > len(table.images) else "info"
    message = "images without boxes: kept as examples of background"
    if len(empty) >= _NEARLY_ALL * len(table.images):
        message = f"images without boxes, of {len(table.images)}: do their labels lie where the format has them, with "
        message += "the ids or names of their images?"
        yield finding("warning", "empty labels", split, empty, message)
    else:
        yield finding(level, "empty images", split, empty, message)


def _federated(split: str, table: Table) -> Iterator[Finding]:
    """Check the fields of LVIS: class lists of the images and class frequencies."""
    if table.protocol != "lvis":
        return
    problems = list(lvis_problems(table.images, table.categories))
    yield finding("error", "LVIS lists", split, problems, "fields that LVIS adds to COCO are missing or wrong")
    if problems:
        return
    present = {(row["image_id"], row["category_id"]) for row in table.annotations}
    pairs = ((image["id"], number) for image in table.images for number in image[NEGATIVES])
    both = [f"image {image}: category {number}" for image, number in pairs if (image, number) in present]
    yield finding("warning", "LVIS negatives", split, both, "classes marked as absent although they have a box")


def _scan(table: Table, missing: set[int], quick: bool, progress: Callable[[int, int], None] | None) -> _Scan:
    scan = _Scan()
    files = [(index, table.path(row)) for index, row in enumerate(table.images) if index not in missing]
    inspect = _inspect_header if quick else _inspect_file
    with ThreadPoolExecutor() as pool:
        outcomes = pool.map(inspect, (path for _, path in files))
        for done, ((index, path), outcome) in enumerate(zip(files, outcomes, strict=True), start=1):
            if isinstance(outcome, DataError):
                scan.damaged.append(str(outcome))
            else:
                digest, upright, stored, highest = outcome
                scan.digests[index] = digest
                if highest is not None:
                    scan.highest[str(path)] = highest
                annotated = (table.images[index].get("width"), table.images[index].get("height"))
                if None not in annotated and annotated not in (upright, stored):
                    message = f"{upright[0]}x{upright[1]}, annotations say {annotated[0]}x{annotated[1]}"
                    scan.resized.append(f"{path}: {message}")
                elif annotated == stored != upright:
                    scan.unrotated.append(str(path))
            if progress is not None:
                progress(done, len(files))
    return scan


_Size = tuple[int, int]
_Inspected = tuple[str, _Size, _Size, int | None]


def _inspect_file(path: Path) -> _Inspected | DataError:
    """SHA-256 of the file, size of the upright image, size as stored, highest value of 16 bits; or the error."""
    try:
        check_regular(path)
        data = path.read_bytes()
        upright = read_image(data, name=str(path)).size
        with Image.open(io.BytesIO(data)) as image:
            highest = int(np.asarray(image).max()) if image.mode.startswith("I") else None
            return hashlib.sha256(data).hexdigest(), upright, image.size, highest
    except (OSError, DataError) as error:
        return DataError(str(error))


def _inspect_header(path: Path) -> _Inspected | DataError:
    """The same as ``_inspect_file`` without decoding the image; the SHA-256 is empty."""
    try:
        upright = image_size(path)
        with Image.open(path) as image:
            return "", upright, image.size, None
    except (OSError, DataError) as error:
        return DataError(str(error))


def _scanned(split: str, table: Table, scan: _Scan, quick: bool) -> Iterator[Finding]:
    yield finding("error", "image data", split, scan.damaged, "cannot be read")
    yield finding("error", "image sizes", split, scan.resized, "differ from the annotations")
    yield finding(
        "info", "image rotation", split, scan.unrotated, "annotated without the EXIF rotation: left unrotated"
    )
    dark = [f"{path}: values up to {value}" for path, value in scan.highest.items()]
    if max(scan.highest.values(), default=0) > _TWELVE_BITS:
        dark = []
    message = "images of 16 bits that use 12 at most, and are read nearly black: multiply their values by 16"
    yield finding("warning", "image depth", split, dark, message)
    if not quick:
        groups = _by_digest({split: table}, {split: scan})
        same = [" = ".join(names) for names in groups if len(names) > 1]
        yield finding("warning", "duplicate images", split, same, "identical files within the split")


def _by_digest(tables: dict[str, Table], scans: dict[str, _Scan]) -> list[list[str]]:
    """Groups of identical files, each named "split: file"."""
    groups: dict[str, list[str]] = defaultdict(list)
    for split, scan in scans.items():
        for index, digest in sorted(scan.digests.items()):
            groups[digest].append(f"{split}: {tables[split].images[index]['file_name']}")
    return list(groups.values())


def _shared_images(tables: dict[str, Table], scans: dict[str, _Scan]) -> Iterator[Finding]:
    if len(tables) < 2:
        return
    groups = [names for names in _by_digest(tables, scans) if len({name.split(":")[0] for name in names}) > 1]
    splits = " & ".join(tables)
    message = "the same image in several splits: scores on it say nothing about new images"
    yield finding("error", "images across splits", splits, [" = ".join(names) for names in groups], message)


def _absent(sources: dict[str, Source]) -> Iterator[Finding]:
    for name, root in dict.fromkeys((source.format, source.root) for source in sources.values()):
        for split, what in FORMATS[name].absent(root).items():
            yield finding("warning", "splits", split, [what], "is named but does not exist: left out")


def _across(tables: dict[str, Table]) -> Iterator[Finding]:
    splits = " & ".join(tables)
    if "train" in tables and "val" not in tables:
        yield Finding(
            level="warning",
            check="splits",
            split=splits,
            count=1,
            message="no val split: training cannot be judged; 'detrkit data split' makes one",
        )
    if len(tables) < 2:
        return
    lists = {split: {row["id"]: row.get("name") for row in table.categories} for split, table in tables.items()}
    (first, expected), *others = lists.items()
    differing = [line for split, names in others for line in class_differences(first, expected, split, names)]
    yield finding("error", "categories across splits", splits, differing, "splits have different classes")
    if "train" in tables:
        trained = tables["train"].counts.categories
        for split, table in tables.items():
            unseen = table.counts.categories - trained
            names = [str(lists[split].get(number, number)) for number in sorted(unseen)]
            if split != "train":
                yield finding("warning", "untrained classes", split, names, "occur here but never in train")
