"""``detrkit score``: numbers of a results file, no model needed."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer(help="Score a results file against ground truth; no model needed.", no_args_is_help=True)


class IouType(StrEnum):
    """What overlap is measured on."""

    bbox = "bbox"
    segm = "segm"


@app.callback()
def score_group() -> None:
    """Score a results file against ground truth; no model needed."""


@app.command("coco")
def coco(
    gt: Annotated[Path, typer.Option("--gt", help="COCO ground truth (JSON).", metavar="FILE")],
    results: Annotated[
        Path,
        typer.Option(
            "--results", help="COCO results list, or the predictions.json of 'detrkit predict'.", metavar="FILE"
        ),
    ],
    iou: Annotated[IouType, typer.Option("--iou", help="Overlap of boxes or of masks.")] = IouType.bbox,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """COCO AP and AR: 12 numbers, and the same for each class."""
    from detrkit.cli.console import print_json, print_score
    from detrkit.metrics import score_coco

    score = score_coco(gt, results, iou_type=iou.value).to_json()
    if as_json:
        print_json(score)
    else:
        print_score(score, title=f"COCO {iou.value}: {results} against {gt}")
