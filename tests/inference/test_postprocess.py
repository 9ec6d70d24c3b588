from __future__ import annotations

import pytest
import torch

from detrkit.inference.postprocess import default_categories, select
from detrkit.losses import ClassLoss, Focal, Softmax

BOXES = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2]])
NAMED = torch.tensor([False, True, True, False])


@pytest.mark.parametrize("classes", [Softmax(), Focal()])
@pytest.mark.parametrize("nms", [None, 0.7])
def test_unnamed_classes_are_never_returned(classes: ClassLoss, nms: float | None) -> None:
    """Not even with score 0, if top_k exceeds the candidates of named classes or their scores underflow."""
    logits = torch.full((2, 4), -200.0)
    logits[:, 0] = 5.0
    logits[0, 1] = 3.0
    if classes.no_object:
        logits = torch.cat((logits, torch.full((2, 1), 200.0)), dim=1)
    found = select(logits, BOXES, classes=classes, top_k=8, nms=nms, class_mask=NAMED)
    assert len(found.labels) == (2 if classes.exclusive else 4)
    assert set(found.labels.tolist()) <= {1, 2}
    assert (found.scores >= 0).all()


@pytest.mark.parametrize("classes", [Softmax(), Focal()])
def test_no_named_class_gives_no_detections(classes: ClassLoss) -> None:
    nothing = torch.zeros(4, dtype=torch.bool)
    found = select(torch.randn(2, 4 + classes.no_object), BOXES, classes=classes, top_k=8, class_mask=nothing)
    assert len(found.scores) == len(found.boxes) == len(found.queries) == 0


def test_classes_without_names() -> None:
    """Those of official COCO models where their number says so; gaps between ids stay without a name."""
    assert default_categories(2).names == ["class 0", "class 1"]
    assert default_categories(91).names[:2] == [None, "person"]
    assert len(default_categories(250)) == 250
