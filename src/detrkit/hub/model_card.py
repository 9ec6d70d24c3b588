"""The card of a model: what it is, what it was trained and measured on, how to use it, its limits, licence and papers.

Every number comes from the run or the checkpoint; what is not known is said to be unknown.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import yaml

from detrkit import __version__
from detrkit.hub.citations import papers_of
from detrkit.models import entry
from detrkit.report.facts import SplitFacts
from detrkit.report.page import RunRecord
from detrkit.weights import CATALOGUE, CheckpointInfo

__all__ = ["CardFacts", "model_card"]

_FEW_OBJECTS = 50  # of a class in validation: its AP is hardly known
_PIPELINE = {"det": "object-detection", "inst": "image-segmentation", "sem": "image-segmentation"}


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card is written from.

    Attributes:
        repository: ``OWNER/NAME``.
        info: the checkpoint's metadata.
        parameters: number of weights.
        run: its run, with the analysis of its best evaluation where that is known; None: there is only the checkpoint.
        licence: of the weights, as the owner says; None: not said.
    """

    repository: str
    info: CheckpointInfo
    parameters: int
    run: RunRecord | None = None
    licence: str | None = None

    @property
    def task(self) -> str:
        """det, inst, pan or sem."""
        return str(self.info.config.get("task", "det"))

    @property
    def data_name(self) -> str | None:
        """Name of the data folder; None where it is not known."""
        section = (self.info.recipe or {}).get("data")
        root = section.get("root") if isinstance(section, dict) else None
        return PurePath(str(root)).name or None if root else None

    @property
    def init(self) -> str | None:
        """The checkpoint that the training started from; None: none, or not known."""
        section = (self.info.recipe or {}).get("model")
        return str(section["init"]) if isinstance(section, dict) and section.get("init") else None

    @property
    def metrics(self) -> dict[str, float]:
        """Numbers of the best evaluation: of the run, else those in the checkpoint."""
        if self.run is not None and self.run.analysis is not None:
            kept: object = self.run.analysis.score.metrics
        elif self.run is not None and self.run.log.best is not None:
            kept = self.run.log.best.scores
        else:
            kept = self.info.extra.get("metrics")
        return {key: value for key, value in kept.items() if _is_number(value)} if isinstance(kept, dict) else {}


def model_card(facts: CardFacts) -> str:
    """The card as Markdown, with the metadata that the hub reads on top."""
    parts = (_head, _use, _data, _numbers, _thresholds, _limits, _training, _licence, _citation)
    return "\n\n".join(text for part in parts if (text := part(facts))) + "\n"


def _head(facts: CardFacts) -> str:
    family = entry(facts.info.name).family
    values: dict[str, Any] = {
        "library_name": "detrkit",
        "pipeline_tag": _PIPELINE.get(facts.task, "image-segmentation"),
    }
    if facts.licence is not None:
        values["license"] = facts.licence
    values["tags"] = ["detrkit", "detection-transformer", family.replace("_", "-")]
    shown = {key: value for key, value in facts.metrics.items() if key in ("AP", "AP50", "mIoU", "PQ") and value}
    if shown and facts.data_name:
        result = {
            "task": {"type": values["pipeline_tag"]},
            "dataset": {"name": facts.data_name, "type": facts.data_name, "split": "validation"},
            "metrics": [{"type": key, "value": round(value, 4)} for key, value in shown.items()],
        }
        values["model-index"] = [{"name": facts.repository.rpartition("/")[2], "results": [result]}]
    front = yaml.safe_dump(values, sort_keys=False, allow_unicode=True).rstrip()
    kind = entry(facts.info.name).summary
    return (
        f"---\n{front}\n---\n\n# {_plain(facts.repository.rpartition('/')[2])}\n\n`{facts.info.name}` ({kind}), "
        f"{facts.parameters / 1e6:.1f} million weights, {_named(facts)}; trained with detrkit."
    )


def _named(facts: CardFacts) -> str:
    names = [str(category.name) for category in facts.info.categories or () if category.name is not None]
    count = len(names) or int(facts.info.config.get("num_classes", 0))
    what = f"{count} class{'es' if count != 1 else ''}"
    shown = ", ".join(map(_plain, names[:20])) + (", …" if len(names) > 20 else "")
    return f"{what}: {shown}" if names else f"{what}, without names"


def _use(facts: CardFacts) -> str:
    return f"""## Use

```python
import detrkit

predictor = detrkit.Predictor("hf://{facts.repository}")
found = predictor.predict("photo.jpg")
```

`detrkit predict photos/ --model hf://{facts.repository}` does the same from the command line,
`detrkit.from_pretrained("{facts.repository}")` gives the module. The file is `model.safetensors`; no code is in it."""


def _data(facts: CardFacts) -> str:
    lines = ["## Data", f"Trained on `{_plain(facts.data_name)}`." if facts.data_name else "The data are not recorded."]
    known = None if facts.run is None else facts.run.facts
    if known is not None:
        rows = [_split_row("training", known.train)]
        rows += [] if known.val is None else [_split_row("validation", known.val)]
        lines.append(_table(("split", "images", "objects", "most in an image"), rows))
        classes = [(name, known.train.classes.get(name, 0), _count(known.val, name)) for name in known.train.classes]
        lines.append(_table(("class", "objects in training", "in validation"), classes))
        if known.shared_images:
            lines.append(
                f"**{known.shared_images} validation images are training images too**: the numbers below are too high."
            )
    return "\n\n".join(lines)


def _split_row(name: str, split: SplitFacts) -> tuple[object, ...]:
    return name, split.images, split.objects, split.most


def _count(split: SplitFacts | None, name: str) -> object:
    return "-" if split is None else split.classes.get(name, 0)


def _numbers(facts: CardFacts) -> str:
    metrics = facts.metrics
    if not metrics:
        return "## Numbers\n\nNo evaluation is recorded."
    lines = ["## Numbers", "On the validation images, which also chose the best weights."]
    found = None if facts.run is None else facts.run.analysis
    if found is None:
        lines.append(_table(("number", "value"), [(name, _digits(value)) for name, value in metrics.items()]))
        return "\n\n".join(lines)
    overall, per_class = found.intervals.overall, found.intervals.per_class
    kind = "masks" if found.data.iou_type == "segm" else "boxes"
    rows = [
        (name, _digits(value), _interval(overall) if name == found.score.primary else "")
        for name, value in metrics.items()
    ]
    lines.append(f"Of {kind}; intervals hold 95 % of what other validation images of the same kind would give.")
    lines.append(_table(("number", "value", "interval"), rows))
    names = found.data.class_names
    own = [
        (name, "-" if one is None else _digits(one.value), _interval(one))
        for name, one in zip(names, per_class, strict=True)
    ]
    lines.append(_table(("class", found.score.primary, "interval"), own))
    return "\n\n".join(lines)


def _interval(one: Any) -> str:
    return "" if one is None else f"{one.low:.2f}–{one.high:.2f}"


def _thresholds(facts: CardFacts) -> str:
    chosen = facts.info.thresholds
    if chosen is None:
        return "## Threshold\n\nNone was chosen; detrkit uses 0.3, and `threshold=` sets another."
    rows = [
        (category.name, f"{value:.2f}")
        for category, value in zip(facts.info.categories or (), chosen.per_class, strict=False)
        if value is not None and category.name is not None
    ]
    text = (
        f"## Threshold\n\nScore {chosen.overall:.2f}, of the highest F1 on the validation images"
        f"{'; for some classes their own' if rows else ''}. detrkit uses it unless another is given."
    )
    return text + ("\n\n" + _table(("class", "score from"), rows) if rows else "")


def _limits(facts: CardFacts) -> str:
    points = ["Only images like those of the data above were measured; other cameras, places and sizes were not."]
    known = None if facts.run is None else facts.run.facts
    found = None if facts.run is None else facts.run.analysis
    if known is not None and known.val is not None:
        rare = [name for name, count in known.val.classes.items() if count < _FEW_OBJECTS]
        if rare:
            points.append(
                f"Fewer than {_FEW_OBJECTS} validation objects, so that the number says little: "
                f"{', '.join(map(_plain, rare))}."
            )
        if known.train.tiny >= 0.1:
            points.append(f"{known.train.tiny:.0%} of the training objects are below 8 pixels in the network's input.")
    if known is None or known.val is None:
        points.append("No validation images are recorded, so nothing is known about its errors.")
    if found is not None:
        values = [
            (one.value, name)
            for one, name in zip(found.intervals.per_class, found.data.class_names, strict=True)
            if one
        ]
        if len(values) > 1:
            worst = min(values)
            points.append(f"The weakest class is {_plain(worst[1])}, {found.score.primary} {_digits(worst[0])}.")
        if found.duplicate_rate >= 0.01:
            points.append(f"{found.duplicate_rate:.1%} of the detections above the threshold are duplicates.")
        points.append(
            f"Scores are no probabilities: expected calibration error {found.calibration.error:.3f} at IoU 0.5."
        )
    config = facts.info.config
    points.append(
        f"At most {config.get('top_k')} detections an image; images are resized to a shorter side of "
        f"{config.get('eval_short_side')} pixels, the longer at most {config.get('eval_max_side')}."
    )
    if entry(facts.info.name).family == "dape":
        points.append("DAPE is here as a reconstruction from its published description, not the authors' code.")
    return "## Limits\n\n" + "\n".join(f"* {point}" for point in points)


def _training(facts: CardFacts) -> str:
    recipe = facts.info.recipe
    start = "" if facts.init is None else f" It started from `{_plain(PurePath(facts.init).name)}`."
    if recipe is None:
        return f"## Training\n\nThe recipe is not recorded.{start}"
    done = "" if facts.run is None or not facts.run.log.steps else f" {facts.run.log.steps:,} steps."
    text = yaml.safe_dump(_short(recipe), sort_keys=False, allow_unicode=True).rstrip().replace("```", "` ` `")
    return f"## Training\n\ndetrkit {__version__}.{done}{start}\n\n```yaml\n{text}\n```"


def _short(recipe: Any) -> Any:
    """A recipe without what is not set."""
    if isinstance(recipe, dict):
        return {key: short for key, value in recipe.items() if (short := _short(value)) not in (None, {}, [])}
    return recipe


def _licence(facts: CardFacts) -> str:
    said = (
        f"The owner publishes these weights under {_plain(facts.licence)}."
        if facts.licence is not None
        else "The owner has not said under which licence these weights may be used; ask before you do."
    )
    if facts.init in CATALOGUE:
        source = CATALOGUE[str(facts.init)]
        said += f" They started from `{source.name}` of {source.source}, published under {source.licence}."
    return f"## Licence\n\n{said} The licences of the data were not checked. detrkit itself is Apache-2.0."


def _citation(facts: CardFacts) -> str:
    entries = "\n".join(papers_of(entry(facts.info.name).family))
    return f"## Citation\n\n```bibtex\n{entries}\n```" if entries else ""


def _table(heading: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [heading, ["---"] * len(heading), *([_plain(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(value: object) -> str:
    """Text from files as one line of Markdown that is only text."""
    text = html.escape(" ".join(str(value).split()), quote=False)
    return "".join(f"\\{sign}" if sign in "|`*_[]\\" else sign for sign in text)


def _digits(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _is_number(value: object) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool)
