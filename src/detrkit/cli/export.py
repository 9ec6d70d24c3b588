"""``detrkit export``: a checkpoint as an ONNX, OpenVINO or torch.export file, with proof."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from detrkit.errors import DataError, RunError

if TYPE_CHECKING:
    from detrkit.console import Console
    from detrkit.export.parity import Parity

__all__ = ["ExportCommand", "export_command"]


class ExportCommand(TyperCommand):
    """Allow ``--size H W`` beside ``--size dynamic``: typer's options have a fixed number of values."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words = list(args)
        if "--size" in words:
            value = words.index("--size") + 1
            if value + 1 < len(words) and words[value].isdigit() and words[value + 1].isdigit():
                words[value : value + 2] = [f"{words[value]}x{words[value + 1]}"]
        return super().parse_args(ctx, words)


class ArtefactFormat(StrEnum):
    """Format of the file."""

    onnx = "onnx"
    openvino = "openvino"
    torch_export = "torch-export"


class ArtefactPrecision(StrEnum):
    """Numbers in the file."""

    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"


def export_command(
    checkpoint: Annotated[str, typer.Argument(metavar="CKPT", help="Checkpoint, run folder, URL or name.")],
    format: Annotated[ArtefactFormat, typer.Option("--format", help="Format of the file.")] = ArtefactFormat.onnx,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="The file: .onnx, .xml (and .bin) or .pt2; default: model.…"),
    ] = None,
    precision: Annotated[
        ArtefactPrecision, typer.Option("--precision", help="fp16: half the file; int8: OpenVINO, needs images.")
    ] = ArtefactPrecision.fp32,
    batch: Annotated[str, typer.Option("--batch", metavar="N|dynamic", help="Images per call.")] = "dynamic",
    size: Annotated[
        str, typer.Option("--size", metavar="H W|dynamic", help="Height and width of the canvas: --size 320 416.")
    ] = "dynamic",
    with_postprocess: Annotated[
        bool, typer.Option("--with-postprocess", help="Normalisation, top-k and NMS inside the file.")
    ] = False,
    images: Annotated[
        Path | None, typer.Option("--images", metavar="DIR", help="Images for the proof and for int8.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="Data set: AP of checkpoint and file.")
    ] = None,
    opset: Annotated[int, typer.Option("--opset", help="Opset of ONNX.")] = 18,
    licence: Annotated[
        str | None, typer.Option("--licence", metavar="TEXT", help="Licence of the weights, for the metadata.")
    ] = None,
) -> None:
    """Export a checkpoint and prove that the file gives the same boxes; parity.json beside it has the figures.

    Exit code 1: an fp32 file differs by more than 1e-3 of a side (boxes) or 1e-4 (scores).
    """
    number, sides = _batch(batch), _size(size)

    from detrkit.cli.console import local_checkpoint, stdout
    from detrkit.cli.console import stderr as remarks
    from detrkit.cli.quick_imports import quick_imports
    from detrkit.runtime.info import SUFFIX_OF_FORMAT

    with quick_imports():
        from detrkit.export.export import export_model
    target = out or Path(f"model{SUFFIX_OF_FORMAT[format.value]}")
    console, notes = stdout(), remarks()
    console.soft_wrap = True
    result = export_model(
        local_checkpoint(checkpoint),
        target,
        format=format.value,
        precision=precision.value,
        batch=number,
        size=sides,
        with_postprocess=with_postprocess,
        images=images,
        data=data,
        opset=opset,
        licence=licence,
        say=lambda line: notes.print(line, markup=False),
    )
    megabytes = sum(path.stat().st_size for path in {target, target.with_suffix(".bin")} if path.is_file()) / 1e6
    console.print(f"{target}: {result.info.name}, {format.value}, {precision.value}, {megabytes:.1f} MB", markup=False)
    if with_postprocess:
        console.print("its post-processing is inside: run it with detrkit.runtime.LightPredictor", markup=False)
    assert result.parity is not None
    _print_parity(console, result.parity)
    console.print(f"proof: {target.parent / 'parity.json'}", markup=False)
    if precision is ArtefactPrecision.fp32 and not result.parity.agrees:
        raise RunError(f"{target}: differs from the checkpoint by more than the tolerances (see parity.json)")


def _print_parity(console: Console, parity: Parity) -> None:
    from rich.table import Table

    table = Table("batch", "canvas", "images", title="Largest differences from the checkpoint", title_justify="left")
    for column in ("boxes", "scores", "swapped", "objects matched"):
        table.add_column(column, justify="right")
    for one in parity.comparisons:
        table.add_row(
            str(one.batch),
            f"{one.canvas[0]}x{one.canvas[1]}",
            str(one.images),
            f"{one.boxes:.1e}",
            f"{one.scores:.1e}",
            f"{one.swapped}/{one.queries}",
            f"{one.matched}/{one.objects}",
        )
    console.print(table)
    if parity.ap is not None:
        before, after = parity.ap["checkpoint"], parity.ap["file"]
        if before is not None and after is not None:
            both = f"checkpoint {before:.4f}, file {after:.4f}, loss {before - after:+.4f}"
            console.print(f"{parity.metric} on {parity.data}: {both}", markup=False)


def _batch(text: str) -> int | None:
    if text == "dynamic":
        return None
    if not text.isdigit() or int(text) < 1:
        raise DataError(f"--batch {text}: give a number of images, or dynamic")
    return int(text)


def _size(text: str) -> tuple[int, int] | None:
    if text == "dynamic":
        return None
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        raise DataError(f"--size {text}: give height and width in pixels, as in --size 320 416, or dynamic")
    return int(parts[0]), int(parts[1])
