"""The tables of published figures: one per data set, the ablation of the DE-DETR paper, and sampled COCO."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

from detrkit.config import Recipe, load_recipe
from generator.headers import METRICS, METRICS_OF, OUR_DATA, PAPER, REPOSITORIES, Figure, Header, headers
from generator.tables import table

__all__ = ["SECTIONS"]

PAPER_ADDRESS = "https://arxiv.org/abs/2203.09507"
PERCENTS = (1, 2, 5, 10)


def results(data: str) -> str:
    """Every published figure on one data set, recipes sorted by folder."""
    rows, metrics = [], METRICS_OF.get(data, METRICS)
    for header in headers():
        recipe = load_recipe(header.path)
        if header.data != data or recipe.data.sample_rate is not None:
            continue
        for figure in header.figures:
            rows.append([_link(header), _length(recipe), *_numbers(figure, metrics), _source(figure)])
    return table(["recipe", "length", *metrics, "source"], rows)


def ablation() -> str:
    """What sparse sampling, several levels and label augmentation bring to Conditional DETR on Cityscapes."""
    rows = []
    for header in _in_paper("Cityscapes", ("Table 2", "Table 3")):
        recipe = load_recipe(header.path)
        if "conditional" not in recipe.model.name:
            continue
        parts = _parts(recipe)
        figure = next(figure for figure in header.figures if figure.source == PAPER)
        marks = ["✓" if part else "" for part in parts]
        rows.append((parts, [*marks, *_numbers(figure), _link(header)]))
    heading = ["sparse sampling", "several levels", "label augmentation", *METRICS, "recipe"]
    return table(heading, [row for _, row in sorted(rows, key=lambda row: row[0])])


def sampled() -> str:
    """AP on COCO val2017 after training on a part of train2017: a row per model, a column per part."""
    found: dict[str, dict[float, str]] = {}
    for header in _in_paper("COCO", ("Figure 4",)):
        rate = load_recipe(header.path).data.sample_rate
        assert rate is not None
        ap = f"[{header.figures[0].values['AP']}]({header.link})"
        found.setdefault(header.title, {})[round(100 * rate)] = ap
    rows = [[title, *(row[percent] for percent in PERCENTS)] for title, row in found.items()]
    return table(["model", *(f"{percent} %" for percent in PERCENTS)], rows)


def without_figure() -> str:
    """Recipes whose experiment is published and whose figure is not."""
    rows = [
        [_link(header), header.data, header.no_figure or ""]
        for header in headers()
        if header.no_figure is not None and not _is_ours(header)
    ]
    return table(["recipe", "data", "remark"], rows)


def ours() -> str:
    """Recipes on a data set that no paper uses."""
    rows = [[_link(header), f"`{header.train}`"] for header in headers() if _is_ours(header)]
    return table(["recipe", "command"], rows)


def _in_paper(data: str, places: Iterable[str]) -> list[Header]:
    """Recipes of figures that stand in one of these places of the DE-DETR paper."""

    def stands(figure: Figure) -> bool:
        return figure.source == PAPER and any(figure.detail.startswith(place) for place in places)

    return [header for header in headers() if header.data == data and any(map(stands, header.figures))]


def _parts(recipe: Recipe) -> tuple[bool, bool, bool]:
    """Whether a model samples sparsely, from several levels, and learns augmented labels."""
    from detrkit.models import model_config

    options = model_config(recipe.model.name, **recipe.model.overrides).flat()
    levels = options.get("num_feature_levels")
    return levels is not None, isinstance(levels, int) and levels > 1, options["repeat_label"] is not None


def _is_ours(header: Header) -> bool:
    return header.data in OUR_DATA


def _link(header: Header) -> str:
    title = header.title + (" (ours: a reconstruction)" if header.reconstruction else "")
    return f"[{title}]({header.link})"


def _length(recipe: Recipe) -> str:
    steps = recipe.training.iterations
    return f"{recipe.training.epochs} epochs" if steps is None else f"{steps:,} steps"


def _numbers(figure: Figure, metrics: Sequence[str] = METRICS) -> list[str]:
    return [figure.values.get(metric, "") for metric in metrics]


def _source(figure: Figure) -> str:
    name = figure.source
    address = PAPER_ADDRESS if name == PAPER else REPOSITORIES[name]
    return f"[{name}]({address})" + (f", {figure.detail}" if figure.detail else "")


SECTIONS = {
    "published on COCO": partial(results, "COCO"),
    "published on COCO instances": partial(results, "COCO instances"),
    "published on COCO panoptic": partial(results, "COCO panoptic"),
    "published on Cityscapes instances": partial(results, "Cityscapes instances"),
    "published on Cityscapes": partial(results, "Cityscapes"),
    "published on SA-Det-100k": partial(results, "SA-Det-100k"),
    "ablation of the DE-DETR paper": ablation,
    "published on sampled COCO": sampled,
    "recipes without a figure": without_figure,
    "recipes for a laptop": ours,
}
