"""Bad masks are an error or are counted wherever they are read: by check, training, conversion and scores."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detrkit.data import load_dataset
from detrkit.data.convert import usable_part, write_panoptic
from detrkit.data.doctor import check
from detrkit.data.formats import find_source, find_sources, read_source
from detrkit.data.records import Table
from detrkit.errors import DataError
from detrkit.metrics import score_coco, score_panoptic, score_semantic
from tests.data.trees import (
    SIZE,
    class_map,
    edit,
    instance_files_tree,
    masks_tree,
    outlines_tree,
    panoptic,
    panoptic_tree,
    write_map,
)

WIDTH, HEIGHT = SIZE


def outline(segmentation: object) -> Callable[[Path], None]:
    """Give the first object of a.png this segmentation; its box is good."""
    return lambda root: edit(
        root / "annotations" / "instances_train.json",
        lambda data: data["annotations"][0].update(segmentation=segmentation),
    )


def segment(change: Callable[[list[dict[str, Any]]], object]) -> Callable[[Path], None]:
    """Change the list of segments of a.png."""
    return lambda root: edit(
        root / "annotations" / "panoptic_train.json", lambda data: change(data["annotations"][0]["segments_info"])
    )


def panoptic_png(ids: np.ndarray[Any, Any]) -> Callable[[Path], None]:
    return lambda root: write_map(root / "annotations" / "panoptic_train" / "a.png", ids, rgb=True)


def class_png(values: np.ndarray[Any, Any]) -> Callable[[Path], None]:
    return lambda root: write_map(root / "masks" / "train" / "a.png", values)


def object_png(values: np.ndarray[Any, Any]) -> Callable[[Path], None]:
    return lambda root: write_map(root / "masks" / "train" / "a" / "bolt_0.png", values)


@dataclass(frozen=True)
class Fault:
    """What is spoilt in the first training image, and what is said of it; ``scored``: what a score says, if not the
    same, None if it does not read such files or takes them."""

    tree: Callable[[Path], Path]
    task: str
    spoil: Callable[[Path], object]
    message: str
    scored: str | None = ""


IDS = panoptic("train")[1]["a.png"]
CLASSES = class_map([])
FAULTS = {
    "polygon with two points": Fault(outlines_tree, "inst", outline([[1, 1, 5, 1]]), "has a polygon with 2 points"),
    "polygon with half a point": Fault(
        outlines_tree, "inst", outline([[1, 1, 5, 1, 5, 5, 3]]), "odd number of coordinates"
    ),
    "short RLE": Fault(
        outlines_tree,
        "inst",
        outline({"size": [HEIGHT, WIDTH], "counts": [7, 3]}),
        "is an RLE of 10 pixels, but its size",
    ),
    "RLE of another size": Fault(
        outlines_tree, "inst", outline({"size": [10, 10], "counts": [100]}), "is an RLE for 10x10 pixels, but the image"
    ),
    "damaged RLE": Fault(
        outlines_tree, "inst", outline({"size": [HEIGHT, WIDTH], "counts": "\x7f"}), "whose counts are damaged"
    ),
    "listed, not in the PNG": Fault(
        panoptic_tree, "pan", segment(lambda rows: rows.append({**rows[0], "id": 9})), "segment 9 is listed but not in"
    ),
    "in the PNG, not listed": Fault(
        panoptic_tree, "pan", segment(lambda rows: rows.pop()), "segment 301 is in the map but not listed"
    ),
    "overlapping": Fault(
        panoptic_tree,
        "pan",
        segment(lambda rows: rows[0].update(id=rows[1]["id"])),
        "two segments have the id",
        "is used twice",
    ),
    "panoptic PNG of another size": Fault(
        panoptic_tree,
        "pan",
        panoptic_png(IDS[:-1]),
        f"the mask is {WIDTH}x{HEIGHT - 1} pixels but the image {WIDTH}x{HEIGHT}",
        f"the PNG is {WIDTH}x{HEIGHT - 1} pixels, but the JSON says {WIDTH}x{HEIGHT}",
    ),
    "class of no segment": Fault(
        panoptic_tree,
        "pan",
        segment(lambda rows: rows[0].update(category_id=99)),
        r"category id 99 is not among|segment 70003 of a\.png: 99",
        "category_id 99 is not among",
    ),
    "class map of another size": Fault(
        masks_tree, "sem", class_png(CLASSES[:-1]), f"the mask is {WIDTH}x{HEIGHT - 1} pixels but", "is .* pixels, but"
    ),
    "value of no class": Fault(
        masks_tree, "sem", class_png(np.full_like(CLASSES, 9)), "value 9 .* is no class", "value 9 .*no class"
    ),
    "nothing but pixels to ignore": Fault(
        masks_tree, "sem", class_png(np.full_like(CLASSES, 255)), "has only pixels to ignore", None
    ),
    "object of another size": Fault(
        instance_files_tree, "inst", object_png(np.ones((5, 5))), "the mask is 5x5 pixels but the image", None
    ),
}
NEVER_SKIPPED = {"class of no segment"}  # the classes of a file are wrong as a whole


@pytest.fixture(params=list(FAULTS))
def fault(request: pytest.FixtureRequest) -> Fault:
    return FAULTS[request.param]


@pytest.fixture
def root(fault: Fault, tmp_path: Path) -> Path:
    """A spoilt data set; ``good`` beside it is as it was."""
    tree = fault.tree(tmp_path / "data")
    shutil.copytree(tree, tmp_path / "good")
    fault.spoil(tree)
    return tree


def test_check_finds_them(fault: Fault, root: Path) -> None:
    found = check(find_sources(root, task=fault.task))
    assert found.failed
    said = [text for one in found.findings if one.level == "error" for text in (one.message, *one.examples)]
    assert any(re.search(fault.message, text) for text in said), said


def test_training_refuses_or_counts_them(fault: Fault, root: Path, request: pytest.FixtureRequest) -> None:
    def read(**options: Any) -> Any:
        dataset = load_dataset(root, task=fault.task, **options)
        seen = [dataset[index] for index in range(len(dataset))]
        return dataset, seen

    with pytest.raises(DataError, match=fault.message):
        read()
    if request.node.callspec.params["fault"] in NEVER_SKIPPED:
        return
    dataset, _ = read(on_error="skip")
    assert len(dataset.load_errors) + len(dataset.skipped_images) == 1


def converted(table: Table, on_error: Any) -> tuple[Table | None, list[str]]:
    """What conversion keeps and notes; nothing and the message if it refuses."""
    try:
        return usable_part(table, on_error=on_error)
    except DataError as error:
        return None, [str(error)]


def test_conversion_refuses_or_counts_them(fault: Fault, root: Path, request: pytest.FixtureRequest) -> None:
    table = read_source(find_source(root, "train", task=fault.task))
    for on_error in ("raise", "skip"):
        part, notes = converted(table, on_error)
        assert len(notes) == 1
        assert re.search(fault.message, notes[0])
        if fault.tree is outlines_tree:  # an object without a good outline still has its box
            assert part is not None
            assert len(part.annotations) == len(table.annotations)
            assert "segmentation" not in part.annotations[0]
        elif on_error == "raise" or request.node.callspec.params["fault"] in NEVER_SKIPPED:
            assert part is None
        else:
            assert part is not None
            assert len(part.images) == len(table.images) - 1


def score(task: str, root: Path, good: Path) -> object:
    if task == "inst":
        return score_coco(root / "annotations" / "instances_train.json", [], iou_type="segm")
    if task == "pan":
        return score_panoptic(*(tree / "annotations" / "panoptic_train.json" for tree in (root, good)))
    return score_semantic(*(tree / "masks" / "train" for tree in (root, good)), root / "classes.json")


@pytest.mark.parametrize("fault", [name for name, one in FAULTS.items() if one.scored is not None], indirect=True)
def test_scores_refuse_them(fault: Fault, root: Path) -> None:
    with pytest.raises(DataError, match=fault.scored or fault.message):
        score(fault.task, root, root.with_name("good"))


def test_a_panoptic_image_that_is_all_void_has_no_objects(tmp_path: Path) -> None:
    root = panoptic_tree(tmp_path / "data")
    panoptic_png(np.zeros_like(IDS))(root)
    segment(lambda rows: rows.clear())(root)
    assert not check(find_sources(root, task="pan")).failed
    for task in ("inst", "sem", "pan"):
        dataset = load_dataset(root, task=task)
        assert [len(dataset[index].target) for index in range(2)] == [0, {"inst": 0, "sem": 2, "pan": 2}[task]]
    part, notes = usable_part(read_source(find_source(root, "train", task="pan")))
    assert (len(part.images), notes) == (3, [])
    path = root / "annotations" / "panoptic_train.json"
    assert score_panoptic(path, path).value == 1.0


def test_conversion_to_panoptic_says_that_segments_overlap(tmp_path: Path) -> None:
    root = outlines_tree(tmp_path / "data")
    outline([[4, 3, 25, 3, 25, 15, 4, 15]])(root)  # reaches into the other object, which begins at 20, 6
    notes: list[str] = []
    content = write_panoptic(
        load_dataset(root, task="pan"), tmp_path / "new" / "panoptic_train.json", note=notes.append
    )
    assert notes == ["segments overlap in 1 images (a.png: 45 pixels): the later one has the pixels"]
    assert [row["area"] for row in content["annotations"][0]["segments_info"]] == [21 * 12 - 45, 20 * 24]
