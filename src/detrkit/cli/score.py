"""``detrkit score``: score a results file; no model needed."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from detrkit.metrics import Score

__all__ = ["app"]

app = typer.Typer(help="Score a results file against ground truth; no model needed.", no_args_is_help=True)


class IouType(StrEnum):
    """Overlap of boxes or of masks."""

    bbox = "bbox"
    segm = "segm"


@app.callback()
def score_group() -> None:
    """Score a results file against ground truth; no model needed."""
    # numpy's threads for products of matrices, of which there are none here, would wait at the expense of others
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


GroundTruth = Annotated[Path, typer.Option("--gt", help="Ground truth (JSON).", metavar="FILE")]
Results = Annotated[
    Path,
    typer.Option("--results", help="COCO results list, or the predictions.json of 'detrkit predict'.", metavar="FILE"),
]
Iou = Annotated[IouType, typer.Option("--iou", help="Overlap of boxes or of masks.")]
MaxDetections = Annotated[int, typer.Option(min=1, help="Detections per image (COCO: and class) that count.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


@app.command("coco")
def coco_command(
    gt: GroundTruth,
    results: Results,
    iou: Iou = IouType.bbox,
    max_detections: MaxDetections = 100,
    as_json: AsJson = False,
) -> None:
    """COCO AP and AR: 12 metrics, overall and per class."""
    _score_objects("COCO", gt, results, iou, max_detections, as_json)


@app.command("lvis")
def lvis_command(
    gt: GroundTruth,
    results: Results,
    iou: Iou = IouType.bbox,
    max_detections: MaxDetections = 300,
    as_json: AsJson = False,
) -> None:
    """LVIS AP, also of rare, common and frequent classes, and AR."""
    _score_objects("LVIS", gt, results, iou, max_detections, as_json)


@app.command("panoptic")
def panoptic_command(
    gt: Annotated[Path, typer.Option("--gt", help="Ground truth (JSON), or Cityscapes' gtFine.", metavar="FILE|DIR")],
    results: Annotated[Path, typer.Option("--results", help="COCO panoptic results (JSON).", metavar="FILE")],
    gt_images: Annotated[
        Path | None,
        typer.Option(
            help="PNG files of the ground truth; by default the folder named like --gt without ending.", metavar="DIR"
        ),
    ] = None,
    results_images: Annotated[
        Path | None,
        typer.Option(
            help="PNG files of the results; by default the folder named like --results without ending.", metavar="DIR"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Panoptic quality (PQ, SQ, RQ) of all classes, of things and of stuff, and the same for each class."""
    from detrkit.metrics import score_panoptic

    score = score_panoptic(gt, results, gt_images=gt_images, results_images=results_images)
    _show(score, f"Panoptic quality: {results} against {gt}", as_json)


@app.command("semantic")
def semantic_command(
    gt: Annotated[Path, typer.Option("--gt", help="Folder of PNG class maps: the ground truth.", metavar="DIR")],
    results: Annotated[Path, typer.Option("--results", help="Folder of PNG class maps: the results.", metavar="DIR")],
    classes: Annotated[
        Path | None,
        typer.Option(
            help="Names of the classes (JSON), such as the classes.json of the data; none for Cityscapes' gtFine.",
            metavar="FILE",
        ),
    ] = None,
    ignore: Annotated[
        int | None, typer.Option(help="Value of pixels that do not count. [default: ignore_index of --classes, or 255]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Mean IoU and accuracy of the pixels, and IoU for each class."""
    from detrkit.metrics import score_semantic

    _show(score_semantic(gt, results, classes, ignore=ignore), f"Semantic: {results} against {gt}", as_json)


@app.command("cityscapes")
def cityscapes_command(
    gt: Annotated[Path, typer.Option("--gt", help="gtFine, or one of its splits; of several: val.", metavar="DIR")],
    results: Annotated[
        Path,
        typer.Option("--results", help="Folder of *_pred.txt files with lines 'mask label score'.", metavar="DIR"),
    ],
    as_json: AsJson = False,
) -> None:
    """AP of instances by the rules of the Cityscapes benchmark, overall and for its eight classes."""
    from detrkit.metrics import score_cityscapes

    _show(score_cityscapes(gt, results), f"Cityscapes instances: {results} against {gt}", as_json)


def _score_objects(
    protocol: Literal["COCO", "LVIS"], gt: Path, results: Path, iou: IouType, max_detections: int, as_json: bool
) -> None:
    from detrkit.cli.console import reading_bar
    from detrkit.collection import without_collection

    with without_collection():
        with reading_bar(gt, results):
            from detrkit.metrics import score_coco, score_lvis

            score_file = score_coco if protocol == "COCO" else score_lvis
            score = score_file(gt, results, iou_type=iou.value, max_detections=max_detections)
        _show(score, f"{protocol} {iou.value}: {results} against {gt}", as_json)


def _show(score: Score, title: str, as_json: bool) -> None:
    from detrkit.cli.console import print_json, print_score

    if as_json:
        print_json(score.to_json())
    else:
        print_score(score.to_json(), title=title)
