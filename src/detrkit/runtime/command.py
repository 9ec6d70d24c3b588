"""``detrkit-runtime``: objects in images from an exported model, as COCO results; needs neither torch nor typer."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from detrkit.data.listing import IMAGE_SUFFIXES
from detrkit.errors import DataError, DetrkitError
from detrkit.runtime.light_predictor import LightPredictor

__all__ = ["run_command"]


def run_command(arguments: Sequence[str] | None = None) -> int:
    """Predict images and write ``{"images": […], "categories": […], "annotations": […]}``; returns the exit code."""
    parser = argparse.ArgumentParser(prog="detrkit-runtime", description="Find objects with an exported model.")
    parser.add_argument("model", help="file of detrkit export: .onnx or .xml")
    parser.add_argument("images", nargs="+", help="images, or folders of images")
    parser.add_argument("--threshold", type=float, help="minimum score; default 0.3")
    parser.add_argument("--out", type=Path, help="JSON file; default: standard output")
    parser.add_argument("--threads", type=int, help="threads of the CPU")
    given = parser.parse_args(arguments)
    try:
        predictor = LightPredictor(given.model, threads=given.threads, threshold=given.threshold)
        content = json.dumps(_predicted(predictor, given.images))
        if given.out is None:
            print(content)
        else:
            given.out.write_text(content, encoding="utf-8")
    except (DetrkitError, ValueError, OSError) as error:
        print(f"detrkit-runtime: error: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, DetrkitError) else 2
    return 0


def _predicted(predictor: LightPredictor, arguments: Sequence[str]) -> dict[str, object]:
    images: list[dict[str, object]] = []
    rows: list[dict[str, object]] = []
    for number, (name, path) in enumerate(_files(arguments), start=1):
        (found,) = predictor.predict_all([path])
        height, width = found.image_size
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for row in found.to_coco(number):
            area = row["bbox"][2] * row["bbox"][3]
            rows.append({"id": len(rows) + 1, **row, "area": area, "iscrowd": 0})
    categories = [{"id": one.id, "name": one.name} for one in predictor.categories if one.name is not None]
    return {"images": images, "categories": categories, "annotations": rows}


def _files(arguments: Sequence[str]) -> list[tuple[str, Path]]:
    """Names relative to the arguments, and paths, sorted."""
    found = []
    for argument in map(Path, arguments):
        if argument.is_dir():
            inside = [path for path in argument.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES]
            found += [(path.relative_to(argument).as_posix(), path) for path in inside if path.is_file()]
        else:
            found.append((argument.name, argument))
    if not found:
        raise DataError(f"{', '.join(arguments)}: no images")
    return sorted(found)


if __name__ == "__main__":
    sys.exit(run_command())
