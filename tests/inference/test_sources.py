"""Finding the images of command-line arguments, and their names."""

from __future__ import annotations

from pathlib import Path

import pytest

from detrkit.errors import DataError
from detrkit.inference.sources import find_images, open_image


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def names(*arguments: str | Path, pictures: Path | None = None) -> list[str]:
    written = [] if pictures is None else [pictures]
    return [item.file_name for item in find_images([str(argument) for argument in arguments], written=written)]


def test_folders_are_searched_with_subfolders_and_sorted(tmp_path: Path) -> None:
    touch(
        tmp_path, "b.jpg", "a/z.PNG", "a-b/c.jpeg", "a/deep/x.webp", "notes.txt", ".hidden.jpg", ".git/y.jpg", "v.mp4"
    )
    assert names(tmp_path) == ["a/deep/x.webp", "a/z.PNG", "a-b/c.jpeg", "b.jpg"]
    found = find_images([str(tmp_path)])
    assert found[0].source == tmp_path / "a" / "deep" / "x.webp"


def test_images_are_in_the_order_of_sorted_paths(tmp_path: Path) -> None:
    touch(tmp_path, "b/1.jpg", "b.jpg", "b-1.jpg", "B.jpg", "a.jpg", "10.jpg", "9.jpg")
    expected = sorted(path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*.jpg")))
    assert sorted(names(tmp_path)) == expected
    assert names(tmp_path) == [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*.jpg"))]


def test_a_file_argument_may_have_any_suffix(tmp_path: Path) -> None:
    touch(tmp_path, "photo", "a/x.jpg")
    assert names(tmp_path / "photo", tmp_path / "a" / "x.jpg") == ["photo", "x.jpg"]


def test_the_same_file_counts_once(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.jpg")
    assert names(tmp_path / "a", tmp_path / "a" / "x.jpg", tmp_path / "a" / ".." / "a" / "x.jpg") == ["x.jpg"]


def test_equal_names_of_two_arguments_become_distinct(tmp_path: Path) -> None:
    touch(tmp_path, "day1/x.jpg", "day1/y.jpg", "day2/x.jpg")
    assert names(tmp_path / "day1", tmp_path / "day2") == ["day1/x.jpg", "day2/x.jpg", "y.jpg"]


def test_urls(tmp_path: Path) -> None:
    found = find_images(["https://a.org/pics/cat%201.jpg?size=big", "https://b.org/", "https://c.org/x/cat%201.jpg"])
    assert [item.file_name for item in found] == ["cat 1-2.jpg", "cat 1.jpg", "image"]
    assert found[1].source == "https://a.org/pics/cat%201.jpg?size=big"


def test_linked_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    touch(tmp_path, "real/x.jpg", "data/y.jpg")
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "data" / "again").symlink_to(tmp_path / "data")
    assert names(tmp_path / "data") == ["linked/x.jpg", "y.jpg"]


def test_pictures_of_an_earlier_run_are_not_inputs(tmp_path: Path) -> None:
    touch(tmp_path, "x.jpg", "out/images/x.png", "images/y.jpg")
    pictures, earlier = tmp_path / "out" / "images", [tmp_path / "out" / "images" / "x.png"]
    found = find_images([str(tmp_path)], written=[pictures], earlier=earlier)
    assert [item.file_name for item in found] == ["images/y.jpg", "x.jpg"]
    with pytest.raises(DataError, match="has only pictures of an earlier run"):
        find_images([str(tmp_path / "out")], written=[pictures], earlier=earlier)


@pytest.mark.parametrize("argument", ["images", "images/sub", "."])
def test_pictures_among_the_inputs_are_refused(tmp_path: Path, argument: str) -> None:
    """An input where pictures will be written is neither left out in silence nor mixed with them."""
    touch(tmp_path, "images/sub/x.jpg", "y.jpg")
    with pytest.raises(DataError, match=r"images/sub/x\.jpg: pictures would be written among .* choose another --out"):
        names(tmp_path / argument, pictures=tmp_path / "images")
    assert "images/sub/x.jpg" in names(tmp_path), "without pictures it is an input like any other"


def test_a_link_to_itself_is_one_input_that_cannot_be_read(tmp_path: Path) -> None:
    touch(tmp_path, "x.jpg", "sub/y.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    assert names(tmp_path) == ["loop.jpg", "sub/y.jpg", "x.jpg"]
    assert names(tmp_path / "loop.jpg") == ["loop.jpg"]
    with pytest.raises(DataError, match=r"loop\.jpg: .*symbolic links"):
        open_image(tmp_path / "loop.jpg")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("%2e%2e%2f%2e%2e%2fescaped.jpg", "_.._escaped.jpg"),
        ("%2Fetc%2Fpasswd", "_etc_passwd"),
        ("..%5c..%5cx.jpg", "_.._x.jpg"),
        ("%00a%1b%0ab.jpg", "_a__b.jpg"),
        (".hidden.jpg", "hidden.jpg"),
        ("%2e%2e", "image"),
        ("", "image"),
    ],
)
def test_the_name_in_a_url_is_the_name_of_one_file(path: str, name: str) -> None:
    assert [item.file_name for item in find_images([f"http://a.org/{path}"])] == [name]


def test_a_long_name_in_a_url_is_shortened() -> None:
    (first,) = find_images(["http://a.org/" + "ä" * 300 + ".jpg"])
    (second,) = find_images(["http://a.org/" + "ä" * 301 + ".jpg"])
    assert len(first.file_name.encode()) <= 255
    assert first.file_name.endswith(".jpg")
    assert first.file_name != second.file_name


@pytest.mark.parametrize("argument", ["", "  ", "ftp://a.org/x.jpg", "file:///etc/x.jpg", "s3://bucket/x.jpg"])
def test_what_is_neither_a_path_nor_a_web_address_is_refused(argument: str) -> None:
    for use in (lambda: find_images([argument]), lambda: open_image(argument)):
        with pytest.raises(DataError, match=r"an empty text is not an image|only http:// and https:// are fetched"):
            use()


def test_clear_errors(tmp_path: Path) -> None:
    touch(tmp_path, "empty/readme.txt", "film.MP4")
    with pytest.raises(DataError, match=r"nothing\.jpg: no such image or folder"):
        names(tmp_path / "nothing.jpg")
    with pytest.raises(DataError, match=r"empty: no images in this folder \(looked for \.apng"):
        names(tmp_path / "empty")
    with pytest.raises(DataError, match=r"film\.MP4: videos are not supported yet; extract frames first"):
        names(tmp_path / "film.MP4")
    with pytest.raises(DataError, match="videos are not supported yet"):
        names("https://a.org/film.webm")
    touch(tmp_path, "data.yaml", "a.json")
    for name in ("data.yaml", "a.json"):
        with pytest.raises(DataError, match=r"describes images but is none; give the folder that they are in"):
            names(tmp_path / name)


def test_patterns_name_images_relative_to_what_stands_before_them(tmp_path: Path) -> None:
    touch(tmp_path, "day1/a.jpg", "day1/b.PNG", "day1/notes.txt", "day2/sub/a.jpg", "night/c.jpg", ".day/x.jpg")
    assert names(tmp_path / "day*") == ["day1/a.jpg", "day1/b.PNG", "day2/sub/a.jpg"]
    assert names(tmp_path / "day1" / "*") == ["a.jpg", "b.PNG"]
    assert names(tmp_path / "**" / "a.jpg") == ["day1/a.jpg", "day2/sub/a.jpg"]
    assert names(tmp_path / "day[13]" / "?.jpg") == ["day1/a.jpg"]
    assert names(tmp_path / "*" / "a.jpg", tmp_path / "day1") == ["b.PNG", "day1/a.jpg"]
    touch(tmp_path, "what?.jpg", "x[1].jpg")
    assert names(tmp_path / "what?.jpg", tmp_path / "x[1].jpg") == ["what?.jpg", "x[1].jpg"]
    with pytest.raises(DataError, match=r"\*\.gif: no such image or folder, and no image matches it"):
        find_images([str(tmp_path / "*.gif")])
    with pytest.raises(DataError, match=r"no\[1: no such image or folder$"):
        find_images([str(tmp_path / "no[1")])
