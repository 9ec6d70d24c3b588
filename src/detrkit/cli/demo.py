"""``detrkit demo``: the embedded model on the labelled images of the package; needs neither network nor data."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from detrkit.structures.detections import ResultRow

__all__ = ["demo_command"]

RECIPE = "dape/blood_cells/dape_lite0"
_COUNTED = 0.5  # minimum score of objects that are counted and drawn, where the checkpoint has no thresholds


def demo_command(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for pictures and JSON.")] = Path("demo"),
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
) -> None:
    """Count blood cells with the embedded model: AP on labelled images, pictures, JSON. No download."""
    from detrkit.cli.console import progress_bar, stdout
    from detrkit.cli.quick_imports import quick_imports
    from detrkit.data.images import read_image
    from detrkit.inference.prediction_folder import PredictionFolder
    from detrkit.metrics import score_coco
    from detrkit.models.presets import DEFAULT_MODEL
    from detrkit.weights.find import ASSETS

    with quick_imports():
        from detrkit.inference.predictor import Predictor
    images = ASSETS / "blood_cells"
    ground_truth = json.loads((images / "annotations.json").read_bytes())
    console = stdout()
    console.soft_wrap = True

    predictor = Predictor(DEFAULT_MODEL, device=device, threshold=0.0)
    own = predictor.thresholds
    least = [_COUNTED] * len(predictor.categories) if own is None else own.by_label.tolist()
    size = sum(parameter.numel() for parameter in predictor.model.parameters()) / 1e6
    count = len(ground_truth["images"])
    console.print(f"{DEFAULT_MODEL}: {size:.1f} million parameters, {count} blood smears it was not trained on")

    folder = PredictionFolder(out, predictor.categories)
    results: list[ResultRow] = []
    start = time.perf_counter()
    with progress_bar("predicting", total=count) as bar:
        for number, row in enumerate(ground_truth["images"], start=1):
            picture = read_image(images / "images" / row["file_name"])
            detections = predictor.predict(picture)
            results += detections.to_coco(row["id"])
            counted = [score >= least[label] for label, score in zip(detections.labels, detections.scores, strict=True)]
            folder.add(row["file_name"], detections.keep([k for k, one in enumerate(counted) if one]), picture)
            bar.update(number, count)
    seconds = time.perf_counter() - start
    folder.write()

    score = score_coco(ground_truth, results)
    labelled = Counter(row["category_id"] for row in ground_truth["annotations"])
    names = {row["id"]: row["name"] for row in ground_truth["categories"]}
    counts = folder.counts()
    from rich.table import Table

    table = Table("cell", title="On the labelled images", title_justify="left")
    shown = score.headline[:2]
    for column in (*shown, "labelled", f"found at score {_COUNTED}" if own is None else "found"):
        table.add_column(column, justify="right")
    for category_id, name in names.items():
        numbers = (f"{score.per_class[name][column] or 0:.3f}" for column in shown)
        table.add_row(name, *numbers, str(labelled[category_id]), str(counts.get(name, 0)))
    table.add_section()
    totals = (f"{score.metrics[column] or 0:.3f}" for column in shown)
    table.add_row("all", *totals, str(sum(labelled.values())), str(sum(counts.values())))
    console.print(table)
    console.print("Many red cells that overlap or are cut off are not labelled: their detections count as false.")
    console.print(f"{count} images in {seconds:.1f} s on {predictor.device}", markup=False)
    console.print(f"pictures: {folder.image_folder}", markup=False)
    console.print(f"boxes:    {out / 'predictions.json'}", markup=False)
    console.print("train it again, DIR is the data set that 'detrkit data fetch blood_cells' names:", markup=False)
    print(f"detrkit train {RECIPE} --data DIR")
