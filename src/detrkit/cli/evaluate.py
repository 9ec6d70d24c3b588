"""``detrkit eval``: evaluate a checkpoint on the validation data of a recipe or on a data folder."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from detrkit.cli.choices import Split
from detrkit.errors import DataError, RecipeError

__all__ = ["eval_command"]


class Precision(StrEnum):
    """Floating-point format of the forward pass."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


def eval_command(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN|RECIPE] [KEY=VALUE]...",
            help="Run folder (its best checkpoint on its own data) or recipe (file or name), and overrides.",
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="Data folder, instead of a recipe.")
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--checkpoint",
            "--model",
            metavar="CKPT|URL",
            help="Our .safetensors, a run folder, an official .pth, an exported .onnx, .xml or .pt2, a URL, or a name.",
        ),
    ] = None,
    split: Annotated[Split, typer.Option("--split", help="Split of the data.")] = Split.val,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images per batch; 1 is exact.")] = 1,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes that read images.")] = 2,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    precision: Annotated[
        Precision, typer.Option("--precision", help="Precision of the forward pass.")
    ] = Precision.fp32,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Evaluate a checkpoint on labelled images: AP and AR of boxes or masks, PQ or mIoU, overall and per class.

    Boxes and masks of objects are scored by the LVIS protocol on LVIS, else by COCO's.
    """
    overrides = [argument for argument in arguments or [] if "=" in argument]
    recipes = [argument for argument in arguments or [] if "=" not in argument]
    if len(recipes) > 1:
        raise RecipeError(f"eval takes one recipe, not {len(recipes)}: {', '.join(recipes)}")
    if recipes and checkpoint is None and _holds_weights(Path(recipes[0])):
        checkpoint, recipes = recipes[0], []
    if not recipes and data is None and checkpoint is not None and _holds_weights(Path(checkpoint)):
        recipes = [str(_run_of(Path(checkpoint)))]
    if bool(recipes) == (data is not None):
        raise RecipeError("eval needs a run folder, a recipe or --data DIR" + (", not both" if recipes else ""))
    if data is not None and not data.exists():
        raise DataError(f"{data}: no such data folder")
    if checkpoint is None:
        raise RecipeError(
            "eval needs a run folder, or --checkpoint: a .safetensors file, an official .pth, a name or a URL"
        )

    from detrkit.cli.console import local_checkpoint, print_json, print_score, progress_bar
    from detrkit.cli.quick_imports import quick_imports

    with quick_imports():
        from detrkit.evaluation.evaluate import evaluate
    weights = local_checkpoint(checkpoint)
    with progress_bar("evaluating") as bar:
        score = evaluate(
            weights,
            data if data is not None else recipes[0],
            overrides=overrides,
            batch_size=batch_size,
            workers=workers,
            device=device,
            precision=precision.value,
            split=split.value,
            progress=bar.update,
        )
    if os.environ.get("RANK", "0") != "0":
        return  # under accelerate launch only the first process prints
    if as_json:
        print_json(score)
    else:
        kind = f"{score['protocol'].upper()} {score['iou_type']}"
        print_score(score, title=f"{kind}: {checkpoint} on {data or recipes[0]} ({split.value})")


def _holds_weights(path: Path) -> bool:
    """Whether a path is a run folder or a checkpoint, not a recipe."""
    from detrkit.runtime.info import is_artefact

    weights = path.suffix in (".safetensors", ".pth") or is_artefact(path)
    return (path / "recipe.yaml").is_file() or (path.is_file() and weights)


def _run_of(path: Path) -> Path:
    """The run folder that a path is, or that the checkpoint is in."""
    found = next((folder for folder in (path, *path.parents[:2]) if (folder / "recipe.yaml").is_file()), None)
    if found is None:
        raise RecipeError(f"{path}: is a checkpoint outside a run folder: say on which data with --data DIR")
    return found
