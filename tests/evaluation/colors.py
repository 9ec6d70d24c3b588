"""Four pictures of coloured rectangles with their boxes."""

from __future__ import annotations

from tests.inference.color_detector import picture

IMAGES = {
    "a.png": picture((96, 64), (0, (10, 20, 40, 50)), (2, (50, 8, 90, 28))),
    "b.png": picture((64, 80), (1, (5, 5, 30, 70))),
    "c.png": picture((128, 64)),
    "d.png": picture((64, 64), (0, (4, 4, 60, 60))),
}
BOXES = [
    ("a.png", 3, [10.0, 20.0, 30.0, 30.0]),
    ("a.png", 9, [50.0, 8.0, 40.0, 20.0]),
    ("b.png", 5, [5.0, 5.0, 25.0, 65.0]),
    ("d.png", 3, [4.0, 4.0, 56.0, 56.0]),
]
