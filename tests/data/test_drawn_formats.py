"""LabelMe, VIA, Supervisely and VoTT: exports made by hand give the objects, their masks and their faults."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detrkit.data import load_dataset
from detrkit.data.annotations import objects_of
from detrkit.data.doctor import check
from detrkit.data.formats import find_sources, recognise_format
from detrkit.errors import DataError
from tests.data.trees import BOXES, NAMES, dump, write_images

Box = tuple[int, int, int, int]


def corners(x: int, y: int, w: int, h: int) -> list[list[int]]:
    return [[x, y], [x + w, y], [x + w, y + h], [x, y + h]]


def png(w: int, h: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((h, w), 255, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def labelme_shape(kind: str, label: str, box: Box) -> dict[str, Any]:
    x, y, w, h = box
    shape: dict[str, Any] = {"label": label, "shape_type": kind, "group_id": None, "flags": {}}
    if kind == "mask":
        return {**shape, "points": [[x, y], [x + w, y + h]], "mask": base64.b64encode(png(w, h)).decode()}
    return {**shape, "points": corners(*box) if kind == "polygon" else [[x + w, y], [x, y + h]]}


def labelme(root: Path, kind: str) -> Path:
    for split, images in BOXES.items():
        write_images(split, root / split)
        for name, boxes in images.items():
            shapes = [labelme_shape(kind, NAMES[label], tuple(box)) for label, *box in boxes]
            data = {"version": "5.5.0", "shapes": shapes, "imagePath": f"..\\{split}\\{name}", "imageData": "A" * 99}
            dump(root / split / f"{Path(name).stem}.json", {**data, "imageHeight": 30, "imageWidth": 40})
    return root


def via(root: Path, kind: str) -> Path:
    for split, images in BOXES.items():
        write_images(split, root / split)
        content = {}
        for name, boxes in images.items():
            regions = []
            for label, x, y, w, h in boxes:
                xs, ys = zip(*corners(x, y, w, h), strict=True)
                shape = {"name": "polygon", "all_points_x": xs, "all_points_y": ys}
                if kind == "rectangle":
                    shape = {"name": "rect", "x": x, "y": y, "width": w, "height": h}
                regions.append({"shape_attributes": shape, "region_attributes": {"class": NAMES[label], "note": ""}})
            content[f"{name}123"] = {"filename": name, "size": 123, "regions": regions, "file_attributes": {}}
        dump(root / split / "via_region_data.json", content)
    return root


def supervisely(root: Path, kind: str) -> Path:
    dump(root / "meta.json", {"classes": [{"title": name, "shape": "any"} for name in NAMES], "tags": []})
    for split, images in BOXES.items():
        write_images(split, root / split / "img")
        for name, boxes in images.items():
            objects = []
            for label, x, y, w, h in boxes:
                row: dict[str, Any] = {"classTitle": NAMES[label], "geometryType": kind}
                if kind == "bitmap":
                    packed = base64.b64encode(zlib.compress(png(w, h))).decode()
                    row["bitmap"] = {"data": packed, "origin": [x, y]}
                else:
                    points = corners(x, y, w, h)
                    row["points"] = {"exterior": points if kind == "polygon" else points[::2], "interior": []}
                objects.append(row)
            dump(root / split / "ann" / f"{name}.json", {"size": {"height": 30, "width": 40}, "objects": objects})
    return root


def vott(root: Path, kind: str) -> Path:
    assets = {}
    for split, images in BOXES.items():
        write_images(split, root / "vott-json-export")
        for name, boxes in images.items():
            regions = []
            for label, x, y, w, h in boxes:
                points = [{"x": a, "y": b} for a, b in corners(x, y, w, h)]
                bounds = {"left": x, "top": y, "width": w, "height": h}
                regions.append(
                    {
                        "tags": [NAMES[label]],
                        "type": "POLYGON" if kind == "polygon" else "RECTANGLE",
                        "boundingBox": bounds,
                        "points": points,
                    }
                )
            asset = {"name": name.replace(" ", "%20"), "size": {"width": 40, "height": 30}}
            assets[name] = {"asset": asset, "regions": regions}
    content = {"name": "bolts", "tags": [{"name": name} for name in NAMES], "assets": assets}
    dump(root / "vott-json-export" / "bolts-export.json", content)
    return root


EXPORTS: dict[str, tuple[Callable[[Path, str], Path], list[str]]] = {
    "labelme": (labelme, ["rectangle", "polygon", "mask"]),
    "via": (via, ["rectangle", "polygon"]),
    "supervisely": (supervisely, ["rectangle", "polygon", "bitmap"]),
    "vott": (vott, ["rectangle", "polygon"]),
}
ALL = [(name, kind) for name, (_, kinds) in EXPORTS.items() for kind in kinds]


@pytest.mark.parametrize(("name", "kind"), ALL)
def test_objects_and_masks(tmp_path: Path, name: str, kind: str) -> None:
    root = EXPORTS[name][0](tmp_path / "data", kind)
    assert recognise_format(root).name == name
    expected = {split: dict(images) for split, images in BOXES.items()}
    if name == "vott":
        expected = {"train": {**BOXES["train"], **BOXES["val"]}}
    for split, images in expected.items():
        dataset = load_dataset(root, split=split)
        assert dataset.categories.names == list(NAMES)
        found = {}
        for index, record in enumerate(dataset.records):
            assert dataset.read_image(index).size == (40, 30)
            rows = zip(record.labels.tolist(), record.boxes.round(4).tolist(), strict=True)
            found[record.path.name] = [(label, x1, y1, x2 - x1, y2 - y1) for label, (x1, y1, x2, y2) in rows]
        assert found == images
        if kind == "rectangle":
            continue
        for record in load_dataset(root, split=split, task="inst").records:
            masks = objects_of(record.segments, size=(40, 30), task="inst").masks
            areas = [w * h for _, _, _, w, h in images[record.path.name]]
            assert masks is None or masks.sum(dim=(1, 2)).tolist() == areas
    assert not check(find_sources(root)).failed


FAULTS: list[tuple[str, str, dict[str, Any], str]] = [
    ("labelme", "shapes", {"label": 3, "points": corners(1, 1, 5, 5)}, "label is 3, not a text"),
    ("labelme", "shapes", {"label": "bolt", "points": [[1, 1], [2, 2]]}, "3 or more pairs"),
    ("labelme", "shapes", {"label": "bolt", "points": [[1, None]] * 4}, "not a list of numbers"),
    ("labelme", "shapes", {"label": "bolt", "shape_type": "mask", "points": [[1, 1]], "mask": "?"}, "not base64"),
    ("labelme", "shapes", {"label": "bolt", "shape_type": "mask", "points": [[1, 1]], "mask": "AAAA"}, "as PNG"),
    (
        "via",
        "regions",
        {"shape_attributes": {"name": "rect", "x": 1}, "region_attributes": {"class": "bolt"}},
        "y, wid",
    ),
    ("via", "regions", {"shape_attributes": {"name": "rect", "x": 1, "y": 1, "width": 2, "height": 2}}, "'class'"),
    ("supervisely", "objects", {"classTitle": "gear", "geometryType": "polygon"}, "class 'gear' is not in"),
    ("supervisely", "objects", {"classTitle": "bolt", "geometryType": "bitmap", "bitmap": {"origin": [1, 1]}}, "data"),
    ("vott", "regions", {"tags": []}, "its first tag"),
    ("vott", "regions", {"tags": ["bolt"], "boundingBox": {"left": "x"}}, "boundingBox is"),
]


@pytest.mark.parametrize(("name", "key", "row", "message"), FAULTS)
def test_faults_are_named_and_can_be_left_out(
    tmp_path: Path, name: str, key: str, row: dict[str, Any], message: str
) -> None:
    root = EXPORTS[name][0](tmp_path / "data", "polygon")
    path = next(path for path in sorted(root.rglob("*.json")) if f'"{key}"' in path.read_text())
    data = json.loads(path.read_text())

    def plant(value: Any) -> bool:
        """Add the row to the first list under the key."""
        if isinstance(value, dict) and isinstance(value.get(key), list):
            value[key].append(row)
            return True
        return any(map(plant, value.values() if isinstance(value, dict) else value if isinstance(value, list) else []))

    assert plant(data)
    dump(path, data)
    with pytest.raises(DataError, match=rf"{path.name}: .*{message}"):
        load_dataset(root)
    dataset = load_dataset(root, on_error="skip")
    assert len(dataset.load_errors) == 1
    found = [
        finding for finding in check(find_sources(root)).findings if finding.check == "label rows" and finding.count
    ]
    assert [finding.level for finding in found] == ["error"]
    assert message in found[0].examples[0]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", EXPORTS)
@pytest.mark.parametrize("value", [None, 3, "text", float("nan"), [], {}, [3], [None]])
def test_values_of_any_type_end_in_one_line(tmp_path: Path, name: str, value: Any) -> None:
    """Every value of the first annotation file, replaced: the rest is read, or a DataError says what is wrong."""
    root = EXPORTS[name][0](tmp_path / "data", "polygon")
    path = next(path for path in sorted(root.rglob("*.json"), reverse=True) if path.name != "meta.json")
    original = path.read_text()

    def places(data: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else []
        return [place for key, inner in items for place in [(*before, key), *places(inner, (*before, key))]]

    tried = 0
    for place in places(json.loads(original)):
        data = json.loads(original)
        inner = data
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        dump(path, data)
        for split in ("train", "val"):
            tried += 1
            with contextlib.suppress(DataError):
                load_dataset(root, split=split, on_error="skip")
    assert tried > 20


def test_groups_of_labelme_are_one_object(tmp_path: Path) -> None:
    root = labelme(tmp_path / "data", "polygon")
    path = root / "train" / "a.json"
    data = json.loads(path.read_text())
    for shape, label in zip(data["shapes"], ("bolt", "bolt"), strict=True):
        shape.update(label=label, group_id=7)
    data["shapes"].append({"label": "x", "shape_type": "point", "points": [[1, 1]]})
    dump(path, data)
    with pytest.warns(UserWarning, match=r"1 shapes that are no regions.* \(.*a\.json: shape 3 \(point\)\)"):
        dataset = load_dataset(root, task="inst")
    masks = objects_of(dataset.records[0].segments, size=(40, 30), task="inst").masks
    assert masks is not None
    assert masks.sum(dim=(1, 2)).tolist() == [10 * 12 + 20 * 24]


def test_the_class_attribute_of_via(tmp_path: Path) -> None:
    root = via(tmp_path / "data", "rectangle")
    path = root / "train" / "via_region_data.json"
    text = path.read_text()
    for attributes, names in (
        ('"kind": "bolt"', ["bolt", "nut"]),
        ('"Type": {"bolt": true, "no": false}, "kind": "x"', ["bolt", "nut"]),
    ):
        changed = text.replace('"class": "bolt", "note": ""', attributes).replace(
            '"class": "nut", "note": ""', attributes
        )
        path.write_text(changed)
        assert load_dataset(root).categories.names == names
    path.write_text(text.replace('"class"', '"color"').replace('"note"', '"size"'))
    with pytest.raises(DataError, match="which attribute of its regions is the class: color, size"):
        load_dataset(root)
    project = {"_via_settings": {}, "_via_img_metadata": json.loads(text), "_via_attributes": {}}
    dump(path.with_name("via_project_1.json"), project)
    path.write_text(text)
    assert find_sources(root)["train"].annotations.name == "via_project_1.json"
    assert sum(len(record.boxes) for record in load_dataset(root).records) == 3


def test_folders_of_supervisely_without_splits(tmp_path: Path) -> None:
    root = supervisely(tmp_path / "data", "polygon")
    for split in BOXES:
        (root / split).rename(root / f"ds_{split[0]}")
    assert list(find_sources(root)) == ["train"]
    assert len(load_dataset(root)) == 5
