"""``detrkit predict``: files, options, unreadable images and exit codes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detrkit.cli.main import run
from detrkit.errors import RunError
from detrkit.inference import predictor as predictor_module
from detrkit.inference.prediction_folder import PredictionFolder
from detrkit.inference.predictor import Predictor
from detrkit.structures import Categories, Category
from tests.inference.color_detector import CATEGORIES, ColorDetector, picture


@pytest.fixture(autouse=True)
def color_detector(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace every checkpoint by the colour detector; returns the names that were loaded."""
    loaded: list[str] = []

    def load(path_or_name: Any) -> ColorDetector:
        loaded.append(str(path_or_name))
        return ColorDetector()

    monkeypatch.setattr(predictor_module, "_load", load)
    return loaded


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    picture((96, 64), (0, (10, 20, 40, 50)), (2, (50, 8, 90, 28))).save(folder / "b.png")
    picture((64, 80), (1, (5, 5, 30, 70))).save(folder / "sub" / "b.png")
    picture((64, 64)).save(folder / "a.jpg", quality=100)
    return folder


def predict(*words: Any, out: Path) -> int:
    return run(["predict", *map(str, words), "--out", str(out), "--device", "cpu"])


def read(out: Path, name: str = "predictions.json") -> Any:
    return json.loads((out / name).read_text())


def test_a_folder(images: Path, tmp_path: Path, color_detector: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert predict(images, out=out) == 0
    assert color_detector == ["dape_lite0"], "the embedded default"
    predictions = read(out)
    assert list(predictions) == ["images", "categories", "annotations"]
    assert predictions["images"] == [
        {"id": 1, "file_name": "a.jpg", "width": 64, "height": 64},
        {"id": 2, "file_name": "b.png", "width": 96, "height": 64},
        {"id": 3, "file_name": "sub/b.png", "width": 64, "height": 80},
    ]
    assert [row["name"] for row in predictions["categories"]] == ["red", "green", "blue"]
    rows = sorted(predictions["annotations"], key=lambda row: (row["image_id"], row["category_id"]))
    assert [(row["image_id"], row["category_id"]) for row in rows] == [(2, 3), (2, 9), (3, 5)]
    np.testing.assert_allclose(
        [row["bbox"] for row in rows], [[10, 20, 30, 30], [50, 8, 40, 20], [5, 5, 25, 65]], atol=1e-2
    )
    for row in rows:
        assert set(row) == {"id", "image_id", "category_id", "bbox", "area", "score", "iscrowd"}
        assert row["area"] == pytest.approx(row["bbox"][2] * row["bbox"][3])
        assert row["iscrowd"] == 0
    results = read(out, "results.json")
    assert results == [
        {key: row[key] for key in ("image_id", "category_id", "bbox", "score")} for row in predictions["annotations"]
    ]
    with Image.open(out / "images" / "sub" / "b.png") as drawn:
        assert drawn.size == (64, 80)
    assert (out / "images" / "a.png").is_file()
    assert read(out, "skipped.json") == []
    captured = capfd.readouterr()
    assert "3 images, 3 objects (red 1, green 1, blue 1)" in captured.out
    assert captured.err == ""


def test_threshold_zero_keeps_all_top_k_and_is_inclusive(images: Path, tmp_path: Path) -> None:
    assert predict(images / "b.png", "--threshold", 0, out=tmp_path / "all") == 0
    rows = read(tmp_path / "all", "results.json")
    assert len(rows) == 5
    score = rows[0]["score"]
    assert predict(images / "b.png", "--threshold", repr(score), out=tmp_path / "some") == 0
    assert [row["score"] for row in read(tmp_path / "some", "results.json")][-1] == score
    assert predict(images / "b.png", "--threshold", 1.01, out=tmp_path / "none") == 2


def test_scores_and_boxes_equal_those_of_the_predictor(images: Path, tmp_path: Path) -> None:
    assert predict(images / "b.png", "--threshold", 0, "--batch-size", 3, out=tmp_path / "out") == 0
    found = Predictor(ColorDetector(), device="cpu").predict(images / "b.png", threshold=0.0)
    assert read(tmp_path / "out", "results.json") == found.to_coco(1)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], (None, None)),
        (["--nms"], (0.7, None)),
        (["--nms", "0.5"], (0.5, None)),
        (["--nms=0.4"], (0.4, None)),
        (["--nms-decay", "0.01"], (None, 0.01)),
        (["--nms", "--nms-decay", "0.02"], (0.7, 0.02)),
        (["--nms", "--no-images"], (0.7, None)),
    ],
)
@pytest.mark.parametrize("front", [True, False])
def test_nms_takes_an_optional_number(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], expected: Any, front: bool
) -> None:
    used: list[Any] = []

    class Spy(Predictor):
        def __init__(self, *args: Any, **settings: Any) -> None:
            used.append((settings["nms"], settings["nms_decay"]))
            super().__init__(*args, **settings)

    monkeypatch.setattr(predictor_module, "Predictor", Spy)
    image = images / "b.png"
    assert predict(*([*words, image] if front else [image, *words]), out=tmp_path / "out") == 0
    assert used == [expected]


def test_nms_out_of_range_is_exit_code_2(images: Path, tmp_path: Path) -> None:
    assert predict(images, "--nms", "7", out=tmp_path / "out") == 2


def test_model_option(images: Path, tmp_path: Path, color_detector: list[str]) -> None:
    assert predict(images / "b.png", "--model", "runs/cells", out=tmp_path / "out") == 0
    assert color_detector == ["runs/cells"]


def test_bad_images_are_skipped_and_listed(images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (images / "0-broken.jpg").write_bytes(b"\xff\xd8 nonsense")
    (images / "z-empty.png").write_bytes(b"")
    out = tmp_path / "out"
    assert predict(images, "--batch-size", 2, out=out) == 0
    assert [(row["id"], row["file_name"]) for row in read(out)["images"]] == [
        (1, "a.jpg"),
        (2, "b.png"),
        (3, "sub/b.png"),
    ]
    skipped = read(out, "skipped.json")
    assert [row["file_name"] for row in skipped] == ["0-broken.jpg", "z-empty.png"]
    assert "0-broken.jpg" in skipped[0]["error"]
    assert "2 images skipped" in capfd.readouterr().err

    assert predict(images, "--on-error", "raise", out=tmp_path / "strict") == 2
    assert "0-broken.jpg" in capfd.readouterr().err
    assert not (tmp_path / "strict" / "predictions.json").exists()


def test_no_readable_image_is_exit_code_2(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "in" / "bad.jpg"
    bad.parent.mkdir()
    bad.write_bytes(b"nonsense")
    assert predict(bad, out=tmp_path / "out") == 2
    assert capfd.readouterr().err.startswith(f"detrkit: error: {bad}: ")
    (tmp_path / "in" / "worse.jpg").write_bytes(b"nonsense")
    assert predict(tmp_path / "in", out=tmp_path / "out") == 2
    assert "none of 2 images can be used" in capfd.readouterr().err
    assert not (tmp_path / "out" / "predictions.json").exists()


def test_unusable_inputs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "film.mp4").write_bytes(b"x")
    for name, message in (
        ("nothing", "no such image or folder"),
        ("empty", "no images in this folder"),
        ("film.mp4", "videos are not supported yet"),
    ):
        assert predict(tmp_path / name, out=tmp_path / "out") == 2
        err = capfd.readouterr().err
        assert message in err
        assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_second_run_replaces_the_first_and_does_not_read_its_pictures(images: Path) -> None:
    out = images / "results"
    assert predict(images, out=out) == 0
    assert predict(images, "--no-images", out=out) == 0
    assert [row["file_name"] for row in read(out)["images"]] == ["a.jpg", "b.png", "sub/b.png"]
    assert not list(out.rglob("*.png"))


def test_pictures_never_land_among_the_inputs(images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    images.rename(tmp_path / "images")
    assert predict(tmp_path / "images", out=tmp_path) == 2
    assert "choose another --out" in capfd.readouterr().err


def test_ctrl_c_keeps_finished_predictions(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    plain, calls = Predictor.predict, []

    def interrupted(self: Predictor, *args: Any) -> Any:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(self, *args)

    monkeypatch.setattr(Predictor, "predict", interrupted)
    assert predict(images, out=tmp_path / "out") == 130
    assert [row["file_name"] for row in read(tmp_path / "out")["images"]] == ["a.jpg", "b.png"]
    assert "stopped after 2 of 3 images" in capfd.readouterr().err


def test_pictures_have_boxes_only_where_something_was_found(images: Path, tmp_path: Path) -> None:
    assert predict(images, out=tmp_path / "out") == 0
    with Image.open(tmp_path / "out" / "images" / "b.png") as drawn, Image.open(images / "b.png") as original:
        assert (np.asarray(drawn) != np.asarray(original)).any()
    with Image.open(tmp_path / "out" / "images" / "a.png") as drawn, Image.open(images / "a.jpg") as original:
        assert (np.asarray(drawn) == np.asarray(original)).all()


def test_predictions_can_be_scored_directly(images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Predict, then score: images are matched by name, because predict numbers them itself."""
    ground_truth = {
        "images": [
            {"id": 501, "file_name": "b.png", "width": 96, "height": 64},
            {"id": 502, "file_name": "sub/b.png", "width": 64, "height": 80},
            {"id": 500, "file_name": "a.jpg", "width": 64, "height": 64},
        ],
        "categories": [{"id": 1, "name": "green"}, {"id": 2, "name": "red"}, {"id": 3, "name": "blue"}],
        "annotations": [
            {"image_id": 501, "category_id": 2, "bbox": [10, 20, 30, 30]},
            {"image_id": 501, "category_id": 3, "bbox": [50, 8, 40, 20]},
            {"image_id": 502, "category_id": 1, "bbox": [5, 5, 25, 65]},
        ],
    }
    (tmp_path / "gt.json").write_text(json.dumps(ground_truth))
    assert predict(images, "--threshold", 0, out=tmp_path / "out") == 0
    capfd.readouterr()
    words = ["--gt", str(tmp_path / "gt.json"), "--results", str(tmp_path / "out" / "predictions.json"), "--json"]
    assert run(["score", "coco", *words]) == 0
    score = json.loads(capfd.readouterr().out)
    assert score["metrics"]["AP"] == pytest.approx(1.0)
    assert list(score["per_class"]) == ["green", "red", "blue"]


# --- one bad input costs one input ------------------------------------------------------------------------------------


def test_every_kind_of_bad_input_costs_that_input(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A pipe, a device, a link to itself, a page instead of a picture, a server that is not there, a large picture."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    os.mkfifo(images / "pipe.jpg")
    (images / "zero.jpg").symlink_to("/dev/zero")
    (images / "loop.jpg").symlink_to("loop.jpg")
    (images / "page.jpg").write_text("<html>log in</html>")
    Image.new("RGB", (300, 300)).save(images / "large.png")
    Image.new("RGB", (64, 64)).save(images / ("n" * 250 + ".png"))
    url = "http://127.0.0.1:9/gone.jpg"
    out = tmp_path / "out"
    assert predict(images, url, "--max-pixels", 10_000, "--batch-size", 2, out=out) == 0
    reasons = {row["file_name"]: row["error"] for row in read(out, "skipped.json")}
    assert sorted(reasons) == ["gone.jpg", "large.png", "loop.jpg", "page.jpg", "pipe.jpg", "zero.jpg"]
    assert "not a regular file" in reasons["pipe.jpg"]
    assert "not a regular file" in reasons["zero.jpg"]
    assert "symbolic links" in reasons["loop.jpg"]
    assert "not an image" in reasons["page.jpg"]
    assert "more than --max-pixels 10000" in reasons["large.png"]
    assert reasons["gone.jpg"].startswith(f"{url}: the image cannot be fetched")
    assert len(read(out)["images"]) == 4
    assert "6 images skipped" in capfd.readouterr().err


def test_an_image_for_which_memory_runs_out_costs_that_image(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Predictor.predict

    def short(self: Predictor, pictures: Any, *args: Any) -> Any:
        if any(picture.size == (64, 80) for picture in pictures):
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return plain(self, pictures, *args)

    monkeypatch.setattr(Predictor, "predict", short)
    assert predict(images, "--batch-size", 3, out=tmp_path / "out") == 0
    assert [row["file_name"] for row in read(tmp_path / "out")["images"]] == ["a.jpg", "b.png"]
    assert read(tmp_path / "out", "skipped.json")[0]["error"].startswith("not enough memory to predict this image")
    assert predict(images, "--on-error", "raise", out=tmp_path / "strict") == 1


def test_what_was_found_is_written_when_the_run_ends_early(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    plain, calls = Predictor.predict, []

    def failing(self: Predictor, *args: Any) -> Any:
        calls.append(args)
        if len(calls) == 3:
            raise RunError("the model predicts NaN")
        return plain(self, *args)

    monkeypatch.setattr(Predictor, "predict", failing)
    assert predict(images, out=tmp_path / "out") == 1
    assert [row["file_name"] for row in read(tmp_path / "out")["images"]] == ["a.jpg", "b.png"]
    error = capfd.readouterr().err
    assert "stopped after 2 of 3 images" in error
    assert "the model predicts NaN" in error


def test_inputs_in_the_folder_of_the_pictures_are_not_left_out_in_silence(
    images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (images / "images").mkdir()
    (images / "a.jpg").rename(images / "images" / "one.jpg")
    assert predict(images, out=images) == 2
    assert "one.jpg: pictures would be written among the inputs" in capfd.readouterr().err
    assert predict(images, "--no-images", out=images) == 0
    assert [row["file_name"] for row in read(images)["images"]] == ["b.png", "images/one.jpg", "sub/b.png"]


def test_two_predictions_into_one_folder(images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    with PredictionFolder(out, CATEGORIES).claimed():
        assert predict(images, out=out) == 2
    assert f"{out}: another prediction is being written here" in capfd.readouterr().err
    assert predict(images, out=out) == 0


# --- words ------------------------------------------------------------------------------------------------------------


def test_a_hint_where_nothing_reaches_the_threshold(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    dim = tmp_path / "in" / "dim.png"
    dim.parent.mkdir()
    picture((96, 64), (0, (10, 20, 40, 50)), brightness=140).save(dim)  # score 0.55
    assert predict(dim, "--threshold", 0.9, out=tmp_path / "out") == 0
    captured = capfd.readouterr()
    assert "1 images, 0 objects (none)" in captured.out
    assert "the best score in the image was 0.55; try --threshold 0.5" in captured.err
    assert read(tmp_path / "out", "results.json") == []
    picture((96, 64)).save(dim.parent / "black.png")
    assert predict(dim.parent, "--threshold", 0.9, out=tmp_path / "out") == 0
    assert "the best score in 2 images was 0.55; try --threshold 0.5" in capfd.readouterr().err
    assert predict(dim, out=tmp_path / "out") == 0
    assert "best score" not in capfd.readouterr().err


def test_labels_option(images: Path, tmp_path: Path) -> None:
    drawn = {}
    for labels in ("auto", "all", "none"):
        assert predict(images / "b.png", "--labels", labels, out=tmp_path / labels) == 0
        drawn[labels] = (tmp_path / labels / "images" / "b.png").read_bytes()
    assert drawn["auto"] == drawn["all"] != drawn["none"]
    assert predict(images / "b.png", "--labels", "some", out=tmp_path / "some") == 2


def test_the_option_of_eval_names_the_checkpoint_too(images: Path, tmp_path: Path, color_detector: list[str]) -> None:
    assert predict(images / "b.png", "--checkpoint", "runs/cells", out=tmp_path / "out") == 0
    assert color_detector == ["runs/cells"]


def test_escapes_in_class_names_do_not_reach_the_terminal(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    evil = Categories(Category(row.id, f"\x1b]0;owned\x07{row.name}") for row in CATEGORIES)
    monkeypatch.setattr(predictor_module, "_load", lambda _: ColorDetector(categories=evil))
    assert predict(images, out=tmp_path / "out") == 0
    captured = capfd.readouterr()
    assert "\x1b" not in captured.out + captured.err
    assert r"\x1b]0;ownedred 1" in captured.out


def test_only_some_classes_and_detections(images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert predict(images, "--threshold", 0, "--classes", "red,9", "--max-detections", 1, out=tmp_path / "out") == 0
    found = read(tmp_path / "out")["annotations"]
    assert {row["category_id"] for row in found} <= {3, 9}
    assert len(found) == len({row["image_id"] for row in found}) == 3
    assert predict(images, "--classes", "rod", out=tmp_path / "none") == 2
    assert "class 'rod': there is no such name or id. Did you mean 'red'?" in capfd.readouterr().err


def test_a_pattern(images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert predict(images / "**" / "*.png", "--tta", out=tmp_path / "out") == 0
    assert [row["file_name"] for row in read(tmp_path / "out")["images"]] == ["b.png", "sub/b.png"]
    assert predict(images / "*.gif", out=tmp_path / "none") == 2
    assert "no image matches it as a pattern" in capfd.readouterr().err


def test_files_of_objects(images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    formats = [word for name in ("csv", "yolo", "crops") for word in ("--format", name)]
    assert predict(images, *formats, out=out) == 0
    rows = (out / "predictions.csv").read_text().splitlines()
    assert len(rows) == 1 + len(read(out)["annotations"]) == 4
    assert rows[1].startswith("b.png,")
    assert (out / "labels" / "classes.txt").read_text().splitlines() == ["red", "green", "blue"]
    assert (out / "labels" / "a.txt").read_text() == ""
    assert len((out / "labels" / "sub" / "b.txt").read_text().split()) == 6
    crop = Image.open(out / "crops" / "green" / "sub_b_001.png")
    assert crop.size == (25, 65)
    assert np.asarray(crop)[..., 1].min() == 240
    assert sorted(path.name for path in (out / "crops").iterdir()) == ["blue", "green", "red"]
    own = out / "crops" / "mine.txt"
    own.write_text("of the user")
    assert predict(images, "--classes", "red", *formats[:4], out=out) == 0
    assert not list((out / "crops").rglob("*.png")), "those of the earlier run are gone"
    assert own.read_text() == "of the user"
    capfd.readouterr()
    assert predict(images, "--format", "crops", out=out) == 2
    assert "mine.txt: is not from an earlier run" in capfd.readouterr().err
    assert predict(images, out=out) == 0
    assert not (out / "labels" / "a.txt").exists()
    assert not (out / "object_files.json").exists()
