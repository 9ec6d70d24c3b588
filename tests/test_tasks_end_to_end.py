"""Train, predict, score with masks on trees as they are downloaded: what is written scores as the run's evaluation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import detrkit
from tests.data.trees import BOXES, LVIS_FOLDERS, coco_masks_tree, gtfine_tree, lvis_tree, panoptic_tree
from tests.workplace import SMALL_RUN, TINY_MODEL, detrkit_cli

QUERIES = {"num_queries": 10, "denoising_queries": 10, "one_to_many_queries": 10, "mask_points": 256}
MODEL = {"name": "mask_dape_lite0", **TINY_MODEL, **QUERIES}


def trained(root: Path, output: Path, task: str, **more: Any) -> detrkit.RunResult:
    """Some steps of a tiny model: enough that it takes pixels for what most of them are."""
    recipe = {"model": {**MODEL, "task": task}, "data": {"root": str(root)}}
    settings = SMALL_RUN | {"training.iterations": 15, "training.epochs": None, "training.output": str(output)}
    settings |= {"optimizer.lr": 3e-3, "optimizer.lr_batch_size": None, "schedule.warmup": 0}
    return detrkit.train(recipe, **settings | more)


def scored(words: list[str | Path]) -> dict[str, Any]:
    code, text = detrkit_cli(["score", *map(str, words), "--json"])
    assert code == 0, text
    metrics: dict[str, Any] = json.loads(text)["metrics"]
    return metrics.get("All", metrics)


def predicted(run: detrkit.RunResult, images: list[Path], out: Path, *words: str) -> None:
    code, text = detrkit_cli(
        ["predict", *map(str, images), "--model", str(run.folder), "--out", str(out), "--no-images", *words]
    )
    assert code == 0, text


def gtfine_score(task: str, root: Path, out: Path) -> dict[str, Any]:
    kind = {"inst": "cityscapes", "sem": "semantic", "pan": "panoptic"}[task]
    results = out / "cityscapes" / ("panoptic.json" if task == "pan" else "")
    return scored([kind, "--gt", root / "gtFine", "--results", results])


@pytest.mark.parametrize(
    ("task", "names"), [("inst", ["AP", "AP50"]), ("sem", ["mIoU", "aAcc"]), ("pan", ["PQ", "RQ"])]
)
def test_cityscapes(tmp_path: Path, task: str, names: list[str]) -> None:
    """Void, groups, small objects, single caravans and trailers; the test split has no labels."""
    root = gtfine_tree(tmp_path / "cityscapes")
    run = trained(root, tmp_path / "run", task, **{"logging.plots": task == "pan"})
    predicted(run, [root / "leftImg8bit" / "val"], tmp_path / "val", "--format", "cityscapes")
    score = gtfine_score(task, root, tmp_path / "val")
    for name in names:
        if name != "mIoU":  # the benchmark also counts classes that are found and occur nowhere
            assert score[name] == pytest.approx(run.metrics[name], abs=1e-6), name
    if task == "sem":
        assert score["mIoU"] <= run.metrics["mIoU"] + 1e-6
        assert score["aAcc"] > 0
    if task == "pan":
        page = (run.folder / "report.html").read_text(encoding="utf-8")
        assert f"<b>{run.metrics['PQ']:.3f}</b><span>PQ</span>" in page
        assert "Labelled pixels, as they are found" in page
        assert (run.folder / "confusion_matrix.png").is_file()
        (run.folder / "best" / "map_scores.json").unlink()
        assert (
            detrkit_cli(["report", str(run.folder), "--out", str(tmp_path / "again.html"), "--device", "cpu"])[0] == 0
        )
        again = (tmp_path / "again.html").read_text(encoding="utf-8")
        assert page.split('id="confusion"')[1].split("</section>")[0] in again
    shutil.rmtree(root / "gtFine")
    predicted(run, [root / "leftImg8bit" / "test"], tmp_path / "test", "--format", "cityscapes")
    files = [path.name for path in (tmp_path / "test" / "cityscapes").rglob("*")]
    for frame in ("berlin_000000_000019", "bonn_000003_000019"):
        assert any(name.startswith(frame) for name in files)


def coco(root: Path) -> list[str | Path]:
    return ["coco", "--iou", "segm", "--gt", root / "annotations" / "instances_val2017.json"]


def lvis(root: Path) -> list[str | Path]:
    return ["lvis", "--iou", "segm", "--gt", root / "annotations" / "lvis_v1_val.json"]


def panoptic(root: Path) -> list[str | Path]:
    return ["panoptic", "--gt", root / "annotations" / "panoptic_val2017.json"]


CASES = [
    pytest.param("inst", coco_masks_tree, ["val2017"], coco, "predictions.json", ["AP", "AR100"], id="coco"),
    pytest.param(
        "inst",
        lvis_tree,
        [f"{LVIS_FOLDERS[name]}/{name}" for name in BOXES["val"]],
        lvis,
        "predictions.json",
        ["AP", "AR@300"],
        id="lvis",
    ),
    pytest.param(
        "pan",
        lambda root: panoptic_tree(root, official=True),
        ["val2017"],
        panoptic,
        "panoptic.json",
        ["PQ", "RQ"],
        id="coco-panoptic",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("task", "tree", "images", "score", "results", "names"), CASES)
def test_coco_and_lvis(
    tmp_path: Path,
    task: str,
    tree: Callable[[Path], Path],
    images: list[str],
    score: Callable[[Path], list[str | Path]],
    results: str,
    names: list[str],
) -> None:
    """Crowds as run lengths, ids with gaps and in no order, images of val in train2017, void in panoptic maps."""
    root = tree(tmp_path / "data")
    run = trained(root, tmp_path / "run", task)
    threshold = ["--threshold", "0"] if task == "inst" else []
    predicted(run, [root / name for name in images], tmp_path / "out", *threshold)
    metrics = scored([*score(root), "--results", tmp_path / "out" / results])
    for name in names:
        assert metrics[name] == pytest.approx(run.metrics[name], abs=1e-6), name
