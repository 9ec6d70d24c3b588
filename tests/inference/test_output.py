"""The prediction folder: its files, an earlier run, and folders that cannot be written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detrkit.errors import DataError, RunError
from detrkit.inference.picture_names import picture_names
from detrkit.inference.prediction_folder import PredictionFolder
from detrkit.structures import Categories, Category, Detections

CATEGORIES = Categories([Category(3, "cell"), Category(4, None), Category(7, "dust")])
IMAGE = Image.new("RGB", (40, 30))


def found(*labels: int) -> Detections:
    count = len(labels)
    return Detections(
        boxes=np.tile(np.asarray([2.0, 4.0, 12.0, 10.0], dtype=np.float32), (count, 1)),
        scores=np.linspace(0.75, 0.5, count, dtype=np.float32) if count else np.zeros(0, np.float32),
        labels=np.asarray(labels, dtype=np.int64),
        categories=CATEGORIES,
        image_size=(30, 40),
    )


def test_files(tmp_path: Path) -> None:
    folder = PredictionFolder(tmp_path / "out", CATEGORIES)
    folder.add("sub/a.jpg", found(0, 2), IMAGE)
    folder.add("b.png", found(), IMAGE)
    folder.add("c.jpg", found(0), IMAGE)
    folder.skip("bad.jpg", "broken")
    folder.write()

    predictions = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert predictions["images"] == [
        {"id": 1, "file_name": "sub/a.jpg", "width": 40, "height": 30},
        {"id": 2, "file_name": "b.png", "width": 40, "height": 30},
        {"id": 3, "file_name": "c.jpg", "width": 40, "height": 30},
    ]
    assert predictions["categories"] == [{"id": 3, "name": "cell"}, {"id": 7, "name": "dust"}]
    first = {"image_id": 1, "category_id": 3, "bbox": [2.0, 4.0, 10.0, 6.0], "score": 0.75}
    assert predictions["annotations"][0] == {"id": 1, **first, "area": 60.0, "iscrowd": 0}
    assert [row["id"] for row in predictions["annotations"]] == [1, 2, 3]
    assert [row["image_id"] for row in predictions["annotations"]] == [1, 1, 3]

    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results[0] == first
    assert len(results) == 3
    assert json.loads((tmp_path / "out" / "skipped.json").read_text()) == [{"file_name": "bad.jpg", "error": "broken"}]
    pictures = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png"))
    assert pictures == ["images/b.png", "images/c.png", "images/sub/a.png"]
    assert folder.counts() == {"cell": 2, "dust": 1}
    assert not list((tmp_path / "out").glob(".*.draft"))


def test_without_pictures(tmp_path: Path) -> None:
    folder = PredictionFolder(tmp_path, CATEGORIES, pictures=False)
    folder.add("a.jpg", found(0), IMAGE)
    folder.write()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["predictions.json", "results.json", "skipped.json"]
    assert json.loads((tmp_path / "skipped.json").read_text()) == []


def test_an_earlier_run_is_replaced_and_other_files_are_kept(tmp_path: Path) -> None:
    first = PredictionFolder(tmp_path, CATEGORIES)
    first.add("old.jpg", found(0), IMAGE)
    first.add("both.jpg", found(0), IMAGE)
    first.skip("bad.jpg", "broken")
    first.write()
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "images" / "mine.png").write_bytes(b"mine")

    second = PredictionFolder(tmp_path, CATEGORIES)
    second.add("both.jpg", found(), IMAGE)
    assert (tmp_path / "images" / "old.png").exists(), "the old run is kept until the new one is complete"
    second.write()
    names = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    written = ["images/both.png", "predictions.json", "results.json", "skipped.json"]
    assert names == sorted([*written, "images/mine.png", "notes.txt"])
    assert json.loads((tmp_path / "skipped.json").read_text()) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [("predictions.json", '{"my": "data"}'), ("predictions.json", "text"), ("results.json", '{"a": 1}')],
)
def test_json_files_of_other_programs_are_not_overwritten(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=f"{name}: is not from detrkit"):
        PredictionFolder(tmp_path, CATEGORIES)
    assert (tmp_path / name).read_text() == text


def test_files_outside_the_folder_are_not_deleted(tmp_path: Path) -> None:
    victim = tmp_path / "victim.png"
    victim.write_bytes(b"mine")
    out = tmp_path / "out"
    out.mkdir()
    listed = {"images": [{"id": 1, "file_name": "../../victim"}], "categories": [], "annotations": []}
    (out / "predictions.json").write_text(json.dumps(listed))
    PredictionFolder(out, CATEGORIES).write()
    assert victim.exists()


def test_output_paths_that_cannot_be_folders(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="must be a folder, but this is a file"):
        PredictionFolder(tmp_path / "file", CATEGORIES)
    with pytest.raises(DataError, match="cannot be made"):
        PredictionFolder(tmp_path / "file" / "below", CATEGORIES)


def test_a_full_disk_is_a_run_time_error_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = PredictionFolder(tmp_path, CATEGORIES)
    folder.add("a.jpg", found(0), IMAGE)
    folder.write()
    before = (tmp_path / "predictions.json").read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match=r"predictions\.json: cannot be written \(No space left on device\)"):
            folder.write()
    assert (tmp_path / "predictions.json").read_bytes() == before
    assert not list(tmp_path.glob(".*.draft"))

    def cut_off(_: Image.Image, path: Path, *__: object, **___: object) -> None:
        path.write_bytes(b"half a picture")
        full()

    monkeypatch.setattr(Image.Image, "save", cut_off)
    with pytest.raises(RunError, match="the picture cannot be written \\(No space left"):
        folder.add("b.jpg", found(0), IMAGE)
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["a.png"]


# --- names and places of pictures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "pictures"),
    [
        (["photo.jpg"], ["photo.png"]),
        (["photo.png"], ["photo.png"]),
        (["photo.jpg", "photo.png"], ["photo.jpg.png", "photo.png.png"]),
        (["photo.jpg", "PHOTO.PNG"], ["photo.jpg.png", "PHOTO.PNG.png"]),
        (["photo.jpg", "sub/photo.png"], ["photo.png", "sub/photo.png"]),
        (["a.jpg", "a.png", "a.jpg.png"], ["a.jpg.png.png", "a.jpg.png", "a.png.png"]),
        (["frame.0001", "v1.2"], ["frame.0001.png", "v1.2.png"]),
    ],
)
def test_pictures_have_png_in_place_of_the_ending(images: list[str], pictures: list[str]) -> None:
    names = picture_names(images)
    assert sorted(names.values()) == sorted(pictures)
    assert len({name.casefold() for name in names.values()}) == len(images)


@pytest.mark.parametrize("stem", ["b" * 250, "ä" * 120, "b" * 251])
def test_long_names_are_kept_or_shortened_to_what_a_disk_takes(tmp_path: Path, stem: str) -> None:
    listed = [f"sub/{stem}.jpg", f"sub/{stem}.png", f"{stem}"]
    folder = PredictionFolder(tmp_path, CATEGORIES, file_names=listed)
    for name in listed:
        folder.add(name, found(0), IMAGE)
    folder.write()
    assert [row["file_name"] for row in json.loads((tmp_path / "predictions.json").read_text())["images"]] == listed
    assert len(list(tmp_path.rglob("*.png"))) == 3
    PredictionFolder(tmp_path, CATEGORIES).write()
    assert not list(tmp_path.rglob("*.png")), "a second run finds and removes them"


@pytest.mark.parametrize("link", ["images", "images/sub", "semantic"])
def test_nothing_is_written_or_removed_through_links(tmp_path: Path, link: str) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "a.png").write_bytes(b"mine")
    (out / link).parent.mkdir(parents=True)
    (out / link).symlink_to(elsewhere)
    task = "sem" if link == "semantic" else "det"
    with pytest.raises(DataError, match=rf"out/{link}/.*: a folder on the way is a link"):
        PredictionFolder(out, CATEGORIES, task=task, file_names=["a.jpg", "sub/a.jpg"])
    listed = {"images": [{"id": 1, "file_name": "sub/a.jpg"}, {"id": 2, "file_name": "a.jpg"}]}
    (out / "predictions.json").write_text(json.dumps({**listed, "categories": [], "annotations": []}))
    PredictionFolder(out, CATEGORIES, pictures=False).write()
    assert (elsewhere / "a.png").read_bytes() == b"mine"


def test_a_link_in_the_place_of_a_picture_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"mine")
    (tmp_path / "out" / "images").mkdir(parents=True)
    (tmp_path / "out" / "images" / "a.png").symlink_to(tmp_path / "victim")
    (tmp_path / "out" / "results.json").symlink_to(tmp_path / "nowhere")
    folder = PredictionFolder(tmp_path / "out", CATEGORIES)
    folder.add("a.jpg", found(0), IMAGE)
    folder.write()
    assert (tmp_path / "victim").read_bytes() == b"mine"
    assert not (tmp_path / "nowhere").exists()
    assert not folder.picture("a.jpg").is_symlink()


def test_an_output_folder_that_is_itself_a_link_is_the_users_choice(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    folder = PredictionFolder(tmp_path / "out", CATEGORIES)
    folder.add("a.jpg", found(0), IMAGE)
    folder.write()
    assert (tmp_path / "disk" / "images" / "a.png").exists()


def test_only_one_prediction_is_written_into_a_folder_at_a_time(tmp_path: Path) -> None:
    first, second = PredictionFolder(tmp_path, CATEGORIES), PredictionFolder(tmp_path, CATEGORIES)
    with (
        first.claimed(),
        pytest.raises(DataError, match="another prediction is being written here; wait for it, or choose another"),
        second.claimed(),
    ):
        pass
    with second.claimed():
        pass
    assert list(tmp_path.iterdir()) == []
