"""Suspects as files: labels corrected as the model says (COCO JSON), for CVAT, for Label Studio; ignore regions."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from urllib.parse import quote
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from detrkit.data.coco_json import Row
from detrkit.data.records import ImageRecord
from detrkit.data.suspects import Suspect
from detrkit.structures import Categories

__all__ = ["corrected_coco", "cvat_xml", "label_studio_tasks", "with_ignore_regions"]


def corrected_coco(truth: Row, suspects: Sequence[Suspect], categories: Categories) -> Row:
    """COCO JSON with the suggestions in place of doubted labels: to be looked at before it is used.

    Changed and added annotations have ``suspect``, the kind, and ``confidence``. Masks of changed boxes are left out.

    Args:
        truth: the annotations as they are (``AnnotatedImages.coco_ground_truth``).
        suspects: those that are followed.
        categories: in label order.
    """
    content = copy.deepcopy(truth)
    rows: dict[int, list[Row]] = defaultdict(list)
    for row in content["annotations"]:
        rows[row["image_id"]].append(row)  # in the order of the segments of the record
    gone = set()
    for one in suspects:
        row = None
        if one.position is not None:
            row = rows[one.record.image_id][int(np.flatnonzero(one.record.segments.single)[one.position])]
        note = {"suspect": one.kind, "confidence": round(one.confidence, 4)}
        if one.kind == "missing":
            content["annotations"].append(_annotation(one, categories, iscrowd=0) | note)
        elif row is not None and one.kind == "duplicate":
            gone.add(id(row))
        elif row is not None:
            row |= note
            if one.suggested_label is not None:
                row["category_id"] = categories[one.suggested_label].id
            if one.suggested_box is not None:
                row |= _box_of(one.suggested_box)
                row.pop("segmentation", None)
    content["annotations"] = _numbered([row for row in content["annotations"] if id(row) not in gone])
    return content


def with_ignore_regions(truth: Row, suspects: Sequence[Suspect], categories: Categories) -> Row:
    """COCO JSON as it is, and a crowd region (``iscrowd`` 1) where an object is probably not labelled.

    Evaluation ignores crowd regions, and training does so with ``data.ignore_crowds``: nothing that is found there is
    wrong.
    """
    content = copy.deepcopy(truth)
    regions = [_annotation(one, categories, iscrowd=1) for one in suspects if one.kind == "missing"]
    content["annotations"] = _numbered([*content["annotations"], *regions])
    return content


def cvat_xml(records: Sequence[ImageRecord], suspects: Sequence[Suspect], categories: Categories) -> bytes:
    """ "CVAT for images 1.1" with all labels; the doubted ones have the attributes ``suspect`` and ``confidence``.

    What is missing is a box with ``source="auto"``.
    """
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    labels = ElementTree.SubElement(ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task"), "labels")
    for category in categories.named:
        label = ElementTree.SubElement(labels, "label")
        ElementTree.SubElement(label, "name").text = category.name
        attributes = ElementTree.SubElement(label, "attributes")
        for name in ("suspect", "confidence", "suggestion"):
            attribute = ElementTree.SubElement(attributes, "attribute")
            for key, value in (("name", name), ("mutable", "True"), ("input_type", "text"), ("default_value", "")):
                ElementTree.SubElement(attribute, key).text = value
    doubted, missing = _by_image(suspects)
    for number, record in enumerate(records):
        image = ElementTree.SubElement(
            root,
            "image",
            {"id": str(number), "name": record.file_name, "width": str(record.width), "height": str(record.height)},
        )
        for position, (box, label) in enumerate(zip(record.boxes, record.labels.tolist(), strict=True)):
            _cvat_box(image, box, categories[label].name, "manual", doubted[record.image_id].get(position), categories)
        for one in missing[record.image_id]:
            _cvat_box(image, one.box, categories[one.label].name, "auto", one, categories)
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)


def label_studio_tasks(
    records: Sequence[ImageRecord], suspects: Sequence[Suspect], categories: Categories, *, image_url: str
) -> list[Row]:
    """Tasks for Label Studio of images that have suspects: labels as an annotation, suggestions as predictions.

    Args:
        records: the images.
        suspects: see :func:`ranked_suspects`.
        categories: in label order.
        image_url: what stands before the quoted name of a file, such as ``/data/local-files/?d=images/``.
    """
    doubted, missing = _by_image(suspects)
    tasks = []
    for record in records:
        own = [*doubted[record.image_id].values(), *missing[record.image_id]]
        if not own:
            continue
        labels = [
            _rectangle(record, f"label-{position}", box, str(categories[label].name))
            for position, (box, label) in enumerate(zip(record.boxes, record.labels.tolist(), strict=True))
        ]
        suggestions = [
            _rectangle(
                record,
                f"suspect-{number}",
                one.box if one.suggested_box is None else one.suggested_box,
                str(categories[one.label if one.suggested_label is None else one.suggested_label].name),
            )
            | {"score": round(one.confidence, 4), "meta": {"text": [f"{one.kind} {one.confidence:.2f}"]}}
            for number, one in enumerate(own)
        ]
        tasks.append(
            {
                "data": {"image": image_url + quote(record.file_name)},
                "annotations": [{"result": labels}],
                "predictions": [
                    {
                        "model_version": "detrkit suspects",
                        "score": round(max(one.confidence for one in own), 4),
                        "result": suggestions,
                    }
                ],
            }
        )
    return tasks


def _by_image(suspects: Sequence[Suspect]) -> tuple[dict[int, dict[int, Suspect]], dict[int, list[Suspect]]]:
    """By image id: the doubted labels by their position, and what is missing."""
    doubted: dict[int, dict[int, Suspect]] = defaultdict(dict)
    missing: dict[int, list[Suspect]] = defaultdict(list)
    for one in suspects:
        if one.position is None:
            missing[one.record.image_id].append(one)
        else:
            doubted[one.record.image_id].setdefault(one.position, one)
    return doubted, missing


def _annotation(one: Suspect, categories: Categories, *, iscrowd: int) -> Row:
    category = categories[one.label].id
    return {"image_id": one.record.image_id, "category_id": category, "iscrowd": iscrowd, **_box_of(one.box)}


def _box_of(box: NDArray[np.float64]) -> Row:
    x1, y1, x2, y2 = (float(value) for value in box)
    bbox = [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)]
    return {"bbox": bbox, "area": round(bbox[2] * bbox[3], 2)}


def _numbered(rows: Sequence[Row]) -> list[Row]:
    """Rows without an id, or all after the first one that lacks it, get the next ids."""
    highest = max((row["id"] for row in rows if "id" in row), default=0)
    numbers = iter(range(highest + 1, highest + 1 + len(rows)))
    return [{"id": row["id"] if "id" in row else next(numbers), **row} for row in rows]


def _cvat_box(
    image: ElementTree.Element,
    box: NDArray[np.float64],
    name: str | None,
    source: str,
    suspect: Suspect | None,
    categories: Categories,
) -> None:
    corners = dict(zip(("xtl", "ytl", "xbr", "ybr"), (f"{float(value):.2f}" for value in box), strict=True))
    element = ElementTree.SubElement(
        image, "box", {"label": str(name), "source": source, "occluded": "0", **corners, "z_order": "0"}
    )
    if suspect is None:
        return
    values = {"suspect": suspect.kind, "confidence": f"{suspect.confidence:.2f}"}
    if suspect.suggested_label is not None:
        values["suggestion"] = str(categories[suspect.suggested_label].name)
    if suspect.suggested_box is not None:
        values["suggestion"] = " ".join(f"{float(value):.0f}" for value in suspect.suggested_box)
    for key, value in values.items():
        ElementTree.SubElement(element, "attribute", {"name": key}).text = value


def _rectangle(record: ImageRecord, number: str, box: NDArray[np.float64], name: str) -> Row:
    """A rectangle of Label Studio, in percent of the image."""
    x1, y1, x2, y2 = (float(value) for value in box)
    return {
        "id": number,
        "type": "rectanglelabels",
        "from_name": "label",
        "to_name": "image",
        "original_width": record.width,
        "original_height": record.height,
        "image_rotation": 0,
        "value": {
            "x": round(100 * x1 / record.width, 4),
            "y": round(100 * y1 / record.height, 4),
            "width": round(100 * (x2 - x1) / record.width, 4),
            "height": round(100 * (y2 - y1) / record.height, 4),
            "rotation": 0,
            "rectanglelabels": [name],
        },
    }
