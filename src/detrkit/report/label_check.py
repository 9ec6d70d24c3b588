"""Before a training: what is wrong with the labels, found without a model and without torch.

The checks of ``detrkit data check`` that need no pixels, and the rules of a report about the data.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from detrkit.data.annotated_images import AnnotatedImages
from detrkit.data.class_maps import ONE_CLASS
from detrkit.data.doctor import check
from detrkit.data.findings import Finding
from detrkit.data.formats import Source, find_source
from detrkit.data.mask_checks import MASK_CHECKS, MASK_VALUES
from detrkit.data.open import load_source
from detrkit.data.segments import rules_of
from detrkit.errors import DataError
from detrkit.report.advice import Evidence, Rule, advise
from detrkit.report.data_rules import DATA_RULES, SIZE_RULES
from detrkit.report.facts import Facts, data_facts
from detrkit.report.run_log import RunLog

if TYPE_CHECKING:
    from detrkit.config import Recipe

__all__ = ["LabelDoubt", "label_doubts", "size_doubts"]

LOOKED_AT = 30  # images of each split, for the edges below boxes

_STOPS = {"crowd classes", "empty labels", "class ids", ONE_CLASS}
"""Warnings of ``data check`` that make a training pointless, beside its errors."""
_RULES_STOP = {"boxes off", "boxes anywhere", "shared images"}
_SKIPPED = {"box values", "boxes outside", "image data", "image files", "annotation values", MASK_VALUES}
"""Errors that ``data.on_error=skip`` lives with."""


@dataclass(frozen=True, kw_only=True)
class LabelDoubt:
    """Something about the labels. stops: whether a training on them is in vain before it is mended."""

    text: str
    stops: bool


def label_doubts(recipe: Recipe, task: str) -> list[LabelDoubt]:
    """What is wrong with the labels of a recipe's data, the worst first; empty for a sound set.

    Raises:
        DataError: the labels cannot be read at all.
    """
    sources = _sources(recipe, task)
    skip = recipe.data.on_error == "skip"
    findings = [one for one in check(sources, quick=True).findings if one.level in ("warning", "error")]
    harmless = frozenset(_SKIPPED if skip else ()) | (frozenset() if rules_of(task).masks else MASK_CHECKS)
    doubts = [_of_finding(one, harmless) for one in findings]
    if any(one.stops for one in doubts):
        return sorted(doubts, key=lambda one: not one.stops)  # pixels are looked at where numbers are sound
    loaded = {split: _read(recipe, split, source, task) for split, source in sources.items()}
    doubts += [_unusable(split) for split, data in loaded.items() if not any(len(one.labels) for one in data.records)]
    facts = data_facts(loaded["train"], loaded.get("val"), look=LOOKED_AT, task=task)
    doubts += _of_rules(facts, recipe, DATA_RULES)
    return sorted(doubts, key=lambda one: not one.stops)


def size_doubts(
    recipe: Recipe,
    train: AnnotatedImages,
    val: AnnotatedImages | None,
    *,
    short_side: int,
    max_side: int,
    queries: int,
) -> list[LabelDoubt]:
    """The same of the size that the network sees, and of the number of its queries."""
    facts = data_facts(train, val, short_side=short_side, max_side=max_side, queries=queries)
    return _of_rules(facts, recipe, SIZE_RULES)


def _sources(recipe: Recipe, task: str) -> dict[str, Source]:
    section, found = recipe.data, {}
    for split, files in (("train", section.train), ("val", section.val)):
        if split == "val" and recipe.training.evaluate_every == 0:
            continue
        try:
            where = {"annotations": _path(files.annotations), "images": _path(files.images)}
            found[split] = find_source(Path(section.root), split, task=task, format=section.format, **where)
        except DataError as error:
            if split == "train":
                raise
            raise DataError(f"{error} (training.evaluate_every=0 trains without validation images)") from error
    return found


def _read(recipe: Recipe, split: str, source: Source, task: str) -> AnnotatedImages:
    """The images of a split, read as the training that follows will: in one block of ``read_once`` that is once."""
    data = recipe.data
    rate = data.sample_rate if split == "train" else None
    return load_source(source, task=task, on_error=data.on_error, sample_rate=rate, sample_seed=data.sample_seed)


def _unusable(split: str) -> LabelDoubt:
    return LabelDoubt(text=f"no objects of {split}: none of its labels can be used", stops=True)


def _of_finding(found: Finding, harmless: Collection[str]) -> LabelDoubt:
    more = found.count - len(found.examples)
    examples = f" ({'; '.join(found.examples)}{f'; and {more} more' if more else ''})"
    stops = found.check in _STOPS if found.level == "warning" else found.check not in harmless
    text = f"{found.check} of {found.split}: {found.message}{examples if found.examples else ''}"
    return LabelDoubt(text=text, stops=stops)


def _of_rules(facts: Facts, recipe: Recipe, rules: Sequence[Rule]) -> list[LabelDoubt]:
    nothing = RunLog(
        total_steps=None,
        steps=0,
        images=None,
        left_out=0,
        seconds=0.0,
        losses=[],
        rates=[],
        speed=None,
        memory=None,
        evaluations=[],
        finished=False,
        metric=None,
    )
    evidence = Evidence(run="RUN", recipe=recipe.to_dict(), log=nothing, facts=facts)
    return [
        LabelDoubt(text=f"{one.title}: {one.reason}", stops=one.kind in _RULES_STOP) for one in advise(evidence, rules)
    ]


def _path(value: object) -> Path | None:
    return None if value is None else Path(str(value))
