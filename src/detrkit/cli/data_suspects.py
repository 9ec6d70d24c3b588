"""``detrkit data suspects``: labels that a model doubts, ranked, with pictures and files for labelling tools."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detrkit.cli.choices import Split
from detrkit.cli.data_options import Folder, FormatOption
from detrkit.errors import DataError, RecipeError

if TYPE_CHECKING:
    from detrkit.data import DetectionDataset
    from detrkit.data.suspects import Suspect
    from detrkit.models import Detector

__all__ = ["suspects_command"]

_ON_SHEET = 24
_FILES = ("corrected_{}.json", "ignore_{}.json", "cvat_{}.xml", "label_studio_{}.json")  # of a split


def suspects_command(
    folder: Folder,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="With --folds: settings of the trainings.")
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option("--checkpoint", "--model", metavar="CKPT", help="Checkpoint, run folder, URL or name."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Output folder.")] = Path("suspects"),
    split: Annotated[Split | None, typer.Option(help="Only this split.")] = None,
    folds: Annotated[
        int | None,
        typer.Option(
            "--folds",
            min=2,
            metavar="5",
            help="Cross-validate the train split: train so many models, each judges what it has not seen.",
        ),
    ] = None,
    least: Annotated[float, typer.Option("--least", min=0, max=1, help="Confidence of the last suspect listed.")] = 0.1,
    follow: Annotated[
        float, typer.Option("--follow", min=0, max=1, help="Confidence from which corrected labels follow the model.")
    ] = 0.5,
    pictures: Annotated[int, typer.Option("--pictures", min=0, help="Suspects that are drawn, best first.")] = 96,
    image_url: Annotated[
        str, typer.Option("--image-url", help="What stands before file names in the file for Label Studio.")
    ] = "/data/local-files/?d=",
    format: FormatOption = "auto",
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
) -> None:
    """List labels that a model doubts: missing, of the wrong class, loose, or twice; the surest first.

    Writes suspects.json, and for each split corrected_SPLIT.json (COCO, suggestions followed), ignore_SPLIT.json (COCO,
    with a crowd region where an object is probably not labelled, for data.ignore_crowds=true), cvat_SPLIT.xml (CVAT for
    images 1.1) and label_studio_SPLIT.json; sheets/ shows the first suspects. Nothing is changed in DIR.

    A model doubts least what it was trained on: --folds 5 asks models that have not seen the image.
    """
    if checkpoint is None and folds is None:
        raise DataError("suspects needs --checkpoint CKPT, or --folds 5 to train models for it")
    if folds is not None and split not in (None, Split.train):
        raise DataError(f"--folds trains on the train split; --split {split.value} needs --checkpoint alone")
    if overrides and folds is None:
        raise DataError(f"'{overrides[0]}': settings of a training need --folds")
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: the output must be a folder, but this is a file")

    from detrkit.cli.console import stdout
    from detrkit.data import load_dataset
    from detrkit.data.formats import find_sources
    from detrkit.data.suspects import ranked_suspects
    from detrkit.files import write_json

    names = ["train"] if folds is not None else [split.value] if split else list(find_sources(folder, format=format))
    model = _model(str(checkpoint), device) if folds is None else None
    every: list[tuple[str, Suspect]] = []
    sets: dict[str, DetectionDataset] = {}
    for name in names:
        data = sets[name] = load_dataset(folder, split=name, format=format, on_error="skip")
        _refuse_mixing(out, folder, data)
        if model is not None:
            found = _detections(model, data, name)
        else:
            assert folds is not None
            found = _of_folds(checkpoint, folder, data, folds, overrides or [], out, device)
        every += [(name, one) for one in ranked_suspects(found, least=least)]
    every.sort(key=lambda pair: -pair[1].confidence)
    rows = [one.to_json(sets[name].categories, split=name) for name, one in every]
    write_json(out / "suspects.json", rows, force=True)
    for name in {*Split} - sets.keys():  # of an earlier call
        for kind in _FILES:
            (out / kind.format(name)).unlink(missing_ok=True)
    for name, data in sets.items():
        _write_files(out, name, data, [one for own, one in every if own == name], follow=follow, image_url=image_url)
    sheets = _draw(out, sets, every[:pictures])
    console = stdout()
    console.soft_wrap = True
    counts = Counter(one.kind for _, one in every)
    listed = ", ".join(f"{kind} {number}" for kind, number in counts.most_common())
    labels = sum(len(record.labels) for data in sets.values() for record in data.records)
    console.print(f"{len(every)} suspects beside {labels} labels ({listed or 'none'})", markup=False)
    for row in rows[:5]:
        where = ", ".join(f"{value:g}" for value in row["bbox"])
        console.print(
            f"  {row['confidence']:.2f} {row['kind']} {row['category']} in {row['file_name']} at {where}", markup=False
        )
    console.print(f"{out / 'suspects.json'}" + (f", pictures in {out / 'sheets'}" if sheets else ""), markup=False)


def _refuse_mixing(out: Path, folder: Path, data: DetectionDataset) -> None:
    """Refuse to write files and pictures where those of the data are looked for.

    Raises:
        DataError: the output is the folder of the data, or one of or in those that their images are in.
    """
    real, root = out.resolve(), folder.resolve()
    places = {record.path.parent.resolve() for record in data.records}
    above = any(real in place.parents for place in places) and real not in root.parents
    if above or real == root or places & {real, *real.parents}:
        raise DataError(f"--out {out}: files and pictures would be written among the data; choose another folder")


def _model(checkpoint: str, device: str) -> Detector:
    from detrkit.cli.console import local_checkpoint
    from detrkit.devices import resolve_device
    from detrkit.weights import open_checkpoint
    from detrkit.weights.find import find_checkpoint

    return open_checkpoint(find_checkpoint(local_checkpoint(checkpoint))).to(resolve_device(device))


def _detections(model: Detector, data: DetectionDataset, name: str) -> list[tuple[Any, Any]]:
    """Images and what a model finds in them, low scores too."""
    from detrkit.cli.console import progress_bar
    from detrkit.evaluation.loop import predict_dataset

    records = {record.image_id: record for record in data.records}
    with progress_bar(f"looking at {name}") as bar:
        found = dict(predict_dataset(model, data, progress=bar.update))
    return [(records[image_id], one) for image_id, one in found.items()]


def _of_folds(
    checkpoint: str | None,
    folder: Path,
    data: DetectionDataset,
    folds: int,
    overrides: Sequence[str],
    out: Path,
    device: str,
) -> list[tuple[Any, Any]]:
    """Images and what models find in them that were trained on others."""
    from detrkit.cli.console import local_checkpoint
    from detrkit.config import load_recipe
    from detrkit.training import auto_recipe
    from detrkit.training.cross_validation import unseen_detections
    from detrkit.training.interrupt import Interrupted
    from detrkit.weights import read_info
    from detrkit.weights.find import find_checkpoint

    if checkpoint is not None:
        stored = read_info(find_checkpoint(local_checkpoint(checkpoint))).recipe
        if stored is None:
            raise DataError(f"{checkpoint}: says nothing of how it was trained; leave --checkpoint out, or name a run")
        recipe = load_recipe(load_recipe(stored), overrides)
    else:
        recipe = auto_recipe(folder, overrides)
    runs = out / "folds"
    begun = runs.is_dir()
    try:
        return list(unseen_detections(recipe, data, folds=folds, folder=runs, device=device))
    except Interrupted as stop:
        typer.echo(f"interrupted; the same command goes on ({runs})", err=True)
        raise typer.Exit(stop.exit_code) from None
    except (DataError, RecipeError) as error:
        if not begun:
            raise
        raise type(error)(f"{error}. To train all folds anew: another --out, or delete {runs}") from error


def _write_files(
    out: Path, name: str, data: DetectionDataset, suspects: Sequence[Suspect], *, follow: float, image_url: str
) -> None:
    from detrkit.data.suspect_files import corrected_coco, cvat_xml, label_studio_tasks, with_ignore_regions
    from detrkit.files import write_bytes, write_json

    truth, categories = data.coco_ground_truth(), data.categories
    sure = [one for one in suspects if one.confidence >= follow]
    records = data.unique_records()
    write_json(out / f"corrected_{name}.json", corrected_coco(truth, sure, categories), force=True)
    write_json(out / f"ignore_{name}.json", with_ignore_regions(truth, sure, categories), force=True)
    write_bytes(out / f"cvat_{name}.xml", cvat_xml(records, suspects, categories))
    tasks = label_studio_tasks(records, suspects, categories, image_url=image_url)
    write_json(out / f"label_studio_{name}.json", tasks, force=True)


def _draw(out: Path, sets: dict[str, DetectionDataset], suspects: Sequence[tuple[str, Suspect]]) -> int:
    """Sheets of suspects, the surest first; returns their number."""
    from detrkit.drawing.doubts import draw_suspect
    from detrkit.files import write_picture
    from detrkit.report.charts.tiles import sheet

    places = {name: {record.image_id: k for k, record in enumerate(data.records)} for name, data in sets.items()}
    pictures, captions = [], []
    for number, (name, one) in enumerate(suspects, start=1):
        data = sets[name]
        try:
            image = data.read_image(places[name][one.record.image_id])
        except DataError:
            continue
        seen = one.label if one.suggested_label is None else one.suggested_label
        words = f"{data.categories[one.label].name}"
        words += f" -> {data.categories[seen].name}" if one.suggested_label is not None else ""
        pictures.append(draw_suspect(image, one))
        captions.append(f"{number}. {one.kind} {words} {one.confidence:.2f}")
    for earlier in (out / "sheets").glob("[0-9][0-9][0-9][0-9].jpg"):
        earlier.unlink()
    sheets = range(0, len(pictures), _ON_SHEET)
    for start in sheets:
        part = slice(start, start + _ON_SHEET)
        drawn = sheet(pictures[part], columns=6, captions=captions[part])
        write_picture(out / "sheets" / f"{start + 1:04}.jpg", drawn, format="JPEG")
    return len(sheets)
