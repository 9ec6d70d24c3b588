"""The four answers of one forward pass: perfect masks stay perfect, and thresholds, frames and classes hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import detrkit
from detrkit.errors import DataError
from detrkit.inference.predictor import Predictor
from detrkit.inference.segmentation import ImageMasks
from detrkit.structures import Categories, Detections, PanopticMap, Predictions, SemanticMap
from tests.inference.color_detector import ColorDetector
from tests.inference.planted_detector import (
    CATEGORIES,
    CELL,
    ROD,
    SKY,
    SOIL,
    UNNAMED,
    Planted,
    PlantedDetector,
    rectangle,
    scene,
)
from tests.small import small_model


def blank(size: tuple[int, int]) -> Image.Image:
    return Image.new("RGB", (size[1], size[0]))


def predictor(*scenes: list[Planted], batch_size: int = 1, **overrides: Any) -> Predictor:
    return Predictor(PlantedDetector(scenes, **overrides), device="cpu", batch_size=batch_size)


def iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float((a & b).sum() / (a | b).sum())


# --- one forward, four answers ----------------------------------------------------------------------------------------


def test_a_panoptic_model_answers_all_four_tasks_from_one_forward_of_the_backbone() -> None:
    model = small_model("dape_lite0", task="pan", top_k=7).eval()
    calls: list[Tensor] = []
    model.get_submodule("backbone").register_forward_hook(lambda *_: calls.append(torch.zeros(())))
    found = Predictor(model, device="cpu").answers(blank((70, 90)), threshold=0.0)
    assert len(calls) == 1
    assert {task: type(answer) for task, answer in found.items()} == {
        "pan": PanopticMap,
        "inst": Detections,
        "det": Detections,
        "sem": SemanticMap,
    }
    det, inst, pan, sem = (found[task] for task in ("det", "inst", "pan", "sem"))
    assert isinstance(det, Detections)
    assert isinstance(inst, Detections)
    assert isinstance(pan, PanopticMap)
    assert isinstance(sem, SemanticMap)
    assert len(det) == len(inst) == 7
    assert det.masks is None
    assert inst.masks is not None
    assert inst.masks.shape == (7, 70, 90)
    assert pan.ids.shape == sem.labels.shape == (70, 90)


@pytest.mark.parametrize("shape", [(200, 200), (200, 120)])
def test_masks_of_objects_may_be_cut_off_at_their_boxes(shape: tuple[int, int]) -> None:
    """Two masks that cover both of two cells; those of stuff stay whole, whatever their boxes."""
    left, right = rectangle(shape, 16, 40, 48, 120), rectangle(shape, 64, 40, 96, 120)
    ground, corner = ~(left | right), rectangle(shape, 0, 0, 8, 8)
    things = [Planted(CELL, left | right, score, boxed) for score, boxed in ((0.99, left), (0.98, right))]
    planted = [*things, Planted(SOIL, ground, boxed=corner)]
    whole = predictor(planted).predict(blank(shape), task="inst")
    assert whole.masks is not None
    assert [int(area) for area in whole.masks.areas] == pytest.approx([2 * 32 * 80] * 2, rel=0.05)  # of 1/4
    answers = predictor(planted, mask_in_box=True).answers(blank(shape))
    cut, segments = answers["inst"], answers["pan"]
    assert isinstance(cut, Detections)
    assert isinstance(segments, PanopticMap)
    assert cut.masks is not None
    for mask, box in zip(cut.masks, (left, right), strict=True):
        assert iou(mask, box) > 0.85  # its corners are those of a mask at 1/4
    np.testing.assert_allclose(cut.scores, whole.scores, atol=1e-2)
    number = {segment.label: segment.id for segment in segments.segments}
    assert len(segments.segments) == 3
    assert iou(segments.ids == number[SOIL], ground) > 0.95


def test_answers_equal_those_of_single_tasks(tmp_path: Any) -> None:
    path = tmp_path / "a.png"
    blank((200, 200)).save(path)
    several = predictor(scene()).answers([path])
    assert len(several) == 1
    for task, answer in several[0].items():
        alone = predictor(scene()).predict(path, task=task)
        assert type(alone) is type(answer)
        assert alone.path == answer.path == path
        for name in ("scores", "labels", "boxes", "ids"):
            np.testing.assert_array_equal(getattr(alone, name, 0), getattr(answer, name, 0))
    assert predictor(scene()).answers(path, tasks=["sem", "det"]).keys() == {"sem", "det"}


@pytest.mark.parametrize(
    ("task", "answered"), [("det", "det"), ("inst", "inst det"), ("sem", "sem"), ("pan", "pan inst det sem")]
)
def test_tasks_that_a_model_answers(task: str, answered: str) -> None:
    one = predictor(scene(), task=task)
    assert one.tasks == tuple(answered.split())
    for other in {"det", "inst", "sem", "pan"} - set(one.tasks):
        with pytest.raises(DataError, match=f"task '{other}': this model was made for '{task}' and answers"):
            one.predict(blank((200, 200)), task=other)
    with pytest.raises(DataError, match="task 'panoptic'"):
        one.predict(blank((200, 200)), task="panoptic")
    expected = {"det": Detections, "inst": Detections, "sem": SemanticMap, "pan": PanopticMap}[task]
    assert isinstance(one.predict(blank((200, 200))), expected), "the model's own task"


def test_a_model_without_masks_answers_detection_only() -> None:
    one = Predictor(ColorDetector(), device="cpu")
    assert one.tasks == ("det",)
    with pytest.raises(DataError, match=r"made for 'det' and answers det$"):
        one.predict(blank((64, 64)), task="inst")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("name", "task"),
    [("mask_dape_lite0", "inst"), ("mask_dape_lite0", "sem"), ("mask_dape_lite0", "pan"), ("detr_r50_panoptic", "pan")],
)
def test_real_models_of_every_task(name: str, task: str, precision: Any) -> None:
    model = small_model(name, **({} if name.startswith("detr") else {"task": task}))
    found = Predictor(model.eval(), device="cpu", precision=precision).answers([blank((50, 70)), blank((70, 50))])
    assert [list(answers) for answers in found] == [list(detrkit.Predictor(model, device="cpu").tasks)] * 2


# --- perfect masks ----------------------------------------------------------------------------------------------------


def labels_of(planted: list[Planted]) -> NDArray[np.int64]:
    labels = np.zeros(planted[0].mask.shape, dtype=np.int64)
    for one in planted:
        labels[one.mask] = one.label
    return labels


def check_perfect(answers: dict[str, Any], planted: list[Planted], least: float) -> None:
    """Every planted segment is found once with its class and an IoU of at least ``least`` in each answer."""
    things = [one for one in planted if CATEGORIES[one.label].is_thing]
    inst, pan, sem = answers["inst"], answers["pan"], answers["sem"]
    assert sorted(inst.labels[inst.scores > 0.5].tolist()) == sorted(one.label for one in things)
    kept = inst.keep(inst.scores > 0.5)
    pairs = [
        max(iou(mask, one.mask) for mask, k in zip(kept.masks, kept.labels, strict=True) if k == one.label)
        for one in things
    ]
    assert np.min(pairs) >= least
    segments = {segment.id: segment.label for segment in pan.segments}
    assert sorted(segments.values()) == sorted(one.label for one in planted)
    pairs = [max(iou(pan.ids == k, one.mask) for k, label in segments.items() if label == one.label) for one in planted]
    assert np.min(pairs) >= least
    true = labels_of(planted)
    pairs = [iou(sem.labels == k, true == k) for k in (CELL, ROD, SKY, SOIL)]
    assert np.min(pairs) >= least


@pytest.mark.parametrize("scale", [1, 2, 0.5])
def test_perfect_masks_at_a_quarter_are_nearly_perfect_at_full_size(scale: float) -> None:
    """Upsampling clips a pixel per convex corner: a 40 x 40 square keeps 1596 of its 1600 pixels."""
    planted = scene((256, 320))
    answers = predictor(planted, eval_short_side=round(256 * scale)).answers(blank((256, 320)))
    check_perfect(answers, planted, 0.98)
    pan = answers["pan"]
    assert isinstance(pan, PanopticMap)
    means = [iou(mask, one.mask) for mask, one in zip(pan.things().masks or [], planted[:3], strict=True)]
    assert np.mean(means) > 0.99


@pytest.mark.parametrize("classification", ["focal", "softmax"])
def test_perfect_masks_are_perfect_at_the_size_of_the_masks(classification: str) -> None:
    planted = scene((64, 80), unit=1)
    one = predictor(planted, eval_short_side=256, classification=classification)
    check_perfect(one.answers(blank((64, 80))), planted, 1.0)


def test_the_rules_for_masks_are_those_of_the_mask_branch_whatever_the_classification() -> None:
    """A query that wins less than 80 % of its mask is no segment; DETR's own rules would keep it."""
    left, most = rectangle((128, 128), 0, 0, 64, 128), rectangle((128, 128), 24, 0, 128, 128)
    planted = [Planted(CELL, left, 0.95), Planted(ROD, most, 0.6)]
    for classification in ("focal", "softmax"):
        found = predictor(planted, classification=classification).answers(blank((128, 128)), threshold=0.5)
        inst, pan = found["inst"], found["pan"]
        assert isinstance(inst, Detections)
        assert isinstance(pan, PanopticMap)
        assert [segment.label for segment in pan.segments] == [CELL]
        assert inst.labels.tolist() == [CELL, ROD]


def test_padding_does_not_move_masks_and_boxes() -> None:
    """Odd sizes, of which every image is padded on another side: masks must agree with boxes and with the truth."""
    sizes = [(203, 301), (301, 203), (199, 257)]
    scenes = [scene(size, unit=1) for size in sizes]
    pictures = [blank(size) for size in sizes]
    alone = predictor(*scenes, eval_short_side=261, size_divisor=32).answers(pictures)
    batch = predictor(*scenes, eval_short_side=261, size_divisor=32, batch_size=3).answers(pictures)
    for planted, answers, single in zip(scenes, batch, alone, strict=True):
        check_perfect(answers, planted, 0.93)
        inst = answers["inst"]
        assert isinstance(inst, Detections)
        assert inst.masks is not None
        found = inst.keep(inst.scores > 0.5)
        assert found.masks is not None
        np.testing.assert_allclose(found.masks.boxes, found.boxes, atol=2.5)
        other = single["inst"]
        assert isinstance(other, Detections)
        np.testing.assert_allclose(other.boxes, inst.boxes, atol=1e-3)


def test_exif_and_lists() -> None:
    planted = scene((96, 160))
    turned = blank((96, 160)).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.info["exif"] = exif.tobytes()
    found = predictor(planted, planted).predict([turned, blank((96, 160))], task="pan")
    assert [one.ids.shape for one in found] == [(96, 160)] * 2
    np.testing.assert_array_equal(found[0].ids, found[1].ids)


# --- thresholds -------------------------------------------------------------------------------------------------------


def graded() -> list[Planted]:
    """Four bars with the class scores 0.9, 0.5, 0.28 and 0.1."""
    bars = [rectangle((128, 128), x, 0, x + 32, 128) for x in (0, 32, 64, 96)]
    return [Planted(k, bar, s) for k, bar, s in zip((CELL, SKY, ROD, CELL), bars, (0.9, 0.5, 0.28, 0.1), strict=True)]


@pytest.mark.parametrize(
    ("task", "threshold", "expected"),
    [
        ("det", None, [CELL]),
        ("inst", None, [CELL]),
        ("det", 0.2, [CELL, ROD]),
        ("inst", 0.2, [CELL, ROD]),
        ("inst", 0.95, []),
        ("pan", None, [CELL, SKY, ROD]),
        ("pan", 0.05, [CELL, SKY, ROD, CELL]),
        ("pan", 0.4, [CELL, SKY]),
        ("pan", 0.95, []),
    ],
)
def test_one_threshold_works_for_every_task(task: str, threshold: float | None, expected: list[int]) -> None:
    def labels(answer: Any) -> list[int]:
        return [one.label for one in answer.segments] if task == "pan" else answer.labels.tolist()

    image = blank((128, 128))
    assert labels(predictor(graded()).predict(image, threshold, task)) == expected
    if threshold is not None:
        model = PlantedDetector([graded()])
        assert labels(Predictor(model, device="cpu", threshold=threshold).predict(image, task=task)) == expected


def test_threshold_of_classes_of_pixels() -> None:
    def columns(threshold: float | None) -> list[int]:
        found = predictor(graded()).predict(blank((128, 128)), threshold, task="sem")
        assert (found.labels == found.labels[:1]).all()
        return found.labels[0, 16::32].tolist()

    assert columns(None) == columns(0.0) == [CELL, SKY, ROD, CELL], "every pixel has a class"
    assert columns(0.2) == [CELL, SKY, ROD, 255]
    assert columns(0.4) == [CELL, SKY, 255, 255]
    assert columns(1.0) == [255] * 4


def test_the_threshold_of_panoptic_segments_is_the_models_own_and_inclusive() -> None:
    assert len(predictor(graded(), panoptic_threshold=0.6).predict(blank((128, 128)), task="pan").segments) == 1
    found = predictor(graded()).predict(blank((128, 128)), 0.0, task="pan")
    score = found.segments[1].score
    kept = predictor(graded()).predict(blank((128, 128)), score, task="pan")
    assert [one.score for one in kept.segments] == [one.score for one in found.segments[:2]]


# --- classes ----------------------------------------------------------------------------------------------------------


def test_stuff_is_no_detection_and_unnamed_slots_are_never_returned() -> None:
    whole = np.ones((128, 128), dtype=bool)
    planted = [Planted(UNNAMED, whole, 0.999), Planted(SKY, whole, 0.998)]
    answers = predictor(planted).answers(blank((128, 128)), threshold=0.0)
    for task in ("det", "inst"):
        found = answers[task]
        assert isinstance(found, Detections)
        assert set(found.labels.tolist()) <= {CELL, ROD}
        assert (found.scores < 0.01).all()
    pan, sem = answers["pan"], answers["sem"]
    assert isinstance(pan, PanopticMap)
    assert isinstance(sem, SemanticMap)
    assert UNNAMED not in {segment.label for segment in pan.segments}
    assert (sem.labels == SKY).all()


class Undecided(PlantedDetector):
    """No query is of any class."""

    def detect(self, *inputs: Any) -> Predictions:
        found = super().detect(*inputs)
        return replace(found, logits=torch.full_like(found.logits, -1e4))


def test_a_pixel_that_nothing_claims_is_never_an_unnamed_slot() -> None:
    model = Undecided([scene()])
    model.categories = Categories([CATEGORIES[UNNAMED], *CATEGORIES[:1], *CATEGORIES[2:]])
    found = Predictor(model, device="cpu").predict(blank((128, 128)), task="sem")
    assert (found.labels != 0).all()


def test_nothing_found() -> None:
    answers = predictor([]).answers(blank((60, 90)))
    det, inst, pan, sem = (answers[task] for task in ("det", "inst", "pan", "sem"))
    assert isinstance(det, Detections)
    assert isinstance(inst, Detections)
    assert isinstance(pan, PanopticMap)
    assert isinstance(sem, SemanticMap)
    assert len(det) == len(inst) == len(pan.segments) == len(pan.things()) == 0
    assert inst.masks is not None
    assert np.asarray(inst.masks).shape == (0, 60, 90)
    assert inst.to_coco(1) == []
    assert not pan.ids.any()
    assert sem.labels.shape == (60, 90)


def test_things_of_a_panoptic_map() -> None:
    planted = scene((256, 320))
    pan = predictor(planted).predict(blank((256, 320)), task="pan")
    things = pan.things()
    assert sorted(things.names) == ["cell", "cell", "rod"]
    assert (np.diff(things.scores) <= 0).all()
    assert things.masks is not None
    np.testing.assert_array_equal(things.boxes, things.masks.boxes)
    areas = sorted(row["area"] for row in pan.segments_info() if row["category_id"] in (3, 7))
    assert sorted(things.masks.areas.tolist()) == areas


def test_two_thousand_instances() -> None:
    """Cells of 4 x 4 pixels side by side: found, drawn, and written in all tasks."""
    side, number = 192, 2000
    places = [(x, y) for y in range(0, side, 4) for x in range(0, side, 4)][:number]
    planted = [Planted(CELL, rectangle((side, side), x, y, x + 4, y + 4)) for x, y in places]
    found = predictor(planted, eval_short_side=side, top_k=number).answers(blank((side, side)))
    inst, pan = found["inst"], found["pan"]
    assert isinstance(inst, Detections)
    assert isinstance(pan, PanopticMap)
    assert inst.masks is not None
    assert len(inst.to_coco(1)) == len(pan.segments) == number
    assert (inst.masks.areas > 0).all()
    assert len(np.unique(pan.ids[pan.ids > 0])) == number
    drawn = np.asarray(inst.draw(blank((side, side))))
    assert (drawn[: 4 * (number // 48)] > 0).any(-1).mean() > 0.7  # upsampling rounds corners


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["inst", "pan"])
def test_masks_are_resized_in_slices_after_ranking(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor of all masks at the original size is ever made, and none of queries that are not returned."""
    monkeypatch.setattr("detrkit.inference.segmentation._PIXELS_AT_ONCE", 4 * 300 * 300)
    sizes: list[int] = []
    plain = ImageMasks.resize

    def recorded(self: ImageMasks, maps: Tensor) -> Tensor:
        sizes.append(len(maps))
        return plain(self, maps)

    monkeypatch.setattr(ImageMasks, "resize", recorded)
    places = [(x, y) for y in range(0, 300, 30) for x in range(0, 300, 30)]
    planted = [
        Planted(CELL, rectangle((300, 300), x, y, x + 24, y + 24), 0.9 if k % 2 else 0.05)
        for k, (x, y) in enumerate(places)
    ]
    found = predictor(planted).predict(blank((300, 300)), task=task)
    assert len(found.segments if task == "pan" else found) == 50
    assert sum(sizes) == 50
    assert max(sizes) == 4


@pytest.mark.parametrize("classification", ["focal", "softmax"])
@pytest.mark.parametrize(("nms", "cells"), [(None, 2), (0.5, 1), (0.8, 2)])
def test_nms_removes_segments_of_things_that_were_found_twice(
    classification: str, nms: float | None, cells: int
) -> None:
    """The twins have an IoU of 2/3; stuff on the whole image stays."""
    size = (160, 160)
    planted = [
        Planted(CELL, rectangle(size, 40, 40, 120, 120)),
        Planted(CELL, rectangle(size, 56, 40, 136, 120), score=0.9),
        Planted(SKY, rectangle(size, 0, 0, 160, 160), score=0.6),
        Planted(SKY, rectangle(size, 0, 0, 160, 150), score=0.5),
    ]
    model = predictor(planted, classification=classification, nms=nms, panoptic_overlap=0.1)
    found = model.predict(blank(size), task="pan")
    assert isinstance(found, PanopticMap)
    assert sorted(segment.label for segment in found.segments) == [CELL] * cells + [SKY]
