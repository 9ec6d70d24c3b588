"""``detrkit report``: one HTML page about a run: what it learned, where it errs, and what to do next."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from detrkit.errors import DataError

if TYPE_CHECKING:
    from detrkit.report.page import RunRecord

__all__ = ["report_command"]


def report_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The page; default report.html in the run folder.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="DIR", help="Evaluate the best weights on these data; default: those of the run."
        ),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--checkpoint",
            metavar="CKPT",
            help="Evaluate this checkpoint or exported model, not the best weights.",
        ),
    ] = None,
    device: Annotated[
        str, typer.Option("--device", help="For an evaluation: auto, cpu, cuda, cuda:1 or mps.")
    ] = "auto",
) -> None:
    """Write the report of a run: one HTML file that needs no network.

    Curves, AP of every class with its interval, precision and recall, confusion, calibration, what kinds of errors
    cost, the worst images, the commands to go on, and what to do next, each with the number behind it. The detections
    of the best evaluation are read from the run folder; where it has none, or with --data or --checkpoint, they are
    made anew.
    """
    from detrkit.cli.console import stderr, stdout
    from detrkit.report.page import write_report
    from detrkit.report.run_folder import open_run, with_kept_detections

    if data is not None and not data.exists():
        raise DataError(f"{data}: no such data folder")
    opened = open_run(run)
    anew = data is not None or checkpoint is not None
    found = None if anew else with_kept_detections(opened)
    if found is None and opened.maps is not None and not anew:
        found = opened  # scores of maps are kept
    if found is None:
        found = _evaluated(opened, data, checkpoint, device)
    target = write_report(found, out)
    console = stdout()
    console.soft_wrap = True
    for number, advice in enumerate(found.advice[:3], start=1):
        stderr().print(f"{number}. {advice.title}: {advice.reason}", markup=False, soft_wrap=True)
    console.print(str(target), markup=False)


def _evaluated(run: RunRecord, data: Path | None, checkpoint: str | None, device: str) -> RunRecord:
    """The run with detections that its best weights, or a checkpoint, make now; without any where it has no weights or
    no such images."""
    from detrkit.cli.console import progress_bar
    from detrkit.config import load_recipe
    from detrkit.evaluation.split_detections import detect_split
    from detrkit.report.map_scores import MapScores
    from detrkit.report.run_folder import with_detections
    from detrkit.weights.find import find_checkpoint

    recipe = load_recipe(run.folder, {} if data is None else {"data.root": str(data)})
    with progress_bar("evaluating") as bar:
        weights = find_checkpoint(checkpoint or run.folder)
        found = detect_split(weights, recipe, device=device, progress=bar.update)
    if found.score is not None and found.score.pixels is not None:
        return replace(run, maps=MapScores(score=found.score, columns=found.metric.class_columns))
    return with_detections(run, found.metric, found.data, found.rows, image_ids=found.image_ids)
