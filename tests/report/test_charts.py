"""Charts: what is on them, by the lines and pixels that they hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detrkit.drawing import class_color
from detrkit.report.charts.batches import draw_batch
from detrkit.report.charts.canvas import save_chart
from detrkit.report.charts.confusion_charts import draw_confusion
from detrkit.report.charts.curves import draw_curves, main_losses
from detrkit.report.charts.score_curves import draw_precision_recall, draw_threshold_curve
from detrkit.report.charts.tiles import sheet
from detrkit.report.confusion import Confusion
from detrkit.report.precision_recall import ThresholdCurve
from detrkit.structures import Batch, Categories, Category, Target

TWO = Categories([Category(1, "cat"), Category(2, "$dog$")])


def test_losses_of_the_last_layer() -> None:
    names = ["loss", "loss_class", "loss_class_0", "loss_class_denoising", "loss_mask", "lr", "class_error"]
    assert main_losses(names) == ["loss_class", "loss_mask"]


def test_curves_have_a_panel_for_each_number(tmp_path: Path) -> None:
    table = [{"step": n, "loss": 10 - n / 10, "loss_class": 1.0, "lr": 1e-4, "lr_backbone": 1e-5} for n in range(1, 60)]
    table[20]["AP"], table[40]["AP"] = 0.4, 0.3
    figure = draw_curves(table, scores=["AP", "AP50"], title="costs $5 a_b")
    titles = [axes.get_title() for axes in figure.axes if axes.axison]
    assert titles == ["total loss", "loss_class", "validation (best AP 0.400)", "learning rate"]
    save_chart(figure, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert min(picture.size) > 200
    with pytest.raises(ValueError, match="no column"):
        draw_curves([{"step": 1.0}], scores=[])


def curve(name: str) -> ThresholdCurve:
    """Of four objects two are found, with one mistake between them."""
    counts = {"score": [0.9, 0.8, 0.5], "right": [1, 1, 2], "wrong": [0, 1, 1]}
    return ThresholdCurve(name=name, objects=4, **{key: np.asarray(value, float) for key, value in counts.items()})


def test_curves_of_classes() -> None:
    figure = draw_precision_recall(curve("all"), [curve("cat"), curve("$dog$")], ap50={"cat": 0.25, "$dog$": None})
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.lines] == ["cat: AP50 0.250", r"\$dog\$", "all 4 objects"]
    recall, precision = axes.lines[0].get_data()
    assert precision[recall <= 0.25].min() == 1
    assert precision[(recall > 0.25) & (recall <= 0.5)].max() == pytest.approx(2 / 3)
    assert precision[recall > 0.5].max() == 0
    (axes,) = draw_threshold_curve(curve("all"), [curve("cat")], value="F1", threshold=0.4).axes
    assert axes.lines[0].get_label().startswith("cat: 0.57 at")
    assert [text.get_text().strip() for text in axes.texts] == ["0.571 at 0.400"]


def test_many_classes_share_a_colour_and_need_no_numbers() -> None:
    (axes,) = draw_precision_recall(curve("all"), [curve(f"c{n}") for n in range(30)], ap50={}).axes
    assert len({line.get_color() for line in axes.lines[:30]}) == 1
    many = Confusion(names=(*(f"c{n}" for n in range(70)), "background"), counts=np.eye(71, dtype=np.int64))
    assert not list(draw_confusion(many, normalized=True).axes[0].texts)


def test_cells_of_the_confusion_matrix() -> None:
    counts = np.array([[3, 1, 0], [0, 0, 0], [2, 0, 0]])
    matrix = Confusion(names=("cat", "$dog$", "background"), counts=counts)
    cells = {}
    for normalized in (False, True):
        (axes,) = draw_confusion(matrix, normalized=normalized).axes
        cells[normalized] = {text.get_position(): text.get_text() for text in axes.texts}
        assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", r"\$dog\$", "background"]
    assert cells[False] == {(0, 0): "3", (1, 0): "1", (0, 2): "2"}
    assert cells[True] == {(0, 0): "0.75", (1, 0): "0.25", (0, 2): "1.00"}


@pytest.mark.parametrize("masks", [False, True])
def test_a_batch_as_the_model_sees_it(masks: bool) -> None:
    """A grey image of 40x20 pixels on a canvas of 40x30, with one object in its left half."""
    images = torch.zeros(1, 3, 30, 40)
    padding = torch.zeros(1, 30, 40, dtype=torch.bool)
    padding[:, 20:] = True
    inside = torch.zeros(1, 30, 40, dtype=torch.bool)
    inside[0, 5:15, 0:20] = True
    target = Target(
        labels=torch.tensor([0]),
        boxes=torch.tensor([[0.25, 0.5, 0.5, 0.5]]),
        masks=inside if masks else None,
        image_id=7,
        size=(20, 40),
        original_size=(20, 40),
    )
    picture = draw_batch([Batch(images, padding, [target])], TWO, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    pixels = np.asarray(picture)[25:-6, 6:-6]  # without the paper around it, and the caption
    height, width = pixels.shape[:2]
    assert width / height == pytest.approx(2, rel=0.02), "padding is left out"
    grey = np.abs(pixels.astype(int) - 128).max(axis=2) <= 2
    assert grey[:, width * 5 // 8 :].all(), "nothing is drawn where there is no object"
    centre = pixels[height * 5 // 8, width // 4]
    assert (tuple(centre) != (128, 128, 128)) == masks, "masks are tinted"
    red = np.abs(pixels.astype(int) - class_color(0)).max(axis=2) <= 2
    assert red[:, : width * 5 // 8].any()


def test_sheets_shrink_and_cut_captions() -> None:
    pictures = [Image.new("RGB", (1200, 300), (10 * n, 0, 0)) for n in range(3)]
    whole = sheet(pictures, columns=2, captions=["a" * 500, "b", "c"], widest=1000)
    assert whole.width <= 1000
    assert whole.height < 2 * (300 + 30)
    assert sheet(pictures[:1], columns=4).width == 1200 + 12
