"""``detrkit weights list|pull|push|convert|inspect``: published checkpoints, the hub, what checkpoint files hold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from detrkit.errors import CheckpointError, RecipeError

if TYPE_CHECKING:
    from detrkit.weights import Inspection, OfficialFile

__all__ = ["app"]

_GROUPS_SHOWN = 24

app = typer.Typer(no_args_is_help=True, help="Checkpoints: list, pull, push, convert, inspect.")

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
File = Annotated[
    str, typer.Argument(metavar="FILE", help="A checkpoint file, run folder, URL or name.", show_default=False)
]


@app.command("list")
def list_command(as_json: JsonFlag = False) -> None:
    """List the published checkpoints: model, data, published AP, size, how to get them."""
    from detrkit.cli.console import print_json, stdout
    from detrkit.weights import CATALOGUE, pulled_path

    if as_json:
        print_json([_row(item) for item in CATALOGUE.values()])
        return
    from rich.table import Table

    table = Table("name", "data", "epochs", "AP", "MiB", "get it", box=None, padding=(0, 1, 0, 0))
    table.columns[0].no_wrap = True
    for item in CATALOGUE.values():
        how = "pull" if item.address else "by hand"
        if pulled_path(item.name).is_file():
            how = "here"
        ap = "-" if item.ap is None else f"{item.ap:.1f}"
        table.add_row(item.name, item.data, str(item.epochs or "-"), ap, str(item.mib or "-"), how)
    stdout().print(table)
    stdout().print("AP of boxes as published. 'detrkit weights pull NAME' downloads a file, or shows where to get it.")


def _row(item: OfficialFile) -> dict[str, object]:
    """A catalogue entry as JSON values."""
    from dataclasses import asdict

    from detrkit.weights import pulled_path

    return {**asdict(item), "family": item.family, "pulled": pulled_path(item.name).is_file()}


@app.command("pull")
def pull_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name of 'detrkit weights list'.", show_default=False)],
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="FILE|URL", help="The file you downloaded by hand, or another URL of it."),
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FILE", help="Write the .safetensors here, not into the cache.")
    ] = None,
) -> None:
    """Download a published checkpoint, check it and convert it to our format. Interrupted downloads are resumed."""
    from detrkit.cli.console import print_line, progress_bar
    from detrkit.weights import pull

    with progress_bar(f"downloading {name}", in_bytes=True) as bar:
        pulled = pull(name, source=source, to=to, progress=bar.update)
    model = str(pulled.path) if to is not None else name
    print_line(f"{name}: {'here already' if pulled.source is None else f'checked and converted from {pulled.source}'}")
    for line in (
        f"kept as {pulled.path}",
        f"next: detrkit predict IMAGES --model {model}",
        f"      detrkit eval --data DIR --checkpoint {model}",
        f"      detrkit train --data DIR --model {pulled.item.model} model.init={model}    # your own classes",
    ):
        print_line(line)


@app.command("push")
def push_command(
    checkpoint: Annotated[
        str, typer.Argument(metavar="RUN|CKPT", help="A run folder, or a checkpoint of ours.", show_default=False)
    ],
    repository: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="Repository of the hub; made if missing.", show_default=False)
    ],
    licence: Annotated[
        str | None,
        typer.Option(
            "--licence", "--license", metavar="NAME", help="Of the weights, e.g. apache-2.0; default: not said."
        ),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="A new repository is private.")] = False,
    revision: Annotated[str | None, typer.Option("--revision", metavar="BRANCH", help="Default: main.")] = None,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="Write the files here to look at; upload nothing.")
    ] = None,
) -> None:
    """Upload a checkpoint to the Hugging Face hub, with a card written from its run: data, numbers with intervals,
    thresholds, limits, licence, papers. Log in first: 'hf auth login', or HF_TOKEN. HF_ENDPOINT names another server.
    """
    from detrkit.cli.console import print_line
    from detrkit.hub import push_to_hub, repository_files

    if to is not None:
        for path in repository_files(checkpoint, repository, to, licence=licence):
            print_line(str(path))
        return
    url = push_to_hub(checkpoint, repository, licence=licence, private=private, revision=revision)
    print_line(url)
    print_line(f"next: detrkit predict IMAGES --model hf://{repository}")


@app.command("convert")
def convert_weights_command(
    file: File,
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Model options that the file does not show."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="The model; without it, inferred from the tensors.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="Output file; default: beside FILE, or here if FILE is a name or URL."
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            "--classes",
            metavar="FILE|coco|coco_panoptic|cityscapes|N",
            help="Class names: one per line, or a COCO file; N: numbered.",
        ),
    ] = None,
    official: Annotated[bool, typer.Option("--official", help="Convert one of ours to an official .pth.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Convert an official checkpoint into one of ours, or (--official) one of ours into an official .pth."""
    from detrkit.cli.console import local_checkpoint, print_line
    from detrkit.weights.find import find_checkpoint
    from detrkit.weights.ours import is_ours
    from detrkit.weights.published.addresses import is_url
    from detrkit.weights.published.download import file_name

    path = find_checkpoint(local_checkpoint(file))
    # beside a file of the user, never into the package or the cache
    beside = path if Path(file).exists() else Path(file_name(file) if is_url(file) else path.name)
    target = out or beside.with_suffix(".pth" if official else ".safetensors")
    if is_ours(path) != official:
        raise CheckpointError(
            f"{path}: is no checkpoint of ours; --official is for those"
            if official
            else f"{path}: is one of our checkpoints already; --official turns it into a .pth under official names"
        )
    if target.resolve() == path.resolve():
        raise CheckpointError(f"{target}: would be written over itself; say where to write with --out FILE")
    if target.exists() and not force:
        raise CheckpointError(f"{target}: exists already; pass --force to overwrite it, or --out FILE")
    if official:
        if model is not None or classes is not None or options:
            raise RecipeError("--official writes the checkpoint as it is: leave out --model, --classes and KEY=VALUE")
        written = _to_official(path, target)
    else:
        written = _to_ours(path, target, model, classes, options or [])
    print_line(written)


def _to_official(path: Path, target: Path) -> str:
    from detrkit.weights import load, save_official, to_official

    model = load(path)
    save_official(model, target)
    return f"{target}: '{model.name}', {len(to_official(model))} tensors under official names"


def _to_ours(path: Path, target: Path, name: str | None, classes: str | None, options: list[str]) -> str:
    from detrkit.cli.console import print_line
    from detrkit.config import load_recipe
    from detrkit.weights import open_official, save
    from detrkit.weights.official.class_names import read_classes

    recipe = load_recipe({}, [f"model.{option.removeprefix('model.')}" for option in options])
    opened = open_official(path, name=name, options=recipe.model.overrides)
    model = opened.model
    slots = model.config.architecture.num_classes
    model.categories = opened.categories if classes is None else read_classes(classes, slots)
    for remark in opened.remarks(classes=classes is None):
        print_line(f"{path}: {remark}", to_stderr=True)
    save(model, target, extra={"official": {"file": path.name}})
    named = "without names" if model.categories is None else f"{len(model.categories.named)} of them named"
    return f"{target}: '{model.name}', {slots} class slots, {named}, {model.config.architecture.num_queries} queries"


@app.command("inspect")
def inspect_command(file: File, as_json: JsonFlag = False) -> None:
    """Show the contents of a checkpoint, or its difference from the nearest model. No code from the file is run."""
    from detrkit.cli.console import local_checkpoint, print_json
    from detrkit.weights import inspect_checkpoint
    from detrkit.weights.find import find_checkpoint

    found = inspect_checkpoint(find_checkpoint(local_checkpoint(file)))
    if as_json:
        print_json(found.to_json())
    else:
        _print_inspection(found)


def _print_inspection(found: Inspection) -> None:
    from rich.markup import escape
    from rich.table import Table

    from detrkit.cli.console import print_line, stdout

    kinds = {"detrkit": "a checkpoint of detrkit", "official": "an official checkpoint", "unknown": "an unknown layout"}
    console = stdout()
    print_line(f"{found.path}: {kinds[found.kind]}")
    table = Table(show_header=False, box=None)
    for name, value in _summary(found):
        table.add_row(f"  {name}", escape(value))
    console.print(table)
    if found.difference:
        difference = Table("", "names", "count", "for example")
        shown = found.difference[:_GROUPS_SHOWN]
        for group in shown:
            difference.add_row(group.kind, escape(group.prefix), str(group.count), escape(group.example))
        console.print(difference)
        if len(found.difference) > len(shown):
            console.print(f"and {len(found.difference) - len(shown)} more groups (--json has them all)")


def _summary(found: Inspection) -> list[tuple[str, str]]:
    """Rows of the printed table: name and value."""
    config = found.config
    known = found.kind != "unknown"
    rows = [("size", f"{found.size / 1e6:.1f} MB, {found.tensors} tensors")]
    nearest = "" if known else f", the nearest: {found.shared} of its tensors are here"
    rows.append(("model", f"{found.model} (family {found.family}){nearest}"))
    if found.also:
        rows.append(("fits too", f"{', '.join(found.also)}: the same tensors, the file does not say which"))
    if found.parameters is not None:
        rows.append(("parameters", f"{found.parameters / 1e6:.1f} M"))
    if known:
        no_object = " and no-object" if config["classification"] == "softmax" else ""
        named = [str(row["name"]) for row in found.categories or () if row["name"] is not None]
        listed = f": {', '.join(named)}" if named else ", without names"
        rows.append(("classes", f"{config['num_classes']} slots{no_object}{listed}"))
        rows.append(("queries", str(config["num_queries"])))
        if "refine_boxes" in config:
            rows.append(("levels", str(config["num_feature_levels"])))
            refined = (
                "yes, a class and a box head per layer" if config["refine_boxes"] else "no, layers share their heads"
            )
            rows.append(("refinement", refined))
        assumed = ", ".join(found.assumed)
        note = f" ({assumed} is assumed)" if assumed else ""
        rows.append(("configuration", ", ".join(f"{key}={value}" for key, value in config.items()) + note))
    if found.parts:
        rows.append(("holds", ", ".join(found.parts)))
    for name, values in (("arguments", found.arguments), ("recipe", found.recipe), ("extra", found.extra)):
        if values:
            rows.append((name, _yaml(values)))
    return rows


def _yaml(data: object) -> str:
    """Format as YAML, without null values."""
    import yaml

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {str(key): plain(item) for key, item in value.items() if item is not None}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return value if isinstance(value, str | int | float) else str(value)

    return str(yaml.safe_dump(plain(data), sort_keys=False)).rstrip()
