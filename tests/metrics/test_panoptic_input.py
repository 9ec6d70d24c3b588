"""What cannot be scored is said in one line that names the file and what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detrkit.errors import DataError
from detrkit.metrics import score_panoptic
from tests.metrics.maps import CAR, SKY, case, save_ids

Content = dict[str, Any]


def good(folder: Path) -> dict[str, Path]:
    ids = np.full((10, 12), 7)
    ids[:4] = 300
    side = (ids, {7: CAR, 300: SKY})
    return case(folder, [side, side], [side, side])


def first(content: Content) -> Content:
    row: Content = content["annotations"][0]
    return row


def info(content: Content) -> Content:
    row: Content = first(content)["segments_info"][0]
    return row


def _listed_only(content: Content) -> None:
    first(content)["segments_info"].append({"id": 9, "category_id": CAR})


def _in_png_only(content: Content) -> None:
    first(content)["segments_info"].pop()


def _twice(content: Content) -> None:
    first(content)["segments_info"].append(dict(info(content)))


def _set(**values: object) -> Callable[[Content], None]:
    return lambda content: info(content).update(values)


BOTH: dict[str, tuple[Callable[[Content], None], str]] = {
    "listed only": (_listed_only, r"1.png: PNG and JSON differ: segment 9 is listed but not in the map; write both"),
    "in the PNG only": (_in_png_only, "1.png: PNG and JSON differ: segment 300 is in the map but not listed"),
    "id twice": (_twice, r"annotations\[0\] \(1.png\): segments_info\[2\]: id 7 is used twice"),
    "float id": (_set(id=7.5), "id must be a whole number, not 7.5"),
    "bool id": (_set(id=True), "id must be a whole number, not True"),
    "no id": (_set(id=None), "id is missing; it must be a whole number"),
    "id 0": (_set(id=0), "id 0 is not between 1 and 16777215; 0 stands for pixels without a segment"),
    "id too large": (_set(id=2**24), "id 16777216 is not between 1 and 16777215"),
    "unknown category": (_set(category_id=99), "category_id 99 is not among the categories of the ground truth"),
    "text category": (_set(category_id="car"), "category_id must be a whole number, not 'car'"),
    "area": (_set(area="big"), "area must be a finite number, not 'big'"),
    "image twice": (lambda content: content["annotations"].append(first(content)), "image_id 1 has two"),
    "float image": (lambda content: first(content).update(image_id=1.5), "image_id must be a whole number, not 1.5"),
    "no file": (lambda content: first(content).pop("file_name"), r"annotations\[0\]: file_name of the PNG is missing"),
    "other file": (
        lambda content: first(content).update(file_name="1.PNG"),
        "'1.png' is there, but names must be equal",
    ),
    "no such file": (lambda content: first(content).update(file_name="x.png"), "x.png: no such PNG file"),
    "objects": (
        lambda content: first(content).pop("segments_info"),
        "has no list 'segments_info'; is this a COCO file of",
    ),
    "row": (lambda content: content["annotations"].insert(0, 3), r"annotations\[0\] is not an object but int"),
    "segment": (
        lambda content: first(content)["segments_info"].append(3),
        r"segments_info\[2\] is not an object but int",
    ),
}


@pytest.mark.parametrize("which", ["ground_truth", "results"])
@pytest.mark.parametrize("fault", BOTH)
def test_faults_of_either_side(tmp_path: Path, fault: str, which: str) -> None:
    files, (spoil, message) = good(tmp_path), BOTH[fault]
    content = json.loads(files[which].read_text())
    spoil(content)
    files[which].write_text(json.dumps(content))
    with pytest.raises(DataError, match=message) as caught:
        score_panoptic(**files)
    assert str(tmp_path / ("gt" if which == "ground_truth" else "found")) in str(caught.value)


def _without_images(content: Content) -> None:
    content["images"] = content["images"][1:]


TRUTH: dict[str, tuple[Callable[[Content], None], str]] = {
    "no annotations": (
        lambda content: content.update(annotations=[]),
        "has no annotations, so there is nothing to score",
    ),
    "no categories": (lambda content: content.update(categories=[]), "has no categories"),
    "category twice": (
        lambda content: content["categories"].append({"id": CAR}),
        r"categories\[4\]: id 1 is used twice",
    ),
    "category row": (lambda content: content["categories"].append(3), r"categories\[4\] is not an object but int"),
    "unlisted image": (_without_images, "image_id 1 is not among the 1 images of the file"),
    "size": (lambda content: content["images"][0].update(width=99), "the PNG is 12x10 pixels, but the JSON says 99x10"),
    "area": (_set(area=3), "segment 7 has area 3 in the JSON but 72 pixels in the PNG; mend the area or leave it out"),
    "key": (lambda content: content.pop("categories"), "it has no list 'categories'"),
}


@pytest.mark.parametrize("fault", TRUTH)
def test_faults_of_the_ground_truth(tmp_path: Path, fault: str) -> None:
    files, (spoil, message) = good(tmp_path), TRUTH[fault]
    content = json.loads(files["ground_truth"].read_text())
    spoil(content)
    files["ground_truth"].write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        score_panoptic(**files)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({SKY: "car", CAR: "sky"}, None),
        ({SKY: "car", CAR: "heaven"}, f"category_id {CAR} is not among the categories"),
        ({SKY: "heaven", CAR: "wagon"}, None),
    ],
)
def test_classes_of_results_with_names_of_their_own(tmp_path: Path, names: dict[int, str], message: str | None) -> None:
    """What has no name of the ground truth keeps its id, but not that of a class that another name stands for."""
    files = good(tmp_path)
    content = json.loads(files["results"].read_text())
    other = {CAR: SKY, SKY: CAR} if "car" in names.values() else {CAR: CAR, SKY: SKY}
    for segment in (segment for row in content["annotations"] for segment in row["segments_info"]):
        segment["category_id"] = other[segment["category_id"]]
    content["categories"] = [{"id": key, "name": name} for key, name in names.items()]
    files["results"].write_text(json.dumps(content))
    if message is None:
        assert score_panoptic(**files).value == 1.0
        return
    with pytest.raises(DataError, match=message):
        score_panoptic(**files)


def test_images_without_a_result(tmp_path: Path) -> None:
    files = good(tmp_path)
    content = json.loads(files["results"].read_text())
    del content["annotations"][0]
    files["results"].write_text(json.dumps(content))
    message = r"found.json: 1 of 2 images of .*gt.json have no result: 1.jpg \(id 1\); every image needs a row"
    with pytest.raises(DataError, match=message):
        score_panoptic(**files)
    content["images"] = [{"id": 2, "file_name": "other.jpg"}]
    files["results"].write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"2 of 2 images .*1 results are of images that are not there, such as 2.png"):
        score_panoptic(**files)


def test_file_names_that_do_not_say_which_image(tmp_path: Path) -> None:
    files = good(tmp_path)
    truth, found = (json.loads(path.read_text()) for path in files.values())
    for row, name in zip(truth["images"], ("a/1.jpg", "b/1.jpg"), strict=True):
        row["file_name"] = name
    found["images"] = [{"id": 1, "file_name": "1.jpg"}, {"id": 2, "file_name": "b/1.jpg"}]
    for path, content in zip(files.values(), (truth, found), strict=True):
        path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"image '1.jpg' occurs more than once in .*gt.json; give its whole path"):
        score_panoptic(**files)


@pytest.mark.parametrize("content", ["[]", "3", '{"images": []}', '{"annotations": 1}'])
def test_results_of_another_kind(tmp_path: Path, content: str) -> None:
    files = good(tmp_path)
    files["results"].write_text(content)
    with pytest.raises(
        DataError, match=r"found.json: is not COCO panoptic results: an object whose list 'annotations'"
    ):
        score_panoptic(**files)


@pytest.mark.parametrize("which", ["ground_truth", "results"])
def test_json_that_is_broken_or_missing(tmp_path: Path, which: str) -> None:
    files = good(tmp_path)
    files[which].write_text('{"annotations": [')
    with pytest.raises(DataError, match=r"is not JSON: .* in line 1"):
        score_panoptic(**files)
    files[which].unlink()
    with pytest.raises(DataError, match="no such"):
        score_panoptic(**files)


@pytest.mark.parametrize(("which", "option"), [("gt", "--gt-images"), ("found", "--results-images")])
def test_a_missing_folder(tmp_path: Path, which: str, option: str) -> None:
    files = good(tmp_path)
    (tmp_path / which).rename(tmp_path / "moved")
    with pytest.raises(DataError, match=rf"{which}: no such folder with the PNG files of .*{which}.json; .*{option}"):
        score_panoptic(**files)


def test_maps_of_another_size(tmp_path: Path) -> None:
    files = good(tmp_path)
    ids = np.full((5, 6), 7)
    ids[:2] = 300
    save_ids(tmp_path / "found" / "1.png", ids)
    with pytest.raises(DataError, match=r"found.json: 1.png: is 6x5 pixels, but .*gt.json: 1.png is 12x10"):
        score_panoptic(**files)


def _replaced_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


PNGS: dict[str, tuple[Callable[[Path], None], str]] = {
    "gray": (
        lambda path: Image.new("L", (12, 10)).save(path),
        "is a 8-bit gray PNG, but COCO panoptic files are 8-bit RGB",
    ),
    "palette": (lambda path: Image.new("P", (12, 10)).save(path), "is a 1-bit palette PNG|is a 8-bit palette PNG"),
    "16 bits": (lambda path: Image.new("I;16", (12, 10)).save(path), "is a 16-bit gray PNG"),
    "JPEG": (lambda path: Image.new("RGB", (12, 10)).save(path, format="JPEG"), "is not a PNG file; masks must be PNG"),
    "text": (lambda path: path.write_text("not a PNG"), "is not a PNG file"),
    "empty": (lambda path: path.write_bytes(b""), "is not a PNG file"),
    "truncated": (
        lambda path: path.write_bytes(path.read_bytes()[:60]),
        "cannot be read, it may be truncated or damaged",
    ),
    "folder": (_replaced_by_folder, "cannot be read"),
}


@pytest.mark.parametrize("which", ["gt", "found"])
@pytest.mark.parametrize("fault", PNGS)
def test_pictures_of_another_kind(tmp_path: Path, fault: str, which: str) -> None:
    files, (spoil, message) = good(tmp_path), PNGS[fault]
    path = tmp_path / which / "2.png"
    spoil(path)
    with pytest.raises(DataError, match=message) as caught:
        score_panoptic(**files)
    assert str(caught.value).startswith(str(path))


def test_numbers_of_numpy_and_alpha_are_fine(tmp_path: Path) -> None:
    """Ids from arrays are no faults, nor is a channel that says nothing."""
    files = good(tmp_path)
    content = json.loads(files["results"].read_text())
    for row in content["annotations"]:
        for one in row["segments_info"]:
            one |= {"id": np.int64(one["id"]), "category_id": np.int64(one["category_id"]), "iscrowd": np.int64(0)}
    for path in (tmp_path / "found").iterdir():
        Image.open(path).convert("RGBA").save(path)
    assert score_panoptic(files["ground_truth"], content, results_images=tmp_path / "found").value == 1.0


def test_images_without_annotation_do_not_count_and_are_said(tmp_path: Path) -> None:
    paths = good(tmp_path)
    content = json.loads(paths["ground_truth"].read_text())
    content["annotations"].pop()
    paths["ground_truth"].write_text(json.dumps(content))
    with pytest.warns(UserWarning, match=r"1 of 2 images have no annotation, such as '2\.jpg', and do not count"):
        score = score_panoptic(**paths)
    assert score.value == 1
