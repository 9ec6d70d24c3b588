"""LVIS: recognised by file name or fields, incomplete annotations refused, minival selected from val."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from detrkit.data import load_dataset
from detrkit.data.convert import to_coco
from detrkit.data.doctor import check
from detrkit.data.formats import find_source, find_sources, read_source, recognise_format
from detrkit.errors import DataError
from detrkit.metrics import score_lvis
from tests.data.trees import Change, coco, coco_tree, dump, edit, lvis, lvis_tree, write_images


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return lvis_tree(tmp_path / "lvis")


def test_records_have_the_class_lists_of_their_images(root: Path) -> None:
    dataset = load_dataset(root, split="val")
    assert dataset.protocol == "lvis"
    assert [record.file_name for record in dataset.records] == ["val2017/d.png", "train2017/e.png"]
    assert [record.negatives.tolist() for record in dataset.records if record.negatives is not None] == [[1], []]
    assert [r.not_exhaustive.tolist() for r in dataset.records if r.not_exhaustive is not None] == [[], [0]]
    target = dataset[1].target
    assert target.negatives is not None
    assert target.not_exhaustive is not None
    assert (target.negatives.tolist(), target.not_exhaustive.tolist()) == ([], [0])


def test_ground_truth_has_the_fields_for_lvis_scores(root: Path) -> None:
    dataset = load_dataset(root, split="val")
    truth = dataset.coco_ground_truth()
    rows = [{**row, "score": 0.5} for row in truth["annotations"]]
    score = score_lvis(truth, rows)
    assert (score.metrics["APr"], score.metrics["APf"]) == (pytest.approx(1.0), pytest.approx(1.0))
    assert score == score_lvis(root / "annotations" / "lvis_v1_val.json", rows)
    more = {"image_id": 1, "category_id": 5, "bbox": [0, 0, 9, 9], "score": 0.9}  # verified: no nut in this image
    assert score_lvis(truth, [*rows, more]).metrics["APf"] == pytest.approx(0.5)


def test_training_reads_no_segmentations(root: Path) -> None:
    source = find_source(root, "train")
    assert all("segmentation" in row for row in read_source(source).annotations)
    assert not any("segmentation" in row for row in read_source(replace(source, segmentations="none")).annotations)


def test_lvis_and_coco_in_one_folder_need_a_choice(root: Path) -> None:
    write_images("train", root / "train2017")
    dump(root / "annotations" / "instances_train2017.json", coco("train"))
    with pytest.raises(DataError, match="looks like coco and lvis at once"):
        load_dataset(root)
    assert load_dataset(root, format="lvis").protocol == "lvis"
    plain = load_dataset(root, format="coco")
    assert (plain.protocol, plain.records[0].negatives) == ("coco", None)


def test_images_in_a_neighbouring_coco_folder(root: Path, tmp_path: Path) -> None:
    for folder in ("train2017", "val2017"):
        (tmp_path / "coco").mkdir(exist_ok=True)
        shutil.move(root / folder, tmp_path / "coco" / folder)
    for file in (root / "annotations").iterdir():
        shutil.move(file, root / file.name)  # files directly in the folder, a common layout
    assert len(load_dataset(root)) == 3


def test_any_file_with_lvis_fields_is_lvis(root: Path) -> None:
    """``detrkit data sample`` names its file instances_train.json."""
    out = root.parent / "part"
    dump(
        out / "annotations" / "instances_train.json", to_coco(read_source(find_source(root, "train")), relative_to=out)
    )
    assert recognise_format(out).name == "coco"
    part = load_dataset(out)
    assert (part.protocol, len(part)) == ("lvis", 3)
    assert part.records[1].negatives is not None
    assert part.records[1].negatives.tolist() == [0, 1]


@pytest.mark.parametrize("format", ["auto", "lvis"])
def test_minival(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str) -> None:
    """Minival is the part of val in val2017; an existing file of that name is used as it is."""
    name = "annotations/lvis_v1_minival.json"
    minival = load_dataset(root, split="val", annotations=name, format=format)
    assert [record.file_name for record in minival.records] == ["val2017/d.png"]
    assert [row["image_id"] for row in minival.coco_ground_truth()["annotations"]] == [1]
    monkeypatch.chdir(tmp_path)
    assert len(load_dataset("lvis", split="val", annotations=name, format=format)) == 1
    data = lvis("val")
    for image in data["images"]:
        image["file_name"] = image["coco_url"].split("/")[-1]
    data["images"] = data["images"][:1]
    dump(root / name, data)
    assert [record.file_name for record in load_dataset(root, split="val", annotations=name).records] == ["d.png"]
    assert len(load_dataset(root, split="val")) == 2, "val is not minival"
    with pytest.raises(DataError, match=r"lvis_v1_gone\.json: no such annotation file"):
        load_dataset(root, split="val", annotations="annotations/lvis_v1_gone.json")


def test_several_files_of_a_split_need_a_choice(root: Path) -> None:
    folder = root / "annotations"
    shutil.move(folder / "lvis_v1_val.json", folder / "lvis_val_a.json")
    shutil.copy(folder / "lvis_val_a.json", folder / "lvis_val_b.json")
    with pytest.raises(DataError, match=r"lvis_val_a\.json, lvis_val_b\.json\); name one with --annotations \(Python"):
        load_dataset(root, split="val")


def test_coco_annotations_are_not_lvis(tmp_path: Path) -> None:
    root = coco_tree(tmp_path / "data")
    with pytest.raises(DataError, match=r"is not an LVIS file: .* format coco reads it"):
        load_dataset(root, format="lvis", annotations="annotations/instances_train.json")


FAULTS: list[tuple[Change, str]] = [
    (lambda c: c["categories"][0].pop("frequency"), r"category id 4: frequency is None, but LVIS has 'r', 'c' or 'f'"),
    (lambda c: c["categories"][1].update(frequency="x"), r"category id 5: frequency is 'x'"),
    (lambda c: c["images"][0].pop("neg_category_ids"), r"image id 1 has no list 'neg_category_ids', which LVIS"),
    (lambda c: c["images"][0].update(neg_category_ids=["x"]), r"image id 1: neg_category_ids has 'x', which the categ"),
    (
        lambda c: c["images"][2].pop("not_exhaustive_category_ids"),
        r"image id 3 has no list 'not_exhaustive_category_ids'",
    ),
    (lambda c: c["images"][1].update(neg_category_ids=[4, 9]), r"image id 2: neg_category_ids has 9, which the categ"),
    (
        lambda c: c["images"][1].update(not_exhaustive_category_ids=[0]),
        r"image id 2: not_exhaustive_category_ids has 0",
    ),
]


@pytest.mark.parametrize(("change", "message"), FAULTS)
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_incomplete_annotations_are_refused(root: Path, change: Change, message: str, on_error: Any) -> None:
    edit(root / "annotations" / "lvis_v1_train.json", change)
    with pytest.raises(DataError, match=rf"lvis_v1_train\.json: {message}"):
        load_dataset(root, on_error=on_error)


@pytest.mark.parametrize(("change", "message"), FAULTS)
def test_the_doctor_lists_incomplete_annotations(root: Path, change: Change, message: str) -> None:
    edit(root / "annotations" / "lvis_v1_train.json", change)
    (finding,) = (f for f in check(find_sources(root)).findings if f.check == "LVIS lists" and f.level == "error")
    assert (finding.split, finding.count) == ("train", 1)
    assert message.split(":")[0].split(" has ")[0] in finding.examples[0]


def test_the_doctor_finds_absent_classes_with_a_box(root: Path) -> None:
    edit(root / "annotations" / "lvis_v1_train.json", lambda c: c["images"][0].update(neg_category_ids=[5]))
    report = check(find_sources(root))
    (finding,) = (f for f in report.findings if f.check == "LVIS negatives" and f.level != "ok")
    assert (finding.level, finding.count, finding.examples) == ("warning", 1, ("image 1: category 5",))
    assert not report.failed


def test_images_need_a_name_or_a_url(root: Path) -> None:
    edit(root / "annotations" / "lvis_v1_train.json", lambda c: c["images"][1].pop("coco_url"))
    with pytest.raises(DataError, match=r"images\[1\] \(id 2\) has no 'file_name'"):
        load_dataset(root)
