"""``detrkit bench``: speed, size, memory and AP of checkpoints and exported models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["bench_command"]


def bench_command(
    files: Annotated[list[str], typer.Argument(metavar="CKPT|FILE...", help="Checkpoints, names, exported models.")],
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="Data set: AP, and images for the times.")
    ] = None,
    images: Annotated[Path | None, typer.Option("--images", metavar="DIR", help="Images for the times.")] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Threads of the CPU; default: all.")] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Times that every image is predicted.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Compare models on this machine: one image at a time, all models in turns, medians per image."""
    from rich.table import Table

    from detrkit.cli.console import print_json, stderr, stdout
    from detrkit.cli.quick_imports import quick_imports

    with quick_imports():
        from detrkit.export.bench import bench
    notes = stderr()
    found = bench(
        files,
        data=data,
        images=images,
        threads=threads,
        rounds=rounds,
        say=lambda line: notes.print(line, markup=False),
    )
    if as_json:
        print_json(found)
        return
    table = Table("file", "format", "precision", title_justify="left", title=f"{found['hardware']}, batch 1")
    for column in (
        "MB",
        "M parameters",
        "GFLOPs",
        "AP",
        "pre ms",
        "model ms",
        "post ms",
        "images/s",
        "peak MB",
        "threads",
    ):
        table.add_column(column, justify="right")
    for row in found["rows"]:
        table.add_row(
            row["file"],
            row["format"],
            row["precision"],
            f"{row['megabytes']:.1f}",
            *("-" if row[name] is None else f"{row[name]:.1f}" for name in ("parameters", "gflops")),
            "-" if row["ap"] is None else f"{row['ap']:.4f}",
            *(f"{row[step]:.1f}" for step in ("pre", "model", "post", "images_per_second")),
            "-" if row["peak_megabytes"] is None else f"{row['peak_megabytes']:.0f}",
            str(found["threads"]),
        )
    console = stdout()
    console.print(table)
    first = found["rows"][0]
    for row in found["rows"][1:]:
        ratio = first["model"] / row["model"]
        console.print(f"{row['file']}: the network takes 1/{ratio:.2f} of the time of {first['file']}", markup=False)
