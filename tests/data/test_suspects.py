"""Labels that a model doubts: planted mistakes are found and ranked, and the files say the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from numpy.typing import NDArray

from detrkit.cli.main import run
from detrkit.data import ImageRecord, load_dataset
from detrkit.data.label_habits import labelled_chances
from detrkit.data.segments import Segments
from detrkit.data.suspect_files import corrected_coco, cvat_xml, label_studio_tasks, with_ignore_regions
from detrkit.data.suspects import Suspect, ranked_suspects
from detrkit.data.suspects import find_suspects as find
from detrkit.inference.sources import find_images
from detrkit.structures import Categories, Category, Detections
from tests.inference.color_detector import CATEGORIES as COLORS
from tests.inference.color_detector import ColorDetector, coco_folder, picture

CATEGORIES = Categories([Category(3, "cell"), Category(7, "rod")])
CELL, ROD = 0, 1

Objects = list[tuple[int, tuple[float, float, float, float]]]


def record(objects: Objects, *, crowd: Objects | None = None, image_id: int = 1) -> ImageRecord:
    rows = [*objects, *(crowd or [])]
    boxes = np.array([box for _, box in rows], dtype=np.float64).reshape(-1, 4)
    no = np.zeros(len(rows), dtype=bool)
    segments = Segments(
        boxes=np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), axis=1),
        labels=np.array([label for label, _ in rows], dtype=np.int64),
        areas=np.ones(len(rows)),
        crowd=np.arange(len(rows)) >= len(objects),
        outside=no,
        things=~no,
    )
    name = f"{image_id}.png"
    return ImageRecord(image_id=image_id, path=Path(name), file_name=name, width=200, height=100, segments=segments)


def found(*objects: tuple[int, tuple[float, float, float, float], float]) -> Detections:
    return Detections(
        boxes=np.array([box for _, box, _ in objects], dtype=np.float32).reshape(-1, 4),
        scores=np.array([score for *_, score in objects], dtype=np.float32),
        labels=np.array([label for label, *_ in objects], dtype=np.int64),
        categories=CATEGORIES,
        image_size=(100, 200),
    )


def find_suspects(image: ImageRecord, detections: Detections) -> list[Suspect]:
    """Where annotators label everything: the chance of a detection is its score."""
    return find(image, detections, detections.scores.astype(np.float64))


A, B, C = (10, 10, 40, 40), (60, 10, 90, 40), (110, 50, 140, 80)


def kinds(suspects: list[Suspect], least: float = 0.1) -> list[tuple[str, int | None]]:
    ordered = sorted(suspects, key=lambda one: -one.confidence)
    return [(one.kind, one.position) for one in ordered if one.confidence >= least]


def test_labels_that_the_model_finds_are_not_doubted() -> None:
    suspects = find_suspects(record([(CELL, A), (ROD, B)]), found((CELL, A, 0.9), (ROD, (61, 11, 91, 39), 0.8)))
    assert kinds(suspects) == []


def test_each_kind() -> None:
    moved = (25, 10, 55, 40)  # by half of its width
    detections = found((CELL, A, 0.9), (ROD, B, 0.8), (CELL, C, 0.7))
    assert kinds(find_suspects(record([(CELL, A), (ROD, B)]), detections)) == [("missing", None)]
    assert kinds(find_suspects(record([(CELL, A), (CELL, B), (CELL, C)]), detections)) == [("wrong_class", 1)]
    (loose,) = [one for one in find_suspects(record([(CELL, moved), (ROD, B), (CELL, C)]), detections)]
    assert (loose.kind, loose.position) == ("loose", 0)
    assert loose.suggested_box is not None
    assert loose.suggested_box.tolist() == pytest.approx(list(A))
    assert loose.confidence == pytest.approx((1 - 0.1**2) * (0.7 - 1 / 3) / 0.4, rel=1e-4)
    twice = find_suspects(record([(CELL, A), (ROD, B), (CELL, C), (CELL, (11, 10, 41, 40))]), detections)
    assert kinds(twice) == [("duplicate", 3)]


def test_two_objects_one_behind_the_other_are_no_duplicate() -> None:
    behind = (14, 10, 44, 40)
    both = record([(CELL, A), (CELL, behind)])
    assert kinds(find_suspects(both, found((CELL, A, 0.9)))) == [("duplicate", 1)]
    apart = found((CELL, (5, 10, 35, 40), 0.9), (CELL, (20, 10, 50, 40), 0.9))
    assert ("duplicate", 1) not in kinds(find_suspects(both, apart))


def test_a_missing_object_is_listed_once_and_not_in_crowd_regions() -> None:
    detections = found((CELL, A, 0.9), (ROD, A, 0.5), (CELL, (11, 11, 41, 41), 0.4), (CELL, C, 0.8))
    suspects = find_suspects(record([]), detections)
    assert [(one.kind, one.label) for one in sorted(suspects, key=lambda one: -one.confidence)] == [
        ("missing", CELL),
        ("missing", CELL),
    ]
    inside = ranked_suspects([(record([], crowd=[(CELL, (100, 40, 150, 90))]), detections)], least=0.0)
    assert {tuple(one.box.tolist()) for one in inside} <= {A, (11, 11, 41, 41)}


def test_the_surest_of_all_images_come_first() -> None:
    images = [record([], image_id=1), record([(CELL, A)], image_id=2)]
    detections = [found((ROD, A, 0.3)), found((ROD, A, 0.9))]
    ranked = ranked_suspects(zip(images, detections, strict=True), least=0.0)
    assert [(one.kind, one.record.image_id) for one in ranked] == [("wrong_class", 2), ("missing", 1)]
    assert ranked[0].confidence == pytest.approx(1 - 0.1**2, abs=1e-6)
    assert ranked_suspects(zip(images, detections, strict=True), least=1.0) == []
    assert ranked_suspects([(record([(CELL, A)]), found())]) == []
    row = ranked[0].to_json(CATEGORIES, split="train")
    assert row == {
        "file_name": "2.png",
        "kind": "wrong_class",
        "bbox": [10, 10, 30, 30],
        "category": "cell",
        "confidence": 0.99,
        "image_id": 2,
        "split": "train",
        "suggested_category": "rod",
    }


def test_chances_follow_the_habits_of_the_annotators() -> None:
    """Annotators who leave out what is cut off, and half of the images: the chance knows both."""
    generator = np.random.default_rng(0)
    pairs, cut, careless = [], [], []
    for number in range(60):
        boxes = [
            (0.0, 10.0, 20.0, 30.0),
            (40.0, 10.0, 60.0, 30.0),
            (80.0, 10.0, 100.0, 30.0),
            (120.0, 10.0, 140.0, 30.0),
        ]
        scores = sorted(generator.uniform(0.6, 0.9, 4), reverse=True)
        kept = boxes[1:] if number % 2 else boxes[1:2]
        order = generator.permutation(4)
        rows = [(CELL, boxes[place], score) for place, score in zip(order, scores, strict=True)]
        pairs.append((record([(CELL, box) for box in kept], image_id=number), found(*rows)))
        cut.append(order == 0)
        careless.append(np.full(4, number % 2 == 0))
    chances = labelled_chances(pairs)
    assert [len(one) for one in chances] == [4] * 60
    every, at_edge, in_careless = np.concatenate(chances), np.concatenate(cut), np.concatenate(careless)
    assert every[at_edge].max() < 0.2
    assert every[~at_edge & ~in_careless].min() > 0.8
    assert every[~at_edge & in_careless].mean() < 0.6
    assert labelled_chances([(record([]), found())])[0].shape == (0,)


def test_where_nothing_is_labelled_there_is_no_habit() -> None:
    """All rods of 40 images are without a label, cells have one: rods are missing as surely as they are found."""
    generator = np.random.default_rng(1)
    pairs = []
    for number in range(40):
        scores = generator.uniform(0.6, 0.9, 2)
        pairs.append((record([(CELL, A)], image_id=number), found((CELL, A, scores[0]), (ROD, C, scores[1]))))
    for (_, detections), chance in zip(pairs, labelled_chances(pairs), strict=True):
        assert chance[1] == pytest.approx(detections.scores[1])
        assert chance[0] > 0.9
    ranked = ranked_suspects(pairs)
    assert [(one.kind, one.label) for one in ranked] == [("missing", ROD)] * 40
    assert ranked[-1].confidence >= 0.6


@pytest.mark.parametrize("seed", range(3))
def test_planted_mistakes_are_found_by_a_good_detector(seed: int) -> None:
    """Of 30 removed, 15 moved by half their size and 15 labels with another class, most stand in front."""
    generator = np.random.default_rng(seed)
    images, detections, planted = [], [], []
    for number in range(30):
        columns = generator.permutation(6)[:4]
        boxes = [(33.0 * c + 2, 10.0, 33.0 * c + 26, 40.0) for c in columns]
        labels = generator.integers(0, 2, 4).tolist()
        scores = generator.uniform(0.35, 0.95, 4)
        noise = generator.normal(0, 1.0, (4, 4))
        rows: list[Any] = [
            (k, tuple(np.array(b) + e), s) for k, b, e, s in zip(labels, boxes, noise, scores, strict=True)
        ]
        extra = (
            int(generator.integers(0, 2)),
            (10.0 + number, 60, 40.0 + number, 95),
            float(generator.uniform(0.05, 0.3)),
        )
        detections.append(found(*sorted([*rows, extra], key=lambda row: -row[2])))
        objects: Any = list(zip(labels, boxes, strict=True))
        planted.append((number + 1, np.array(objects[0][1])))
        if number < 15:
            x1, y1, x2, y2 = objects[0][1]
            objects[0] = (labels[0], (x1 + 12, y1, x2 + 12, y2)) if number % 2 else (1 - labels[0], objects[0][1])
        else:
            objects = objects[1:]
        images.append(record(objects, image_id=number + 1))
    ranked = ranked_suspects(zip(images, detections, strict=True))[:45]

    def near(one: Suspect, box: NDArray[np.float64]) -> bool:
        return abs(one.box - box).max() <= 14

    hits = sum(any(one.record.image_id == number and near(one, box) for one in ranked) for number, box in planted)
    assert hits >= 27


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images of three objects; one is not labelled, one has the class of another."""
    scene = picture((96, 64), (0, (10, 20, 40, 50)), (2, (50, 8, 90, 28)), (1, (50, 34, 80, 60)))
    boxes = [("a.png", 3, [10, 20, 30, 30]), ("a.png", 5, [50, 34, 30, 26]), ("a.png", 9, [50, 8, 40, 20])]
    boxes += [("b.png", 5, [10, 20, 30, 30]), ("b.png", 5, [50, 34, 30, 26])]
    return coco_folder(tmp_path / "data", {"a.png": scene, "b.png": scene}, boxes)


@pytest.fixture
def suspects(folder: Path) -> tuple[Any, list[Suspect]]:
    data = load_dataset(folder)
    boxes = np.array([[10, 20, 40, 50], [50, 8, 90, 28], [50, 34, 80, 60]], dtype=np.float32)
    seen = Detections(
        boxes=boxes,
        scores=np.array([0.9, 0.8, 0.7], dtype=np.float32),
        labels=np.array([0, 2, 1]),
        categories=COLORS,
        image_size=(64, 96),
    )
    return data, ranked_suspects((one, seen) for one in data.records)


def test_corrected_labels(suspects: tuple[Any, list[Suspect]], tmp_path: Path) -> None:
    data, ranked = suspects
    truth = data.coco_ground_truth()
    content = corrected_coco(truth, ranked, data.categories)
    assert len(truth["annotations"]) == 5, "the original is unchanged"
    second = [row for row in content["annotations"] if row["image_id"] == 20]
    assert sorted((row["category_id"], row["bbox"], row.get("suspect")) for row in second) == [
        (3, [10, 20, 30, 30], "wrong_class"),
        (5, [50, 34, 30, 26], None),
        (9, [50, 8, 40, 20], "missing"),
    ]
    ids = [row["id"] for row in content["annotations"]]
    assert len(set(ids)) == len(ids) == 6
    ignoring = with_ignore_regions(truth, ranked, data.categories)
    assert [row["bbox"] for row in ignoring["annotations"] if row["iscrowd"]] == [[50, 8, 40, 20]]
    (tmp_path / "own.json").write_text(json.dumps(ignoring))
    again = load_dataset(data.records[0].path.parent, annotations=tmp_path / "own.json")
    assert [len(one.crowd_labels) for one in again.records] == [0, 1]


def test_a_loose_label_and_a_duplicate_are_corrected() -> None:
    image = record([(CELL, A), (CELL, (11, 10, 41, 40)), (ROD, B)])
    loose = Suspect(
        record=image, kind="loose", box=np.array(B), label=ROD, confidence=0.8, position=2, suggested_box=np.array(C)
    )
    twice = Suspect(record=image, kind="duplicate", box=np.array(A), label=CELL, confidence=0.7, position=1)
    rows = [
        {
            "id": 5 + k,
            "image_id": 1,
            "category_id": 3,
            "bbox": box,
            "area": 1.0,
            "iscrowd": 0,
            "segmentation": [[0] * 6],
        }
        for k, box in enumerate(image.segments.boxes.tolist())
    ]
    content = corrected_coco({"annotations": rows, "images": [], "categories": []}, [loose, twice], CATEGORIES)
    assert [row["id"] for row in content["annotations"]] == [5, 7]
    assert content["annotations"][1]["bbox"] == [110, 50, 30, 30]
    assert "segmentation" not in content["annotations"][1]


def test_files_for_labelling_tools(suspects: tuple[Any, list[Suspect]]) -> None:
    data, ranked = suspects
    root = ElementTree.fromstring(cvat_xml(data.records, ranked, data.categories))
    assert root.findtext("version") == "1.1"
    assert [name.text for name in root.iterfind("meta/task/labels/label/name")] == ["red", "green", "blue"]
    images = list(root.iterfind("image"))
    assert [(image.get("name"), len(image)) for image in images] == [("a.png", 3), ("b.png", 3)]
    doubted = {box.get("label"): {a.get("name"): a.text for a in box} for box in images[1] if len(box)}
    assert doubted["green"] == {"suspect": "wrong_class", "confidence": "0.99", "suggestion": "red"}
    assert doubted["blue"]["suspect"] == "missing"
    assert (
        images[1][2].attrib | {"label": "blue", "source": "auto", "xtl": "50.00", "ybr": "28.00"} == images[1][2].attrib
    )

    (task,) = label_studio_tasks(data.records, ranked, data.categories, image_url="/data/local-files/?d=my cells/")
    assert task["data"]["image"] == "/data/local-files/?d=my cells/b.png"
    assert [one["value"]["rectanglelabels"] for one in task["annotations"][0]["result"]] == [["green"], ["green"]]
    prediction = task["predictions"][0]
    assert prediction["score"] == 0.99
    assert [one["value"]["rectanglelabels"] for one in prediction["result"]] == [["red"], ["blue"]]
    first = prediction["result"][0]["value"]
    assert [first[key] for key in ("x", "y", "width", "height")] == pytest.approx(
        [1000 / 96, 31.25, 31.25, 46.875], abs=1e-3
    )


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("detrkit.weights.open_checkpoint", lambda path: ColorDetector())
    monkeypatch.setattr("detrkit.weights.find.find_checkpoint", lambda name: Path(name))
    out = tmp_path / "out"
    words = ["data", "suspects", str(folder), "--checkpoint", "color", "--out", str(out), "--device", "cpu"]
    assert run(words) == 0
    rows = json.loads((out / "suspects.json").read_text())
    assert {row["split"] for row in rows} == {"train", "val"}
    assert {(row["file_name"], row["kind"]) for row in rows} == {("b.png", "missing"), ("b.png", "wrong_class")}
    assert [row["confidence"] for row in rows] == sorted((row["confidence"] for row in rows), reverse=True)
    assert "4 suspects beside 10 labels (" in capsys.readouterr().out
    names = {path.name for path in out.iterdir()}
    kinds = ("corrected_{}.json", "ignore_{}.json", "cvat_{}.xml", "label_studio_{}.json")
    assert names == {"suspects.json", "sheets", *(kind.format(split) for kind in kinds for split in ("train", "val"))}
    assert [item.file_name for item in find_images([str(out / "sheets")])] == ["0001.jpg"]
    assert run([*words, "--least", "1"]) == 0
    assert json.loads((out / "suspects.json").read_text()) == []
    assert not list((out / "sheets").iterdir()), "no pictures of suspects of an earlier call"
    assert run([*words, "--split", "val"]) == 0
    assert {path.stem.rpartition("_")[2] for path in out.iterdir()} == {"suspects", "sheets", "val"}, "nor its splits"
    assert run([*words[:3], "--out", str(out)]) == 2
    assert "needs --checkpoint CKPT, or --folds 5" in capsys.readouterr().err
    assert run([*words, "lr=0.1"]) == 2
    assert run([*words, "--folds", "2", "--split", "val"]) == 2
    (tmp_path / "link").symlink_to(folder / "images", target_is_directory=True)
    before = sorted(folder.rglob("*"))
    for among in (folder, folder / "images", folder / "images" / "train" / "new", tmp_path / "link" / "val"):
        capsys.readouterr()
        assert run([*words[:5], "--out", str(among)]) == 2
        assert "files and pictures would be written among the data; choose another folder" in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before
    assert run([*words, "--out", str(folder / "suspects")]) == 0, "a new folder beside that of the images"
    assert run([*words, "--out", str(folder.parent)]) == 0


def test_folds_ask_models_that_have_not_seen_the_image(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from detrkit.training.cross_validation import fold_of_images
    from detrkit.training.interrupt import Interrupted
    from tests.workplace import SMALL_RUN, TINY_MODEL

    small = SMALL_RUN | {f"model.{key}": value for key, value in TINY_MODEL.items()} | {"model.num_queries": 5}
    settings = [f"{key}={json.dumps(value)}" for key, value in small.items() if key != "training.device"]
    words = ["data", "suspects", str(folder), *settings, "model.name=de_detr_lite0", "--folds", "2"]
    out = tmp_path / "out"
    assert run([*words, "--out", str(out), "--device", "cpu", "--least", "0"]) == 0
    trained = []
    for fold in range(2):
        content = json.loads((out / "folds" / f"fold{fold}_of_2_train.json").read_text())
        trained.append([image["file_name"] for image in content["images"]])
        assert (out / "folds" / f"fold{fold}_of_2" / "last" / "model.safetensors").is_file()
    assert sorted(trained) == [["a.png"], ["b.png"]]
    assert {row["file_name"] for row in json.loads((out / "suspects.json").read_text())} == {"a.png", "b.png"}
    assert run([*words, "--out", str(out), "--device", "cpu", "model.ffn_dim=48"]) == 2
    said = capsys.readouterr().err
    assert "cannot be resumed with this recipe" in said
    assert run([*words, "--out", str(out), "--device", "cpu", "training.iterations=9"]) == 2
    said += capsys.readouterr().err
    assert f"fold0_of_2: the run there has training.iterations={small['training.iterations']}, not 9" in said
    assert f"To train all folds anew: another --out, or delete {out / 'folds'}" in said

    def stopped(*given: object, **how: object) -> None:
        raise Interrupted(2, "stopped")

    monkeypatch.setattr("detrkit.training.cross_validation.train", stopped)
    assert run([*words, "--out", str(tmp_path / "new"), "--device", "cpu"]) == 130
    assert f"interrupted; the same command goes on ({tmp_path / 'new' / 'folds'})" in capsys.readouterr().err
    many = [replace(record([]), file_name=f"{number}.png") for number in range(103)]
    sizes = np.bincount(fold_of_images(many, 5))
    assert sizes.sum() == 103
    assert sizes.max() - sizes.min() <= 1
