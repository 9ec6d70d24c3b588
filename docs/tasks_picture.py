"""Draw the picture of the four tasks: one photo per task, each answered by a trained model.

python docs/tasks_picture.py det=PHOTO,MODEL inst=PHOTO,MODEL sem=PHOTO,MODEL pan=PHOTO,MODEL --out FILE
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import detrkit

TITLES = {"det": "boxes", "inst": "instances", "sem": "classes of pixels", "pan": "panoptic segments"}
THRESHOLDS = {"det": 0.5, "inst": 0.5}
CELL, GAP, HEADING = (480, 400), 8, 26


def cell(task: str, photo: Path, model: str) -> Image.Image:
    """The answer to a task, drawn, as large as fits into a cell below its title."""
    drawn = detrkit.Predictor(model).predict(photo, THRESHOLDS.get(task), task=task).draw()
    scale = min(CELL[0] / drawn.width, (CELL[1] - HEADING) / drawn.height)
    size = round(drawn.width * scale), round(drawn.height * scale)
    canvas = Image.new("RGB", CELL, "white")
    canvas.paste(drawn.resize(size, Image.Resampling.LANCZOS), ((CELL[0] - size[0]) // 2, HEADING))
    ImageDraw.Draw(canvas).text((CELL[0] / 2, HEADING / 2), TITLES[task], "black", ImageFont.load_default(16), "mm")
    return canvas


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", nargs="+", metavar="TASK=PHOTO,MODEL")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    cells = []
    for text in given.cells:
        task, _, rest = text.partition("=")
        photo, _, model = rest.partition(",")
        cells.append(cell(task, Path(photo), model))
    rows = -(-len(cells) // 2)
    whole = Image.new("RGB", (2 * CELL[0] + GAP, rows * CELL[1] + (rows - 1) * GAP), "white")
    for index, picture in enumerate(cells):
        whole.paste(picture, (index % 2 * (CELL[0] + GAP), index // 2 * (CELL[1] + GAP)))
    whole.save(given.out, quality=88)


if __name__ == "__main__":
    main()
