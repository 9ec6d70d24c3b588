"""``detrkit data sample|split``: subsets of data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from detrkit.cli.choices import Split
from detrkit.cli.data_options import (
    COCO_FILE,
    Annotations,
    Folder,
    Force,
    FormatOption,
    Images,
    Seed,
    no_split,
    outputs_of,
    sources_of,
    write_coco,
)

__all__ = ["sample_command", "split_command"]


def sample_command(
    folder: Folder,
    target: Annotated[
        Path | None, typer.Argument(metavar="[OUT]", help="The same as --out.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A .json file, or a folder, which also gets the other splits in full.")
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(help="Cut a trial set: so many images of each split, copied with their annotations, same layout."),
    ] = None,
    links: Annotated[bool, typer.Option("--links", help="With --images: links to the images, no copies.")] = False,
    rate: Annotated[float | None, typer.Option(help="Fraction of the images, such as 0.01.")] = None,
    count: Annotated[int | None, typer.Option(help="Number of images, instead of a rate.")] = None,
    seed: Seed = 0,
    split: Annotated[Split, typer.Option(help="The split to sample from.")] = Split.train,
    format: FormatOption = "auto",
    annotations: Annotations = None,
    force: Force = False,
) -> None:
    """Write a subset of a split as COCO JSON, with seed and rate noted in the file, or cut a trial set.

    Subsets with the same seed are nested. `detrkit data sample DIR OUT --images 50` copies 50 random images of each
    split with their annotations, so that OUT is read as DIR is.
    """
    from detrkit.data.convert import to_coco
    from detrkit.data.formats import read_source
    from detrkit.data.subsets import sample_table
    from detrkit.errors import DataError

    if (target is None) == (out is None):
        raise DataError("give one place to write to: detrkit data sample DIR OUT --images 50, or --out")
    out = out or target
    assert out is not None
    if images is not None:
        if rate is not None or count is not None or annotations is not None or split != Split.train:
            raise DataError(
                "--images cuts a trial set of all splits; it goes without --rate, --count, --split, --annotations"
            )
        _trial_set(folder, out, images, seed, format, links=links, force=force)
        return
    single = out.suffix == ".json"
    sources = sources_of(folder, format, annotations, None, split if single else None)
    if rate is None and count is None:
        raise DataError("give a rate or a count of images, or --images 50 for a trial set of all splits")
    outputs = outputs_of(out, list(sources), split if single else None, COCO_FILE, force)
    if split not in sources:
        raise no_split(split, sources)
    for name, path in outputs.items():
        table = read_source(sources[name])
        if name == split:
            table = sample_table(table, seed=seed, rate=rate, count=count)
        write_coco(path, to_coco(table, relative_to=None if single else out), force)


def _trial_set(folder: Path, out: Path, images: int, seed: int, format: str, *, links: bool, force: bool) -> None:
    """Write some images of each split in the same layout."""
    from detrkit.cli.console import progress_bar
    from detrkit.data.trial_sets import cut_trial_set
    from detrkit.errors import DataError
    from detrkit.terminal import say

    if out.suffix == ".json" or out.is_file():
        raise DataError(f"{out}: --images writes a folder, not a file")
    if out.is_dir() and any(out.iterdir()) and not force:
        raise DataError(f"{out}: the folder is not empty; choose another one, or pass --force to write into it")
    with progress_bar("images") as bar:
        counts = cut_trial_set(folder, out, images=images, seed=seed, format=format, links=links, progress=bar.update)
    for name, splits in counts.items():
        listed = ", ".join(f"{split} {number} images" for split, number in splits.items())
        say(f"wrote {out} ({name}): {listed}")


def split_command(
    folder: Folder,
    out: Annotated[Path, typer.Option(help="A folder for annotations/instances_{train,val}.json.")],
    val: Annotated[float, typer.Option(help="Fraction of the images for val.")] = 0.2,
    seed: Seed = 0,
    format: FormatOption = "auto",
    annotations: Annotations = None,
    images: Images = None,
    force: Force = False,
) -> None:
    """Split a train split into train and val; the images stay where they are."""
    from detrkit.data.convert import split_table, to_coco
    from detrkit.data.formats import find_sources, read_source
    from detrkit.terminal import say

    paths = outputs_of(out, ["train", "val"], None, COCO_FILE, force)
    source = sources_of(folder, format, annotations, images, Split.train)["train"]
    if annotations is None and "val" in find_sources(folder, format=format):
        say(f"{folder} has a val split already, which stays as it is: only its train split is divided")
    for name, table in split_table(read_source(source), val=val, seed=seed).items():
        write_coco(paths[name], to_coco(table, relative_to=out), force)
