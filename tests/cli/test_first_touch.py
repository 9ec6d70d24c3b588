"""What answers at once: commands that need no network of weights import no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.test_main import SOURCE
from tests.runtime.planted_files import planted_info, planted_onnx

HEAVY = ("torch", "torchvision", "timm", "accelerate", "transformers", "tensorboard", "scipy", "sympy", "markdown_it")
PROGRAM = """
import sys
from detrkit.cli.main import run
code = run(sys.argv[1:])
print("loaded:", *(name for name in {heavy} if name in sys.modules), file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """COCO data with train and val, and perfect results on val."""
    root = tmp_path_factory.mktemp("first_touch")
    boxes = {"category_id": 1, "bbox": [4, 4, 12, 9], "area": 108, "iscrowd": 0}
    for split, shade in (("train", 90), ("val", 190)):
        images = root / "data" / "images" / split
        images.mkdir(parents=True)
        for number in (1, 2):
            Image.new("RGB", (40, 30), (shade, 10 * number, 0)).save(images / f"{split}{number}.png")
        content = {
            "images": [{"id": n, "file_name": f"{split}{n}.png", "width": 40, "height": 30} for n in (1, 2)],
            "annotations": [{"id": n, "image_id": n, **boxes} for n in (1, 2)],
            "categories": [{"id": 1, "name": "bolt"}],
        }
        path = root / "data" / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
    planted_onnx(root / "model.onnx", planted_info())
    (root / "results.json").write_text(json.dumps([{"image_id": 1, "score": 0.9, **boxes}]))
    return root


COMMANDS = {
    "--help": "",
    "--version": "",
    "models": "",
    "models --json": "",
    "env": "",
    "env --json": "",
    "weights list": "",
    "weights --help": "",
    "train --help": "",
    "predict --help": "",
    "data check {data}": "",
    "data stats {data}": "",
    "data view {data} --out {out}/view": "",
    "data convert {data} --to yolo --out {out}/yolo": "",
    "data split {data} --val 0.5 --out {out}/split": "",
    "score coco --gt {data}/annotations/instances_val.json --results {root}/results.json": "",
    "report --help": "",
    "learning-curve --help": "",
    "recipes list dape": "",
    "recipes show dape_lite0": "",
    "data fetch blood_cells --out {out}/cells": "",
    "env --torch": "torch",
    "predict {data}/images/val/val1.png --out {out} --model {root}/model.onnx": "",
    "predict {data}/images/val/val1.png --out {out}": "torch torchvision timm",
}


@pytest.mark.parametrize(("command", "loaded"), COMMANDS.items(), ids=list(COMMANDS))
def test_modules_that_a_command_loads(folder: Path, tmp_path: Path, command: str, loaded: str) -> None:
    words = command.format(data=folder / "data", root=folder, out=tmp_path).split()
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    program = PROGRAM.format(heavy=HEAVY)
    found = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stderr
    line = next(line for line in found.stderr.splitlines() if line.startswith("loaded:"))
    assert line.split()[1:] == loaded.split()


def test_help_leaves_the_modules_that_it_does_without() -> None:
    program = """
from detrkit.cli.quick_help import prepare_help
prepare_help()
from rich.console import Console
from rich.markdown import Markdown
from rich.traceback import Traceback
Console().print(Markdown("# heading"))
print(Markdown.__module__, Traceback.__module__)
"""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stderr
    assert "heading" in found.stdout
    assert found.stdout.splitlines()[-1] == "rich.markdown rich.traceback"
