"""Class names of official checkpoints: label = raw category id, unused ids have no name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from detrkit.errors import CheckpointError
from detrkit.structures import Categories, Category

__all__ = [
    "CITYSCAPES_CATEGORIES",
    "CLASS_NAMES",
    "COCO_CATEGORIES",
    "COCO_PANOPTIC_CATEGORIES",
    "decode_names",
    "encode_names",
    "guess_categories",
    "read_classes",
]

CLASS_NAMES = "_classes_"
"""Name of the tensor that holds the class names in files of the Relation-DETR repository."""
_UNUSED, _END = "none", -1

_COCO_UNUSED = {0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
_COCO_NAMES = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv,
laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase,
scissors, teddy bear, hair drier, toothbrush
"""
_COCO_STUFF = """
92 banner, 93 blanket, 95 bridge, 100 cardboard, 107 counter, 109 curtain, 112 door-stuff, 118 floor-wood,
119 flower, 122 fruit, 125 gravel, 128 house, 130 light, 133 mirror-stuff, 138 net, 141 pillow, 144 platform,
145 playingfield, 147 railroad, 148 river, 149 road, 151 roof, 154 sand, 155 sea, 156 shelf, 159 snow, 161 stairs,
166 tent, 168 towel, 171 wall-brick, 175 wall-stone, 176 wall-tile, 177 wall-wood, 178 water-other,
180 window-blind, 181 window-other, 184 tree-merged, 185 fence-merged, 186 ceiling-merged, 187 sky-other-merged,
188 cabinet-merged, 189 table-merged, 190 floor-other-merged, 191 pavement-merged, 192 mountain-merged,
193 grass-merged, 194 dirt-merged, 195 paper-merged, 196 food-other-merged, 197 building-other-merged,
198 rock-merged, 199 wall-other-merged, 200 rug-merged
"""
# In the order of the annotation files of the DE-DETR authors.
_CITYSCAPES_NAMES = "person, car, train, rider, truck, motorcycle, bicycle, bus"


def _slots(names: str, count: int, unused: Iterable[int]) -> Categories:
    given, gaps = iter(name.strip() for name in names.split(",")), set(unused)
    return Categories(Category(slot, None if slot in gaps else next(given)) for slot in range(count))


COCO_CATEGORIES = _slots(_COCO_NAMES, 91, _COCO_UNUSED)
"""Classes of official COCO models: 91 slots, label = COCO id, unused ids without a name."""

_STUFF = {int(number): name for number, name in (row.split() for row in _COCO_STUFF.split(","))}
COCO_PANOPTIC_CATEGORIES = Categories(
    (*COCO_CATEGORIES, *(Category(slot, _STUFF.get(slot)) for slot in range(len(COCO_CATEGORIES), 250)))
)
"""Official models of COCO panoptic: 250 slots, label = COCO id, those of stuff from 92 to 200."""

CITYSCAPES_CATEGORIES = _slots(_CITYSCAPES_NAMES, 9, {0})
"""Classes of the Cityscapes models of the DE-DETR authors: 9 slots, slot 0 unused."""

_KNOWN = {
    "coco": COCO_CATEGORIES,
    "coco_panoptic": COCO_PANOPTIC_CATEGORIES,
    "cityscapes": CITYSCAPES_CATEGORIES,
}


def encode_names(categories: Categories) -> Tensor:
    """Encode names in label order as character codes (int64, 1-D), -1 after each name; unused slots are "none"."""
    names = [_UNUSED if name is None else name for name in categories.names]
    return torch.tensor([code for name in names for code in (*map(ord, name), _END)], dtype=torch.int64)


def decode_names(codes: Tensor, slots: int) -> Categories | None:
    """Decode the result of :func:`encode_names` for ``slots`` classes: label = id, unnamed slots are unused.

    None where the tensor is not a list of names, or has more names than there are slots.
    """
    values = codes.flatten().tolist()
    if codes.is_floating_point() or values[-1:] != [_END] or not all(_END <= value <= 0x10FFFF for value in values):
        return None
    names = "".join("\0" if value == _END else chr(value) for value in values).split("\0")[:-1]
    if len(names) > slots:
        return None
    names += [_UNUSED] * (slots - len(names))
    return Categories(Category(label, None if name == _UNUSED else name) for label, name in enumerate(names))


def guess_categories(
    slots: int, arguments: Mapping[str, object] | None = None, state: Mapping[str, Tensor] | None = None
) -> Categories | None:
    """The classes of an official checkpoint; None where they are not known.

    Args:
        slots: number of classes of the model.
        arguments: training arguments in the file; their ``dataset_file`` rules out other data sets.
        state: tensors of the file; class names among them have priority.
    """
    names = decode_names(state[CLASS_NAMES], slots) if state is not None and CLASS_NAMES in state else None
    if names is not None:
        return names
    trained_on = str((arguments or {}).get("dataset_file", ""))
    for name, categories in _KNOWN.items():
        if len(categories) == slots and (not trained_on or trained_on.startswith(name)):
            return categories
    return None


def read_classes(text: str, slots: int) -> Categories:
    """Classes that a user names for a model with ``slots`` classes.

    Args:
        text: ``coco``, ``coco_panoptic``, ``cityscapes``, a number N (N numbered classes), a text file with one name
            per line in label order (an empty line is an unused slot), or a COCO annotation file (label = category id
            where the largest id is the last slot, else the order of its categories).
        slots: number of classes of the model.

    Raises:
        CheckpointError: no such file, an unreadable file, or a number of classes that differs from ``slots``.
    """
    if text in _KNOWN:
        categories = _KNOWN[text]
    elif text.isdigit():
        categories = Categories(Category(label, f"class {label}") for label in range(int(text)))
    else:
        categories = _from_file(Path(text), slots)
    if len(categories) != slots:
        raise CheckpointError(f"classes '{text}' are {len(categories)} slots, but the checkpoint has {slots}")
    return categories


def _from_file(path: Path, slots: int) -> Categories:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".json":
            names = [line.strip() or None for line in text.splitlines()]
            return Categories(Category(label, name) for label, name in enumerate(names))
        rows = json.loads(text)["categories"]
        by_id = {int(row["id"]): str(row["name"]) for row in rows}
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"classes '{path}': cannot be read ({getattr(error, 'strerror', None) or error}); give coco, "
            "coco_panoptic, cityscapes, a number, a text file with one name per line, or a COCO annotation file"
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"classes '{path}': not a COCO file with categories (id, name)") from error
    if by_id and min(by_id) >= 0 and max(by_id) == slots - 1:
        return Categories(Category(slot, by_id.get(slot)) for slot in range(slots))
    return Categories(Category(number, name) for number, name in by_id.items())
