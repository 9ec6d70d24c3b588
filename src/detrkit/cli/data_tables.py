"""What ``detrkit data check`` and ``data stats`` print."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from detrkit.cli.console import stdout

if TYPE_CHECKING:
    from detrkit.data.doctor import Report
    from detrkit.data.inventory import PartState
    from detrkit.data.published_sets import PublishedSet
    from detrkit.data.statistics import Statistics

__all__ = ["print_inventory", "print_report", "print_statistics"]


def print_report(report: Report, folder: Path) -> None:
    """Print the findings of ``data check`` as a table, and whether training can begin."""
    from detrkit.data.mask_checks import MASK_CHECKS

    colours = {"info": "blue", "warning": "yellow", "error": "red"}
    console = stdout()
    table = Table()
    for header in ("", "split", "check", "found", "what"):
        table.add_column(header, justify="right" if header == "found" else "left", overflow="fold")
    for finding in report.findings:
        if finding.level == "ok":
            continue
        what = "\n".join([finding.message, *finding.examples])
        if finding.count > len(finding.examples) > 0:
            what += "\n…"
        level = Text(finding.level, style=colours[finding.level])
        table.add_row(level, finding.split, finding.check, str(finding.count), Text(what))
    if table.rows:
        console.print(table)
    levels = Counter(finding.level for finding in report.findings)
    console.print(
        f"{len(report.findings)} checks: {levels['ok']} ok, {levels['warning']} warnings, {levels['error']} errors"
    )
    errors = {finding.check for finding in report.findings if finding.level == "error"}
    if errors and errors <= MASK_CHECKS:
        console.print("ready for boxes, not ready to train masks: correct the errors above", style="red")
    elif report.failed:
        console.print("not ready to train: correct the errors above", style="red")
    elif "train" in report.contents.splits:
        console.print(f"ready to train: detrkit train --data {folder}", style="green", markup=False, soft_wrap=True)
        console.print(f"ready for {report.contents.ready_for}", markup=False, soft_wrap=True)


def print_inventory(published: PublishedSet, states: Sequence[PartState], folder: Path) -> None:
    """Print one line on each file of a published data set."""
    console = stdout()
    console.print(f"{published.title} in {folder}; published at {published.page}", markup=False, soft_wrap=True)
    for state in states:
        colour = "red" if state.problem else "green" if state.state in ("here", "elsewhere") else "blue"
        console.print(Text(f"{state.state:>10}", style=colour), Text(f" {state.message}"), sep="", soft_wrap=True)
    problems = sum(state.problem for state in states)
    if problems:
        console.print(f"not complete: {problems} of {len(states)} are to be mended", style="red", soft_wrap=True)
    else:
        line = f"complete; to read every file: detrkit data check {folder}"
        console.print(line, style="green", markup=False, soft_wrap=True)


def print_statistics(name: str, numbers: Statistics) -> None:
    """Print the numbers of ``data stats`` of one split."""
    from detrkit.data.statistics import PERCENTILES

    console = stdout()
    classes = Table(title=f"{name}: {numbers.images} images, {numbers.boxes} boxes")
    for header in ("id", "class", "boxes", "share", "images"):
        classes.add_column(header, justify="left" if header == "class" else "right")
    for row in numbers.classes:
        share = f"{row.boxes / max(numbers.boxes, 1):.1%}"
        classes.add_row(str(row.id), Text(row.name), str(row.boxes), share, str(row.images))
    console.print(classes)
    spread = Table("percentile", *(f"{percent} %" for percent in PERCENTILES))
    for title, values in (
        ("boxes per image", numbers.boxes_per_image),
        ("box size, px", numbers.box_sizes),
        ("box size / image size", numbers.box_sizes_relative),
        ("box width / height", numbers.box_aspects),
    ):
        spread.add_row(title, *(f"{value:.4g}" for value in values or ()))
    console.print(spread)
    small, medium, large = numbers.coco_sizes
    sizes = ", ".join(f"{width}x{height} ({number})" for width, height, number in numbers.image_sizes[:5])
    more = f" and {len(numbers.image_sizes) - 5} more sizes" if len(numbers.image_sizes) > 5 else ""
    console.print(f"boxes small / medium / large (COCO): {small} / {medium} / {large}")
    console.print(f"images: {sizes}{more}; {numbers.empty_images} without boxes")
    console.print(f"crowd regions: {numbers.crowd}; left out as unusable: {numbers.left_out}")
