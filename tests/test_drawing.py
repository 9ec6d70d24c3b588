from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detrkit.data.packed_masks import PackedMasks, pack
from detrkit.data.records import ImageRecord
from detrkit.drawing import class_color, draw_detections, draw_labels
from detrkit.structures import Categories, Category, Detections
from tests.data.trees import segments

CATEGORIES = Categories([Category(1, "RBC"), Category(2, "WBC")])


def detections(*boxes: list[float], size: tuple[int, int] = (200, 300), labels: list[int] | None = None) -> Detections:
    return Detections(
        boxes=np.asarray(boxes, dtype=np.float32).reshape(-1, 4),
        scores=np.linspace(0.9, 0.4, len(boxes), dtype=np.float32),
        labels=np.asarray(labels or [0] * len(boxes), dtype=np.int64),
        categories=CATEGORIES,
        image_size=size,
    )


GRAY = Image.new("RGB", (300, 200), (100, 100, 100))


def test_box_has_the_colour_of_its_class_and_a_caption_above_it() -> None:
    drawn = draw_detections(detections([50, 80, 150, 180], labels=[1]), GRAY)
    assert drawn.size == (300, 200)
    assert drawn.getpixel((50, 150)) == drawn.getpixel((149, 150)) == drawn.getpixel((100, 179)) == class_color(1)
    assert drawn.getpixel((100, 130)) == (100, 100, 100), "the inside is unchanged"
    caption = np.asarray(drawn.crop((52, 66, 100, 80))).reshape(-1, 3)
    assert (caption == class_color(1)).all(axis=1).mean() > 0.25
    assert caption.min(axis=1).max() > 200, "white letters"
    assert GRAY.getpixel((50, 150)) == (100, 100, 100), "the given image is unchanged"


def test_captions_stay_inside_the_image_and_avoid_each_other() -> None:
    drawn = np.asarray(draw_detections(detections([0, 0, 60, 60], [0, 0, 60, 60]), GRAY)).astype(int)
    colored = (drawn == class_color(0)).all(axis=2)
    assert colored[:12, :40].mean() > 0.4, "the caption moved into the box"
    assert colored[60:75, :40].mean() > 0.3 or colored[45:60, :].mean() > 0.1, "the second one moved elsewhere"


def test_lines_and_text_scale_with_the_image() -> None:
    def thickness(scale: int) -> int:
        image = Image.new("RGB", (300 * scale, 200 * scale))
        box = [value * scale for value in (100, 100, 200, 190)]
        drawn = np.asarray(draw_detections(detections(box, size=(200 * scale, 300 * scale)), image))
        return int((drawn[150 * scale] == class_color(0)).all(axis=1).sum())

    assert thickness(1) == 2
    assert thickness(8) == 14


def test_many_classes_have_their_own_colours() -> None:
    colors = [class_color(label) for label in range(91)]
    assert len(set(colors)) == 91
    assert colors == [class_color(label) for label in range(91)]


@pytest.mark.parametrize("box", [[10, 10, 10, 10], [0, 0, 300, 200], [299, 199, 300, 200], [5, 5, 5.2, 100]])
def test_degenerate_and_full_boxes(box: list[float]) -> None:
    assert draw_detections(detections(box), GRAY).size == (300, 200)


def test_no_detections_leave_the_image_unchanged() -> None:
    assert draw_detections(detections(), GRAY).tobytes() == GRAY.tobytes()


def test_image_from_a_path_an_array_or_the_path_of_the_detections(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    GRAY.save(path)
    found = detections([50, 80, 150, 180])
    expected = draw_detections(found, GRAY).tobytes()
    assert draw_detections(found, path).tobytes() == expected
    assert draw_detections(found, np.asarray(GRAY)).tobytes() == expected
    found.path = path
    assert found.draw().tobytes() == expected


def test_masks_are_tinted() -> None:
    found = detections([50, 80, 150, 180])
    found.masks = np.zeros((1, 200, 300), dtype=bool)
    found.masks[0, 100:120, 100:120] = True
    drawn = draw_detections(found, GRAY)
    assert drawn.getpixel((110, 110)) == tuple(round(0.55 * 100 + 0.45 * value) for value in class_color(0))
    assert drawn.getpixel((130, 110)) == (100, 100, 100)


def record(count: int, *, task_stuff: bool = False) -> ImageRecord:
    """Squares of 12 pixels in rows, of classes 0 and 1 by turns."""
    corners = [(20 + 14 * (k % 18), 10 + 14 * (k // 18)) for k in range(count)]
    found = segments([(x, y, x + 12, y + 12) for x, y in corners], labels=[k % 2 for k in range(count)])
    masks = PackedMasks.of([pack([[x, y, x + 12, y, x + 12, y + 12, x, y + 12]]) for x, y in corners])
    things = np.array([not task_stuff or k % 2 == 0 for k in range(count)], dtype=bool)
    return ImageRecord(
        image_id=1, path=Path("x.png"), file_name="x.png", width=300, height=200,
        segments=replace(found, masks=masks, things=things),
    )  # fmt: skip


def test_labels_with_masks_are_tinted_outlined_and_named_below() -> None:
    drawn = draw_labels(GRAY, record(180), CATEGORIES)
    assert drawn.width == 300
    assert drawn.height > 200, "a legend"
    assert drawn.crop((0, 200, 300, drawn.height)).getcolors(9999) is not None
    legend = np.asarray(drawn)[200:].reshape(-1, 3)
    for label in (0, 1):
        assert (legend == class_color(label)).all(axis=1).mean() > 0.02
    assert drawn.getpixel((20, 10)) == class_color(0), "the outline"
    assert drawn.getpixel((26, 16)) == tuple(round(0.55 * 100 + 0.45 * value) for value in class_color(0))
    picture = np.asarray(drawn)[:200]
    assert (picture == 100).all(axis=2).mean() > 0.4, "no names cover 180 objects"
    named = draw_labels(GRAY, record(3), CATEGORIES)
    assert (np.asarray(named)[:10] != 100).any(), "a name above the first object"
    assert GRAY.getpixel((20, 10)) == (100, 100, 100)


def test_stuff_is_drawn_below_and_not_named_in_place() -> None:
    drawn = np.asarray(draw_labels(GRAY, record(2, task_stuff=True), CATEGORIES))
    assert (drawn[10:22, 40:46] != 100).any()
    assert draw_labels(GRAY, record(0), CATEGORIES).tobytes() == GRAY.tobytes()


def test_errors() -> None:
    with pytest.raises(ValueError, match="carry no path"):
        draw_detections(detections())
    with pytest.raises(ValueError, match="the image is 200x300, but the detections are for 300x200"):
        draw_detections(detections(), Image.new("RGB", (200, 300)))


def test_non_latin_names_do_not_fail() -> None:
    found = detections([50, 80, 150, 180])
    found.categories = Categories([Category(1, "赤血球 µ"), Category(2, "é")])
    assert draw_detections(found, GRAY).size == (300, 200)
