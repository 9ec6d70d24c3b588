"""``detrkit data …``: the group of commands, and ``stats`` and ``view``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from detrkit.cli.choices import Split, TaskName
from detrkit.cli.data_check import check_command
from detrkit.cli.data_convert import convert_command
from detrkit.cli.data_fetch import fetch_command
from detrkit.cli.data_options import (
    Annotations,
    Folder,
    Force,
    FormatOption,
    Images,
    JsonFlag,
    Seed,
    TaskOption,
    sources_of,
)
from detrkit.cli.data_subsets import sample_command, split_command
from detrkit.cli.data_suspects import suspects_command

if TYPE_CHECKING:
    from detrkit.data.annotated_images import AnnotatedImages
    from detrkit.data.formats import Source

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Fetch, check, describe, convert, sample, split and view data sets.")
app.command("check")(check_command)


@app.command("stats")
def stats_command(
    folder: Folder,
    split: Annotated[Split | None, typer.Option(help="Only this split.")] = None,
    format: FormatOption = "auto",
    annotations: Annotations = None,
    images: Images = None,
    task: TaskOption = None,
    json: JsonFlag = False,
) -> None:
    """Show classes, boxes per image, box and image sizes. Unusable boxes and images are only counted."""
    from detrkit.cli.console import print_json, reading_bar
    from detrkit.cli.data_tables import print_statistics
    from detrkit.data.formats import usual_task
    from detrkit.data.open import load_source
    from detrkit.data.statistics import statistics

    sources = sources_of(folder, format, annotations, images, split, task)
    with reading_bar(*(source.annotations for source in sources.values())):
        found = {
            name: statistics(load_source(source, task=task or usual_task(source), on_error="skip"))
            for name, source in sources.items()
        }
    if json:
        print_json({name: numbers.to_json() for name, numbers in found.items()})
        return
    for name, numbers in found.items():
        print_statistics(name, numbers)


app.command("convert")(convert_command)
app.command("fetch")(fetch_command)
app.command("suspects")(suspects_command)
app.command("sample")(sample_command)
app.command("split")(split_command)


@app.command("view")
def view_command(
    folder: Folder,
    out: Annotated[Path, typer.Option(help="The folder for the pictures.")],
    split: Annotated[Split, typer.Option(help="The split to draw.")] = Split.train,
    count: Annotated[int, typer.Option(min=0, help="How many images; 0 for all.")] = 20,
    seed: Seed = 0,
    format: FormatOption = "auto",
    annotations: Annotations = None,
    images: Images = None,
    task: TaskOption = None,
    force: Force = False,
) -> None:
    """Draw the annotations on images, with their masks where they have some."""
    from detrkit.data.listing import posix_name
    from detrkit.data.subsets import choose
    from detrkit.drawing import draw_labels
    from detrkit.errors import DataError
    from detrkit.files import refuse_existing, write_picture
    from detrkit.terminal import say

    source = sources_of(folder, format, annotations, images, split, task)[split.value]
    dataset = _load_to_view(source, task)
    size = min(count, len(dataset)) or len(dataset)
    paths = {}
    for index in choose([record.file_name for record in dataset.records], size, seed):
        record = dataset.records[index]
        paths[index] = out / f"{Path(posix_name(record.file_name)).stem}_{record.image_id}.jpg"
        refuse_existing(paths[index], force)
    written = 0
    for index, path in paths.items():
        try:
            picture = draw_labels(dataset.read_image(index), dataset.records[index], dataset.categories)
        except DataError as error:
            say(str(error))
            continue
        write_picture(path, picture, format="JPEG")
        written += 1
    say(f"wrote {written} pictures to {out}")


def _load_to_view(source: Source, task: TaskName | None) -> AnnotatedImages:
    """The data set with masks where it has some, unless a task says otherwise."""
    from detrkit.data.formats import usual_task
    from detrkit.data.open import load_source
    from detrkit.errors import DataError

    usual = task or usual_task(source)
    if task is None and usual == "det":
        try:
            return load_source(source, task="inst", on_error="skip")
        except DataError:  # boxes alone
            pass
    return load_source(source, task=usual, on_error="skip")
