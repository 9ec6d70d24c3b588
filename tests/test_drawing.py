from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detrkit.data.packed_masks import PackedMasks, pack
from detrkit.data.records import ImageRecord
from detrkit.drawing import class_color, draw_detections, draw_labels, draw_panoptic, draw_semantic
from detrkit.structures import Categories, Category, Detections, Masks, PanopticMap, Segment, SemanticMap
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


def with_masks(*masks: tuple[slice, slice], labels: list[int] | None = None) -> Detections:
    """Detections with rectangular masks (rows, columns) on GRAY."""
    bitmaps = np.zeros((len(masks), 200, 300), dtype=bool)
    for bitmap, place in zip(bitmaps, masks, strict=True):
        bitmap[place] = True
    encoded = Masks.of(bitmaps, (200, 300))
    return replace(detections(*encoded.boxes.tolist(), labels=labels), masks=encoded)


def tinted(color: tuple[int, int, int], gray: int = 100) -> tuple[int, ...]:
    return tuple(round(0.55 * gray + 0.45 * value) for value in color)


def test_masks_are_tinted_and_outlined_instead_of_boxes() -> None:
    drawn = draw_detections(with_masks(np.s_[100:120, 100:120]), GRAY)
    assert drawn.getpixel((110, 110)) == tinted(class_color(0))
    for x, y in ((100, 110), (119, 110), (110, 100), (110, 119)):
        assert drawn.getpixel((x, y)) == class_color(0), "the outline, of one pixel"
    assert drawn.getpixel((101, 110)) == tinted(class_color(0))
    assert drawn.getpixel((130, 110)) == drawn.getpixel((99, 110)) == (100, 100, 100)
    hollow = with_masks(np.s_[50:150, 50:150])
    bitmap = np.array(hollow.masks)
    bitmap[0, 60:150, 60:150] = False
    hollow.masks = Masks.of(bitmap, (200, 300))
    drawn = draw_detections(hollow, GRAY)
    assert drawn.getpixel((149, 149)) == drawn.getpixel((149, 100)) == (100, 100, 100), "no box around a mask"


def test_instances_of_a_class_differ_in_shade_and_the_best_is_on_top() -> None:
    found = with_masks(np.s_[20:100, 20:100], np.s_[60:140, 60:140], np.s_[150:190, 20:60], labels=[1, 1, 0])
    drawn = draw_detections(found, GRAY)
    first, second = drawn.getpixel((99, 30)), drawn.getpixel((139, 120))
    assert first == class_color(1) != second
    assert np.abs(np.subtract(first, second)).max() > 20, "shades can be told apart"
    assert drawn.getpixel((20, 170)) == class_color(0)
    assert drawn.getpixel((99, 80)) == first, "the outline of the best is over the tint of the others"


def test_every_outline_stays_visible_among_150_touching_instances() -> None:
    places = [np.s_[y : y + 10, x : x + 10] for y in range(0, 100, 10) for x in range(0, 150, 10)]
    drawn = np.asarray(draw_detections(with_masks(*places), GRAY)).astype(int)
    assert not (drawn[:100, :150] == 100).all(axis=2).any()
    for y, x in ((place[0].start, place[1].start) for place in places):
        border, inside = drawn[y, x + 5], drawn[y + 5, x + 5]
        assert np.abs(border - inside).max() > 25
    columns = drawn[5, [0, 10, 20, 30, 40]]
    assert len({tuple(color) for color in columns.tolist()}) == 5, "neighbours have different shades"
    assert (drawn[100:] == 100).all(), "no captions larger than their object"


def test_captions_of_masks_stay_while_they_fit() -> None:
    alone = draw_detections(with_masks(np.s_[50:150, 50:250]), GRAY)
    plain = tinted(class_color(0))
    caption = np.asarray(alone.crop((50, 36, 100, 50))).reshape(-1, 3)
    assert (caption == class_color(0)).all(axis=1).mean() > 0.25
    assert alone.getpixel((150, 100)) == plain
    columns, rows = range(0, 300, 75), range(10, 190, 30)
    places = [np.s_[y : y + 28, x : x + 74] for y in rows for x in columns]
    crowded = np.asarray(draw_detections(with_masks(*places), GRAY))
    letters = (crowded > 230).all(axis=2)
    assert letters[:38, :74].any(), "the best ones have captions"
    assert not letters[100:].any()
    tiny = np.asarray(draw_detections(with_masks(np.s_[100:104, 100:104]), GRAY))
    assert (tiny[:100] == 100).all()


def test_the_colour_of_the_data_set_is_used_for_masks() -> None:
    found = with_masks(np.s_[100:120, 100:120])
    found.categories = Categories([Category(1, "RBC", color=(1, 2, 3)), Category(2, "WBC")])
    assert draw_detections(found, GRAY).getpixel((100, 110)) == (1, 2, 3)


SCENE = Categories([Category(1, "car"), Category(2, "dog"), Category(3, "sky", False), Category(4, "road", False)])


def panoptic() -> PanopticMap:
    ids = np.zeros((200, 300), dtype=np.int32)
    ids[:100], ids[120:, :100], ids[120:, 100:200] = 900_000, 7, 8
    return PanopticMap(ids, (Segment(7, 0), Segment(8, 0), Segment(900_000, 2)), SCENE)


def legend_colors(drawn: Image.Image) -> list[tuple[int, ...]]:
    """Colours of the squares below the picture, from left to right."""
    assert drawn.width == 300
    assert 200 < drawn.height < 250
    strip = np.asarray(drawn)[200 + 4 + 4]
    known = {class_color(label) for label in range(4)}
    found: list[tuple[int, ...]] = []
    for pixel in map(tuple, strip.tolist()):
        if pixel in known and pixel not in found:
            found.append(pixel)
    return found


def test_panoptic_map() -> None:
    drawn = panoptic().draw(GRAY)
    sky = tuple(round(0.45 * 100 + 0.55 * value) for value in class_color(2))
    assert drawn.getpixel((150, 50)) == sky
    assert drawn.getpixel((150, 110)) == (100, 100, 100), "no segment"
    assert drawn.getpixel((50, 160)) != drawn.getpixel((150, 160)), "two cars"
    assert drawn.getpixel((50, 120)) == class_color(0), "the outline"
    assert legend_colors(drawn) == [class_color(2), class_color(0)], "the classes that occur, the largest first"
    assert drawn.tobytes() == draw_panoptic(panoptic(), np.asarray(GRAY)).tobytes()


def test_semantic_map(tmp_path: Path) -> None:
    labels = np.full((200, 300), 3, dtype=np.uint8)
    labels[:50], labels[180:] = 2, 255
    GRAY.save(tmp_path / "x.png")
    drawn = SemanticMap(labels, SCENE, tmp_path / "x.png").draw()
    assert drawn.getpixel((150, 100)) == tuple(round(0.45 * 100 + 0.55 * value) for value in class_color(3))
    assert drawn.getpixel((150, 190)) == (100, 100, 100), "no class"
    assert legend_colors(drawn) == [class_color(3), class_color(2)]
    wide = np.full((200, 300), 65535, dtype=np.uint16)
    assert draw_semantic(SemanticMap(wide, SCENE), GRAY).tobytes() == GRAY.tobytes()


def test_empty_panoptic_map_and_no_masks_leave_the_image_unchanged() -> None:
    empty = PanopticMap(np.zeros((200, 300), dtype=np.int32), (), SCENE)
    assert empty.draw(GRAY).tobytes() == GRAY.tobytes()
    assert draw_detections(empty.things(), GRAY).tobytes() == GRAY.tobytes()


def test_the_legend_of_many_classes_has_several_rows() -> None:
    many = Categories(Category(k, f"a rather long name {k}") for k in range(40))
    labels = np.arange(200 * 300, dtype=np.uint32).reshape(200, 300) // 1500
    drawn = SemanticMap(labels.astype(np.uint8), many).draw(GRAY)
    assert drawn.width == 300
    assert drawn.height > 400


@pytest.mark.parametrize("found", [panoptic(), SemanticMap(np.zeros((200, 300), dtype=np.uint8), SCENE)])
def test_errors_of_maps(found: PanopticMap | SemanticMap) -> None:
    with pytest.raises(ValueError, match="carries no path"):
        found.draw()
    with pytest.raises(ValueError, match="the image is 200x300, but the map is for 300x200"):
        found.draw(Image.new("RGB", (200, 300)))


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
        assert (legend == class_color(label)).all(axis=1).mean() > 0.005
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


def test_names_are_thinned_where_they_would_cover_a_crowded_picture() -> None:
    """The best detections keep their names; every box is drawn; "all" and "none" do as they say."""
    places = [[x, y, x + 30.0, y + 14.0] for y in range(10, 180, 15) for x in range(0, 270, 30)]
    crowd = detections(*places)

    def covered(labels: Any) -> float:
        drawn = np.asarray(draw_detections(crowd, GRAY, labels=labels))
        return float((drawn != 100).any(axis=2).mean())

    assert covered("none") < covered("auto") < covered("none") + 0.26 < covered("all")
    few = detections([10, 50, 60, 90], [100, 50, 150, 90], [200, 100, 250, 150])
    auto, everything = (np.asarray(draw_detections(few, GRAY, labels=labels)) for labels in ("auto", "all"))
    assert np.array_equal(auto, everything), "a picture with few objects loses none"
    assert np.array_equal(np.asarray(few.draw(GRAY, labels="none"))[:40], np.asarray(GRAY)[:40])
    with pytest.raises(ValueError, match="labels is 'auto', 'all' or 'none', got 'some'"):
        covered("some")


def test_names_of_masks_follow_the_same_choice() -> None:
    masks = np.zeros((1, 200, 300), bool)
    masks[0, 50:60, 50:60] = True  # smaller than its caption
    one = replace(detections([50, 50, 60, 60]), masks=Masks.of(masks, (200, 300)))
    drawn = {labels: np.asarray(draw_detections(one, GRAY, labels=labels)) for labels in ("auto", "all", "none")}
    assert np.array_equal(drawn["auto"], drawn["none"])
    assert not np.array_equal(drawn["all"], drawn["none"])
