"""Rules about the length and the course of a training."""

from __future__ import annotations

import math

from detrkit.report.advice import Advice, Evidence

__all__ = ["TRAINING_RULES"]

_LEARNED = 0.3  # a score that a run reaches only if it has learned to detect, however short it was
_SHORT = 1500  # steps, where the run has not recorded its own limit
_RISING = 0.03  # share of the best score that the last part of a run has added, for the score to be still rising
_LAST_PART = 0.25
_GAP = 0.2
_FEW_IMAGES = 30
_WIDE = 0.1


def _longer(evidence: Evidence, factor: float) -> str:
    """The command that continues a run to ``factor`` times its length."""
    for key in ("training.iterations", "training.epochs"):
        length = evidence.setting(key)
        if length:
            return f"detrkit train {evidence.run} --resume {key}={math.ceil(length * factor)}"
    return f"detrkit train {evidence.run} --resume"


def too_short(evidence: Evidence) -> Advice | None:
    """Fewer optimizer steps than detection transformers need."""
    limit = (evidence.facts.short_steps if evidence.facts else None) or _SHORT
    steps = evidence.log.steps
    best = evidence.log.best
    value = None if best is None or evidence.log.metric is None else best.scores.get(evidence.log.metric)
    learned = 0.0 if value is None else value
    if steps >= limit or learned >= _LEARNED:
        return None
    return Advice(
        kind="too short",
        # before it, definite faults of the data: training longer on them is in vain, and a low score may come from them
        # alone. Faint signs of such faults come after it: a model that has just begun gives them on sound data too.
        urgency=98 if evidence.signs is None else 80,
        title="Train longer",
        reason=f"{steps} optimizer steps; below {limit} a detection transformer has usually not learned to detect"
        + ("" if value is None else f" ({evidence.log.metric} is {value:.3f})"),
        command=_longer(evidence, max(2.0, 2 * limit / max(1, steps))),
    )


def still_rising(evidence: Evidence) -> Advice | None:
    """The score was still rising when the run ended."""
    log = evidence.log
    series = [] if log.metric is None else log.series(log.metric)
    if len(series) < 3 or too_short(evidence) is not None:  # which says so with another length
        return None
    start = log.steps * (1 - _LAST_PART)
    earlier = [value for step, value in series if step <= start]
    later = [value for step, value in series if step > start]
    if not earlier or not later:
        return None
    gain = max(later) - max(earlier)
    if gain < max(0.005, _RISING * max(later)):
        return None
    return Advice(
        kind="still rising",
        urgency=min(78.0, 40 + 150 * gain / max(later)),
        title="Train longer: it was still learning",
        reason=f"the last {_LAST_PART:.0%} of the steps raised {log.metric} by {gain:.3f} to {max(later):.3f}",
        command=_longer(evidence, 1.5),
    )


def overfitted(evidence: Evidence) -> Advice | None:
    """The score on training images is much higher than on validation images."""
    facts, log = evidence.facts, evidence.log
    if facts is None or facts.train_score is None or not log.evaluations or log.metric is None:
        return None
    value = log.evaluations[-1].scores.get(log.metric)  # of the same weights
    if value is None or facts.train_score - value < _GAP:
        return None
    gap = facts.train_score - value
    return Advice(
        kind="train/val gap",
        urgency=45 + 40 * gap,
        title="More or more varied training images",
        reason=f"{log.metric} is {facts.train_score:.3f} on {facts.train_images} training images and {value:.3f} on "
        f"the validation images: the {facts.train.images} training images are learned by heart",
        command=f"detrkit train {evidence.run}/recipe.yaml data.augmentation=strong "
        f"training.output={evidence.run}-strong",
    )


def peaked_early(evidence: Evidence) -> Advice | None:
    """The best evaluation was long before the end."""
    log = evidence.log
    if log.best is None or log.metric is None or len(log.evaluations) < 4 or log.best.step > 0.6 * log.steps:
        return None
    value, last = log.best.scores.get(log.metric), log.evaluations[-1].scores.get(log.metric)
    if value is None or last is None or value - last < 0.01:
        return None
    return Advice(
        kind="peaked early",
        urgency=30,
        title="A shorter run does as well",
        reason=f"{log.metric} was best at step {log.best.step} of {log.steps} ({value:.3f}) and fell to {last:.3f}; "
        "best/ has the best weights",
        command=f"detrkit train {evidence.run}/recipe.yaml training.patience=5 training.output={evidence.run}-short",
    )


def not_evaluated(evidence: Evidence) -> Advice | None:
    """Nothing is known about the quality of the weights."""
    if evidence.log.evaluations:
        return None
    return Advice(
        kind="not evaluated",
        urgency=90,
        title="Evaluate it",
        reason="the run has no evaluation, so nothing is known about its weights",
        command=f"detrkit eval {evidence.run}",
    )


def few_validation_images(evidence: Evidence) -> Advice | None:
    """Too few validation images to tell two runs apart."""
    if evidence.analysis is None or evidence.analysis.intervals.overall is None:
        return None
    interval, images = evidence.analysis.intervals.overall, len(evidence.analysis.data.images)
    wide = interval.high - interval.low
    if wide == 0 or (images >= _FEW_IMAGES and wide < _WIDE):
        return None
    return Advice(
        kind="few validation images",
        urgency=40 if images < _FEW_IMAGES else 20,
        title="More validation images",
        reason=f"AP {interval.value:.3f} from {images} images may be {interval.low:.3f} to {interval.high:.3f} on "
        "others of the same kind: smaller differences between runs mean nothing",
        command=f"detrkit data split {evidence.data} --val 0.3 --out NEW_FOLDER",
    )


TRAINING_RULES = (too_short, still_rising, overfitted, peaked_early, not_evaluated, few_validation_images)
