"""Rules about the data that a run was trained on."""

from __future__ import annotations

from detrkit.report.advice import Advice, Evidence
from detrkit.report.edge_fit import REACH

__all__ = ["DATA_RULES", "SIZE_RULES"]

_FEW = 20  # boxes of a class
_SMALL = 12.0  # pixels of the network's input
_MANY_TINY = 0.25
_LIMIT = 100  # detections of an image that COCO's AP counts


def rare_classes(evidence: Evidence) -> Advice | None:
    """Classes with hardly any training boxes."""
    if evidence.facts is None or evidence.facts.task == "sem":  # whose objects are the classes of an image
        return None
    counts = evidence.facts.train.classes
    rare = {name: count for name, count in counts.items() if count < _FEW}
    if not rare or len(counts) < 2:
        return None
    listed = ", ".join(f"{name} {count}" for name, count in sorted(rare.items(), key=lambda item: item[1])[:6])
    more = f" and {len(rare) - 6} more" if len(rare) > 6 else ""
    return Advice(
        kind="rare class",
        urgency=86 - min(rare.values()) / 2,
        title=f"Label more of {min(rare, key=lambda name: rare[name])}",
        reason=f"training objects: {listed}{more}; with fewer than {_FEW} a class is hardly learned",
        command=f"detrkit data stats {evidence.data}",
    )


def tiny_objects(evidence: Evidence) -> Advice | None:
    """Objects of a few pixels at the size that the network sees."""
    facts = evidence.facts
    if facts is None or facts.train.size is None or facts.short_side is None or facts.max_side is None:
        return None
    size, tiny = facts.train.size, facts.train.tiny
    if size >= _SMALL and tiny < _MANY_TINY:
        return None
    larger = 2 if size >= _SMALL / 2 else 3
    sides = f"data.eval_short_side={facts.short_side * larger} data.eval_max_side={facts.max_side * larger}"
    trained = f"data.short_sides=[{facts.short_side * larger}] data.max_side={facts.max_side * larger}"
    return Advice(
        kind="tiny objects",
        urgency=98.5 if size < _SMALL else 70 + 20 * tiny,
        title="Larger images, or tiles",
        reason=f"half of the objects are smaller than {size:.0f} px at the {facts.short_side} px that the network "
        f"sees, {tiny:.0%} smaller than 8 px, one cell of its finest map",
        command=f"detrkit train {evidence.run}/recipe.yaml {sides} {trained} training.output={evidence.run}-larger",
    )


def shared_images(evidence: Evidence) -> Advice | None:
    """Validation images that were trained on."""
    facts = evidence.facts
    if facts is None or facts.val is None or not facts.shared_images:
        return None
    share = facts.shared_images / max(1, facts.val.images)
    first = " = ".join(facts.shared_names[0]) if facts.shared_names else ""
    return Advice(
        kind="shared images",
        urgency=98.6 + 0.4 * share,
        title="Take the training images out of the validation set",
        reason=f"{facts.shared_images} of {facts.val.images} validation images are also training images, byte by byte "
        f"({first}, …): scores are too high by an unknown amount",
        command=f"detrkit data check {evidence.data}",
    )


def boxes_beside_edges(evidence: Evidence) -> Advice | None:
    """Labelled boxes that all lie beside what they show."""
    facts = evidence.facts
    splits = {} if facts is None else {"training": facts.train, "validation": facts.val}
    off = {name: split.offset for name, split in splits.items() if split is not None and split.offset is not None}
    if not off:
        return None
    farther = {name: " or more" * (max(abs(dx), abs(dy)) >= REACH) for name, (dx, dy) in off.items()}
    moves = (f"the {name} images by ({dx:+.0f}, {dy:+.0f}) px{farther[name]}" for name, (dx, dy) in off.items())
    listed = " and ".join(f"those of {move}" for move in moves)
    return Advice(
        kind="boxes off",
        urgency=99.2,
        title="Move the labelled boxes",
        reason=f"boxes lie beside the edges of what they show: {listed} (x, y) would put them there. A model learns "
        "such boxes as they are, so that no score shows it",
        command=f"detrkit data view {evidence.data} --out LOOK",
    )


def boxes_anywhere(evidence: Evidence) -> Advice | None:
    """Labelled boxes that have nothing to do with what the images show."""
    facts = evidence.facts
    splits = {} if facts is None else {"training": facts.train, "validation": facts.val}
    lost = [name for name, split in splits.items() if split is not None and split.anywhere]
    if not lost:
        return None
    return Advice(
        kind="boxes anywhere",
        urgency=99.3,
        title="Look whether the boxes belong to these images",
        reason=f"edges in the {' and '.join(lost)} images follow the boxes only by chance: boxes of other images, "
        "or drawn on pictures of another size, shape or orientation, look like this",
        command=f"detrkit data view {evidence.data} --out LOOK",
    )


def too_few_queries(evidence: Evidence) -> Advice | None:
    """More objects in an image than the model can find."""
    facts = evidence.facts
    if facts is None or facts.queries is None:
        return None
    most = max(facts.train.most, 0 if facts.val is None else facts.val.most)
    if most <= facts.queries:
        return None
    return Advice(
        kind="queries",
        urgency=84,
        title="More queries",
        reason=f"an image has {most} objects, the model {facts.queries} queries: it cannot find more",
        command=f"detrkit train {evidence.run}/recipe.yaml model.num_queries={most * 4 // 3} "
        f"training.output={evidence.run}-queries",
    )


def left_out(evidence: Evidence) -> Advice | None:
    """Boxes or images that could not be used."""
    count = evidence.log.left_out
    if not count:
        return None
    return Advice(
        kind="left out",
        urgency=48,
        title="Mend the labels that could not be used",
        reason=f"{count} boxes or images were left out",
        command=f"detrkit data check {evidence.data}",
    )


SIZE_RULES = (tiny_objects, too_few_queries)
"""Those that ask what the network sees."""
DATA_RULES = (
    rare_classes,
    tiny_objects,
    shared_images,
    boxes_beside_edges,
    boxes_anywhere,
    too_few_queries,
    left_out,
)
