"""Run folders as a training leaves them, without a training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from detrkit.data.formats import find_source
from detrkit.data.open import load_source
from detrkit.report.facts import data_facts
from tests.report.sets import Rows, simulated


def log_rows(scores: list[float], *, steps: int, classes: list[str]) -> Rows:
    """The log of a run with these APs, evenly spaced."""
    rows: Rows = [{"event": "start", "epoch": 1, "step": 0, "time": 100.0, "total_steps": steps, "images": 20}]
    for number, value in enumerate(scores, start=1):
        step = steps * number // len(scores)
        common = {"epoch": number, "step": step, "time": 100.0 + step}
        train = {"loss": 5.0 / number, "lr": 1e-4, "images_per_second": 4.0, "memory_gb": 1.5}
        rows.append({"event": "train", **common, **train})
        better = value >= max(scores[:number])
        per_class = dict.fromkeys(classes, value)
        rows.append(
            {
                "event": "eval",
                **common,
                "AP": value,
                "AP50": value,
                "per_class": per_class,
                "best": better,
                "seconds": 2.0,
            }
        )
    rows.append({"event": "end", "epoch": len(scores), "step": steps, "time": 101.0 + steps})
    return rows


def write_run(
    root: Path,
    *,
    truth: dict[str, Any] | None = None,
    results: Rows | None = None,
    scores: tuple[float, ...] = (0.1, 0.3, 0.35, 0.36, 0.36),
    steps: int = 3000,
    **facts: Any,
) -> Path:
    """A data set (the same images for both splits, of other colours) and the folder of a run on it."""
    drawn_truth, drawn = simulated(seed=0, images=20)
    truth, results = truth or drawn_truth, drawn if results is None else results
    data = root / "data"
    for split, shade in (("train", 60), ("val", 180)):
        (data / "images" / split).mkdir(parents=True)
        for row in truth["images"]:
            picture = np.full((row["height"], row["width"], 3), (shade, row["id"] % 250, 90), dtype=np.uint8)
            Image.fromarray(picture).save(data / "images" / split / row["file_name"])
        (data / "annotations").mkdir(exist_ok=True)
        (data / "annotations" / f"instances_{split}.json").write_text(json.dumps(truth), encoding="utf-8")
    run = root / "run"
    (run / "best").mkdir(parents=True)
    recipe = {
        "model": {"name": "dape_lite0", "nms": None},
        "data": {"root": str(data), "format": "auto"},
        "training": {"epochs": 5, "batch_size": 4, "accumulate": 1, "seed": 0, "precision": "fp32"},
        "optimizer": {"lr": 1e-4, "lr_backbone": 1e-5},
        "schedule": {"kind": "cosine"},
    }
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    classes = [row["name"] for row in truth["categories"]]
    lines = [json.dumps(row) for row in log_rows(list(scores), steps=steps, classes=classes)]
    (run / "log.jsonl").write_text("\n".join(lines), encoding="utf-8")
    train, val = (load_source(find_source(data, split)) for split in ("train", "val"))
    sides = {"short_side": 120, "max_side": 200, "queries": 100, "parameters": 8_000_000, "short_steps": 1500}
    found = data_facts(train, val, **{**sides, **facts})
    (run / "facts.json").write_text(json.dumps(found.to_json()), encoding="utf-8")
    (run / "best" / "predictions.json").write_text(json.dumps(results), encoding="utf-8")
    return run
