"""``detrkit data check``: what a data set has, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from detrkit.cli.choices import TaskName
from detrkit.cli.data_options import (
    Annotations,
    FormatOption,
    Images,
    JsonFlag,
    TaskOption,
    sources_of,
)

__all__ = ["check_command"]


def check_command(
    words: Annotated[
        list[Path],
        typer.Argument(
            metavar="[NAME] DIR",
            help="The data folder, or its data.yaml or COCO file. After coco, lvis, cityscapes or ade20k: which of the "
            "published files it has.",
            show_default=False,
        ),
    ],
    format: FormatOption = "auto",
    annotations: Annotations = None,
    images: Images = None,
    task: TaskOption = None,
    quick: Annotated[bool, typer.Option("--quick", help="Read image headers only, and draw no masks.")] = False,
    json: JsonFlag = False,
) -> None:
    """Check a data set for problems before training. Exit code 0: at most warnings, 1: errors, 2: unusable.

    With the name of a published data set before DIR: file by file what is there, what is missing, and where its owner
    publishes it. No image is read.
    """
    from dataclasses import asdict

    from detrkit.cli.console import print_json, progress_bar
    from detrkit.cli.data_tables import print_report
    from detrkit.data.published_sets import PUBLISHED_SETS
    from detrkit.errors import DataError
    from detrkit.terminal import printable, say

    if len(words) == 1 and str(words[0]) in PUBLISHED_SETS and not words[0].exists():
        raise DataError(f"{words[0]}: no such folder; for the published data set: detrkit data check {words[0]} DIR")
    if len(words) > 2:
        raise DataError(f"{len(words)} words, but there is one data folder: detrkit data check [NAME] DIR")
    folder = words[-1]
    if len(words) == 2:
        _check_published(str(words[0]), folder, task, json)
        return
    if not json:
        say(f"reading {folder} …")  # the modules below take a moment
    from detrkit.data.checked import note_checked
    from detrkit.data.doctor import DataContents
    from detrkit.data.doctor import check as check_sources
    from detrkit.data.row_slices import telling_progress

    sources = sources_of(folder, format, annotations, images, None, task)

    def tell(contents: DataContents) -> None:
        if not json:
            print(printable(f"{folder}: {contents}"), flush=True)

    # of large annotation files megabytes, then images
    with progress_bar("reading") as bar, telling_progress(lambda done, all: bar.update(done >> 20, all >> 20)):
        report = check_sources(sources, quick=quick, progress=bar.update, tell=tell)
    note_checked(folder)
    if json:
        findings = [asdict(finding) for finding in report.findings]
        print_json({"failed": report.failed, **asdict(report.contents), "findings": findings})
    else:
        print_report(report, folder)
    raise typer.Exit(1 if report.failed else 0)


def _check_published(name: str, folder: Path, task: TaskName | None, json: bool) -> None:
    """Say which files of a published data set a folder has."""
    from dataclasses import asdict

    from detrkit.cli.console import print_json
    from detrkit.cli.data_tables import print_inventory
    from detrkit.data.inventory import inventory, published_set

    found = published_set(name)
    states = inventory(name, folder, task=task)
    complete = not any(state.problem for state in states)
    if json:
        print_json({"name": name.lower(), "complete": complete, "files": [asdict(state) for state in states]})
    else:
        print_inventory(found, states, folder)
    raise typer.Exit(0 if complete else 1)
