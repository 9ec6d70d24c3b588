"""Rules about what the model finds and does not find."""

from __future__ import annotations

import numpy as np

from detrkit.report.advice import Advice, Evidence

__all__ = ["DETECTION_RULES"]

_MIXED = 0.4  # share of the objects found as another class
_FEWEST = 5  # objects of a class that say something
_UNLABELLED = 0.1
_DUPLICATES = 0.04
_NMS_GAIN = 0.004
_MOVED = 4.0  # pixels
_MOVED_SHARE = 0.1  # of the side of an object: a model that has just begun is off by less, in some direction
_SAME_SIDE = 0.8
_LOOSE = 0.05  # AP50


def mixed_classes(evidence: Evidence) -> Advice | None:
    """Objects are found, but mostly as another class: the splits do not mean the same by their classes."""
    if evidence.signs is None:
        return None
    confusion = evidence.signs.mixed
    counts = confusion.counts[:-1, :-1]
    found = counts.sum(axis=1)
    wrong = found - np.diag(counts)
    if len(counts) < 2 or wrong.sum() < max(_FEWEST, _MIXED * found.sum()):
        return None
    pairs = []
    for label in np.argsort(-wrong).tolist()[:4]:
        other = int(np.where(np.arange(len(counts)) == label, -1, counts[label]).argmax())
        if found[label] >= _FEWEST:
            share = counts[label, other] / found[label]
            pairs.append(f"{share:.0%} of {confusion.names[label]} as {confusion.names[other]}")
    return Advice(
        kind="mixed classes",
        urgency=99.5,
        title="Compare the class ids of training and validation labels",
        reason=f"{int(wrong.sum())} of {int(found.sum())} objects are found as another class: {', '.join(pairs)}. Ids "
        "that are off by one, or another order of the classes, look like this",
        command=f"detrkit data view {evidence.data} --out LOOK",
    )


def missing_labels(evidence: Evidence) -> Advice | None:
    """Sure detections of things that have no label."""
    if evidence.signs is None or mixed_classes(evidence) is not None:  # then few detections count as right
        return None
    found = evidence.signs.unlabelled
    if found.share < _UNLABELLED or found.without < _FEWEST:
        return None
    return Advice(
        kind="missing labels",
        urgency=min(94.0, 45 + 220 * found.share),
        title="Look for objects without a label",
        reason=f"{found.without} of the {found.sure} detections with a score of {found.threshold:.2f} or more, as sure "
        f"as the surer half of the right ones, lie where nothing is labelled ({found.share:.0%})",
        command=f"detrkit data view {evidence.data} --out LOOK",
    )


def duplicates(evidence: Evidence) -> Advice | None:
    """Objects are found more than once."""
    if evidence.signs is None or evidence.analysis is None or evidence.setting("model.nms"):
        return None
    rate, gain = evidence.analysis.duplicate_rate, evidence.signs.nms_gain
    if rate < _DUPLICATES and gain < _NMS_GAIN:
        return None
    return Advice(
        kind="duplicates",
        urgency=min(92.0, 68 + 200 * rate + 500 * max(0.0, gain)),
        title="Suppress duplicates (NMS)",
        reason=f"{rate:.1%} of the detections are further ones of an object that is already found; suppression at IoU "
        f"0.7 changes AP by {gain:+.3f} on these images",
        command=f"detrkit predict IMAGES --model {evidence.run} --nms 0.7",
    )


def boxes_moved(evidence: Evidence) -> Advice | None:
    """Detections lie beside the validation labels, all in the same direction."""
    if evidence.signs is None:
        return None
    dx, dy, same, share = evidence.signs.moved
    if max(abs(dx), abs(dy)) < _MOVED or share < _MOVED_SHARE or same < _SAME_SIDE:
        return None
    return Advice(
        kind="boxes off",
        urgency=99.1,
        title="Compare where training and validation labels put their boxes",
        reason=f"detections lie ({dx:+.1f}, {dy:+.1f}) px beside the validation labels in the median, {same:.0%} of "
        "them on the same side: one of the two splits has its boxes off",
        command=f"detrkit data view {evidence.data} --out LOOK",
    )


def _cost_of_worst(evidence: Evidence, kind: str) -> float | None:
    """The AP50 that a kind of error costs, if no other kind costs more, and it is worth a word."""
    if evidence.signs is None or evidence.analysis is None:
        return None
    cost = {name: value for name, value in evidence.analysis.tide.cost.items() if name not in ("FP", "FN")}
    return cost[kind] if kind == max(cost, key=lambda name: cost[name]) and cost[kind] >= _LOOSE else None


def loose_boxes(evidence: Evidence) -> Advice | None:
    """Boxes that are nearly right cost more than any other error."""
    cost = _cost_of_worst(evidence, "Loc")
    if cost is None:
        return None
    return Advice(
        kind="loose boxes",
        urgency=35 + 100 * cost,
        title="Boxes are loose: look whether the labels are tight",
        reason=f"with all boxes of the right objects tight enough, AP50 would be {cost:.3f} higher, more than "
        "with any other error mended",
        command=f"detrkit data view {evidence.data} --out LOOK",
    )


def missed_objects(evidence: Evidence) -> Advice | None:
    """Missed objects cost more than any other error."""
    cost = _cost_of_worst(evidence, "Miss")
    if cost is None:
        return None
    return Advice(
        kind="missed objects",
        urgency=30 + 80 * cost,
        title="Most of what is lost are missed objects",
        reason=f"with none missed, AP50 would be {cost:.3f} higher; the worst images below show which",
    )


def threshold(evidence: Evidence) -> Advice | None:
    """Which threshold is used, and how much better it is than the usual one."""
    if evidence.signs is None or evidence.analysis is None:
        return None
    curve, best = evidence.analysis.curve, evidence.analysis.threshold
    usual, own = curve.at(0.5).f1, curve.at(best).f1
    return Advice(
        kind="threshold",
        urgency=10 + 30 * (own - usual),
        title=f"Detections from a score of {best:.2f} on are used",
        reason=f"F1 is highest there: {own:.3f}, against {usual:.3f} at 0.5. The checkpoint has this threshold and "
        "those of the classes; a higher one finds fewer wrong objects, a lower one misses fewer",
        command=f"detrkit predict IMAGES --model {evidence.run} --threshold {min(0.9, best + 0.2):.2f}",
    )


DETECTION_RULES = (
    mixed_classes,
    missing_labels,
    duplicates,
    boxes_moved,
    loose_boxes,
    missed_objects,
    threshold,
)
