"""The classes of the official COCO models: 91 slots, label = COCO id, ids that COCO left out unnamed."""

from __future__ import annotations

from detrkit.structures import Categories, Category

__all__ = ["COCO_CATEGORIES"]

_UNUSED = {0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
_NAMES = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv,
laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase,
scissors, teddy bear, hair drier, toothbrush
"""


def _slots() -> Categories:
    names = iter(name.strip() for name in _NAMES.split(","))
    return Categories(Category(slot, None if slot in _UNUSED else next(names)) for slot in range(91))


COCO_CATEGORIES = _slots()
