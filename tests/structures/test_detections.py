from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detrkit.structures import Categories, Category, Detections

OWN = Categories([Category(0, "cat"), Category(1, "dog"), Category(2, "unicorn")])
DATA = Categories([Category(18, "dog"), Category(17, "cat")])


@pytest.fixture
def found() -> Detections:
    boxes = np.arange(16, dtype=np.float32).reshape(4, 4)
    scores = np.array([0.9, 0.8, 0.7, 0.6], dtype=np.float32)
    labels = np.array([0, 2, 1, 0])
    masks = np.zeros((4, 20, 30), dtype=bool)
    masks[range(4), [0, 0, 0, 1], [0, 1, 2, 0]] = True  # one pixel each
    return Detections(
        boxes=boxes, scores=scores, labels=labels, categories=OWN, image_size=(20, 30), masks=masks, image_id=7
    )


def test_relabelled_detections_are_written_with_the_other_ids(found: Detections) -> None:
    other = found.relabel([1, 0, None], DATA)
    assert other.names == ["cat", "dog", "cat"]
    assert other.labels.tolist() == [1, 0, 1]
    rows = other.to_coco()
    assert [row["category_id"] for row in rows] == [17, 18, 17]
    assert [row["score"] for row in rows] == found.scores[[0, 2, 3]].tolist()
    assert [row["bbox"] for row in rows] == [[0, 1, 2, 2], [8, 9, 2, 2], [12, 13, 2, 2]]
    assert other.masks is not None
    assert [mask.sum() for mask in other.masks] == [1, 1, 1]
    assert found.names == ["cat", "unicorn", "dog", "cat"], "the original is unchanged"


def test_no_class_of_the_detections_is_in_the_other_set(found: Detections) -> None:
    other = found.relabel([None] * 3, DATA)
    assert len(other) == 0
    assert other.to_coco() == []
    assert (other.image_id, other.image_size) == (7, (20, 30))


def test_to_coco_needs_an_image_id(found: Detections) -> None:
    assert {row["image_id"] for row in found.to_coco()} == {7}
    assert {row["image_id"] for row in found.to_coco(5)} == {5}
    found.image_id = None
    with pytest.raises(ValueError, match="needs an image id"):
        found.to_coco()


def test_one_detection_has_its_values(found: Detections) -> None:
    one = found[1]
    assert (one.name, one.label, one.category_id) == ("unicorn", 2, 2)
    assert one.score == pytest.approx(0.8)
    assert one.box.tolist() == [4, 5, 6, 7]
    assert one.mask is not None
    assert np.argwhere(one.mask).tolist() == [[0, 1]]
    assert len(one) == 1
    assert found[-1].name == found[np.int64(3)].name == "cat"
    assert [one.score for one in found] == found.scores.tolist()
    for wrong, error in ((4, IndexError), (True, TypeError), ([True], IndexError)):
        with pytest.raises(error):
            found[wrong]


def test_a_position_that_is_not_there_is_said(found: Detections) -> None:
    with pytest.raises(IndexError, match="there is no detection 4: there are 4"):
        found[4]
    with pytest.raises(IndexError, match="there is no detection -1: there are 0"):
        found[[]][-1]
    with pytest.raises(IndexError, match=r"positions or a mask \(N,\), got an array \(2, 2\)"):
        found[np.zeros((2, 2), dtype=int)]


def test_equal_detections(found: Detections) -> None:
    assert found == replace(found)
    assert found[1] in found
    assert found[:1] == found[0]
    assert found != found[:3]
    assert found != replace(found, image_id=8)
    assert found != replace(found, categories=Categories([*OWN[:2], Category(2, "horse")]))
    assert found != replace(found, masks=None)
    assert found != "cat"
    assert found[[]] == found[:0]


@pytest.mark.parametrize("half", [False, True])
def test_lists_and_tensors_become_arrays(found: Detections, half: bool) -> None:
    dense = np.asarray(found.masks)
    exact = np.array([0.75, 0.5, 0.25, 0.125], dtype=np.float16)
    for kind in (list, torch.from_numpy):
        boxes = found.boxes.astype(np.float16 if half else np.float32)
        made = Detections(
            boxes=boxes.tolist() if kind is list else torch.from_numpy(boxes).to(torch.bfloat16 if half else None),
            scores=exact.tolist() if kind is list else torch.from_numpy(exact),
            labels=found.labels.tolist() if kind is list else torch.from_numpy(found.labels.astype(np.int32)),
            categories=OWN,
            image_size=(20, 30),
            masks=(7 * dense.astype(np.uint8)).tolist() if kind is list else torch.from_numpy(dense),
            image_id=7,
        )
        assert (made.boxes.dtype, made.scores.dtype, made.labels.dtype) == (np.float32, np.float32, np.int64)
        assert made == replace(found, scores=exact)
        assert made[::-1].names == ["cat", "dog", "unicorn", "cat"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"boxes": np.zeros((4, 5))}, r"boxes are \(N, 4\), got \(4, 5\)"),
        ({"scores": np.zeros((4, 1))}, r"scores are \(N,\), got \(4, 1\)"),
        ({"labels": [0, 1, 2]}, "different lengths.*'labels': 3"),
        ({"labels": [0, 1, 2, 3]}, "labels are whole numbers from 0 to 2, got 3"),
        ({"labels": [0, 1, -1, 0]}, "from 0 to 2, got -1"),
        ({"labels": [0, 1, 0.5, 0]}, "from 0 to 2, got 0.5"),
        ({"masks": np.zeros((3, 20, 30), bool)}, "different lengths.*'masks': 3"),
        ({"masks": np.zeros((4, 30, 20), bool)}, r"masks are \(N, 20, 30\) as the image, got \(4, 30, 20\)"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(found: Detections, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(found, **fields)


def test_several_detections_are_chosen_like_numbers_of_an_array(found: Detections) -> None:
    for index, left in (
        (found.scores > 0.75, [0, 1]),
        (slice(1, None), [1, 2, 3]),
        ([2, 0], [2, 0]),
        (np.array([3]), [3]),
        ([False, True, False, True], [1, 3]),
        ([], []),
    ):
        part = found[index]
        assert type(part) is Detections
        assert part.scores.tolist() == found.scores[left].tolist()
        assert part.boxes.tolist() == found.boxes[left].tolist()
        assert part.image_id == 7
        assert part.masks is not None
        assert [int(mask.argmax()) for mask in part.masks] == [[0, 1, 2, 30][position] for position in left]


def test_values_for_files(found: Detections, tmp_path: Path) -> None:
    values = found.to_dict()
    assert json.loads(json.dumps(values)) == values
    assert values["names"] == ["cat", "unicorn", "dog", "cat"]
    assert values["image_size"] == [20, 30]
    assert values["boxes"][1] == [4, 5, 6, 7]
    assert values["masks"][2]["size"] == [20, 30]
    text = found.to_csv(tmp_path / "new" / "found.csv")
    assert (tmp_path / "new" / "found.csv").read_text() == text
    rows = list(csv.DictReader(text.splitlines()))
    assert [row["name"] for row in rows] == found.names
    assert [float(rows[1][key]) for key in ("score", "x1", "y1", "x2", "y2")] == pytest.approx([0.8, 4, 5, 6, 7])
    lines = found.to_yolo(tmp_path / "found.txt", scores=True).splitlines()
    assert (tmp_path / "found.txt").read_text().splitlines() == lines
    assert [float(value) for value in lines[1].split()] == pytest.approx(
        [2, 5 / 30, 6 / 20, 2 / 30, 2 / 20, 0.8], abs=1e-6
    )
    assert found.to_yolo().splitlines()[1] == lines[1].rpartition(" ")[0]
    assert found.summary() == "30x20: 4 objects (cat 2, dog 1, unicorn 1)"
    assert found[[]].summary() == "30x20: 0 objects (none)"
    assert found[[]].to_csv().splitlines() == ["file,name,score,x1,y1,x2,y2,label,category_id"]


def test_a_data_frame_needs_pandas(found: Detections, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        found.to_dataframe()


def test_a_data_frame_has_the_columns_of_the_csv(found: Detections) -> None:
    pytest.importorskip("pandas")
    frame = found.to_dataframe()
    assert list(frame.columns) == found.to_csv().splitlines()[0].split(",")
    assert frame["name"].tolist() == found.names


def test_pictures_of_detections(tmp_path: Path) -> None:
    pixels = np.arange(600, dtype=np.uint16).reshape(20, 30) % 251
    image = Image.fromarray(pixels.astype(np.uint8)).convert("RGB")
    image.save(tmp_path / "photo.png")
    boxes = np.array([[2, 3, 8, 9], [29.5, 19.5, 30, 20], [4, 4, 4, 4]], dtype=np.float32)
    scores = np.array([0.9, 0.8, 0.7], dtype=np.float32)
    found = Detections(
        boxes=boxes,
        scores=scores,
        labels=np.array([0, 1, 2]),
        categories=OWN,
        image_size=(20, 30),
        path=tmp_path / "photo.png",
    )
    crops = found.crops()
    assert [crop.size for crop in crops] == [(6, 6), (1, 1), (1, 1)]
    np.testing.assert_array_equal(np.asarray(crops[0]), np.asarray(image)[3:9, 2:8])
    assert found.crops(image, margin=0.5)[0].size == (11, 12)  # cut off at the left
    with pytest.raises(ValueError, match="margin is a part of the sides of a box, 0 or more, got nan"):
        found.crops(image, margin=float("nan"))
    assert found[0].crops()[0].size == (6, 6)
    assert found.save(tmp_path / "out" / "found.jpg") == tmp_path / "out" / "found.jpg"
    assert Image.open(tmp_path / "out" / "found.jpg").size == (30, 20)
    found.save(tmp_path / "found.png", labels="none")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "found.png")), np.asarray(found.draw(labels="none")))
    with pytest.raises(ValueError, match=r"saved as \.png or \.jpg"):
        found.save(tmp_path / "found.bmp")
    with pytest.raises(ValueError, match="the image is 5x5"):
        found.crops(Image.new("RGB", (5, 5)))
