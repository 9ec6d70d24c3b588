"""Benchmarks: grids are trainable, measurements are correct, reports agree with the results."""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

import detrkit
from detrkit.config import load_recipe
from detrkit.models import create_model, model_config
from detrkit.nn.relation import LowRankRelation, PositionRelation

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("data_efficiency", ROOT / "benchmarks" / "data_efficiency.py")
    assert spec is not None
    assert spec.loader is not None
    import sys

    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module
    spec.loader.exec_module(module)
    return module


def data(folder: Path) -> Path:
    images = [{"id": number, "file_name": f"{number}.jpg", "width": 8, "height": 8} for number in range(8)]
    boxes = [{"id": number, "image_id": number, "category_id": 1, "bbox": [1, 1, 4, 4]} for number in range(8)]
    (folder / "annotations").mkdir(parents=True)
    (folder / "annotations" / "instances_train.json").write_text(json.dumps({"images": images, "annotations": boxes}))
    (folder / "splits").mkdir()
    (folder / "splits" / "train_25pct_seed0.txt").write_text("3.jpg\n5.jpg\n")
    return folder


def test_a_cell_trains_on_the_listed_images_only(benchmark: ModuleType, tmp_path: Path) -> None:
    cell = benchmark.Cell("blood_cells", "de_detr_lite0", 25, 0, 100, 320)
    path, count = benchmark.subset(data(tmp_path / "data"), cell, tmp_path / "out")
    coco = json.loads(path.read_text())
    assert count == 2
    assert [image["file_name"] for image in coco["images"]] == ["3.jpg", "5.jpg"]
    assert [box["image_id"] for box in coco["annotations"]] == [3, 5]


def test_every_model_of_the_grid_builds_and_the_recipes_differ_only_in_the_model(
    benchmark: ModuleType, tmp_path: Path
) -> None:
    rest = []
    for model in benchmark.TITLES:
        cell = benchmark.Cell("blood_cells", model, 100, 0, 100, 320)
        recipe = load_recipe(benchmark.recipe(cell, tmp_path, tmp_path / "a.json", 8))
        with torch.device("meta"):
            create_model(recipe.model.name, num_classes=3, **recipe.model.overrides)
        tree = recipe.to_dict()
        tree.pop("model")
        rest.append(tree)
    assert all(tree == rest[0] for tree in rest)


def row(model: str, seed: int, ap: float | None, images: int = 8) -> str:
    metrics = {"AP": ap, "AP50": ap, "AP75": ap}
    cell = {"data": "cells", "model": model, "percent": 100, "seed": seed, "iterations": 9, "size": 320}
    return json.dumps({**cell, "images": images, "metrics": metrics})


def test_the_report_averages_over_seeds_and_marks_undefined_numbers(
    benchmark: ModuleType, benchmarks: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [row("detr_lite0", 0, 0.1), row("detr_lite0", 1, 0.3), row("de_detr_lite0", 0, None)]
    lines += [row("walk3_no_roi", 0, 0.2), row("dela_detr_lite0", 0, 0.5, images=2), '{"cut": ']
    lines += [json.dumps({**json.loads(row("detr_lite0", 2, 0.9)), "size": 160})]  # not of the same table
    (tmp_path / "results.jsonl").write_text("\n".join(lines))
    benchmark.report(argparse.Namespace(results=tmp_path / "results.jsonl", images=tmp_path / "images"))
    printed = capsys.readouterr().out
    assert "| DETR | – | 0.200 ± 0.141 / 0.200 ± 0.141 (n = 2) |" in printed
    assert "| DE-DETR | – | – / – |" in printed
    assert "| DELA-DETR | 0.500 / 0.500 | – |" in printed
    assert "| − RoIAlign | 0.200 / 0.200 |" in printed
    assert "0.200" in (tmp_path / "images" / "data_efficiency_cells_9x320_walk.svg").read_text()
    assert (tmp_path / "images" / "data_efficiency_cells_9x320.svg").read_text().count("<circle") == 2
    assert "| DETR | 0.900 / 0.900 |" in printed


def test_the_report_compares_models_that_add_one_thing(
    benchmark: ModuleType, benchmarks: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = []
    for model, aps in (("de_detr_lite0", (0.1, 0.3)), ("dela_detr_lite0", (0.2, 0.42)), ("detr_lite0", ())):
        for seed, ap in enumerate(aps):
            scores = {which: {"drawn": [ap + more] * 60} for which, more in (("plain", 0.0), ("nms", 0.1 * seed))}
            lines.append(json.dumps({**json.loads(row(model, seed, ap)), "scores": scores}))
    (tmp_path / "results.jsonl").write_text("\n".join(lines))
    benchmark.report(argparse.Namespace(results=tmp_path / "results.jsonl", images=tmp_path))
    printed = capsys.readouterr().out
    assert "| DELA-DETR, DE-DETR | 8 | +0.110 (+0.100 to +0.120, 2 seeds) | +0.110 (" in printed
    assert "| DE-DETR, DETR |" not in printed


def test_the_figures_in_the_documentation_are_the_recorded_ones(
    benchmark: ModuleType, benchmarks: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = ROOT / "docs" / "results" / "data_efficiency.jsonl"
    benchmark.report(argparse.Namespace(results=recorded, images=tmp_path))
    page = (ROOT / "docs" / "results.md").read_text()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(rows) >= 4
    for line in rows:
        assert line in page
    for picture in tmp_path.glob("*.svg"):
        assert (ROOT / "docs" / "images" / picture.name).read_text() == picture.read_text()


# ------------------------------------------------------------------------------------------------ the ablation of DAPE


@pytest.fixture(scope="module")
def benchmarks(benchmark: ModuleType) -> Iterator[None]:
    """Put the folder of benchmarks on the path, since they import each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield


@pytest.fixture(scope="module")
def dape(benchmarks: None) -> ModuleType:
    return importlib.import_module("dape_ablation")


TINY = {
    "backbone": "test_resnet",
    "num_classes": 3,
    "num_queries": 150,
    "one_to_many_queries": 10,
    "hidden_dim": 32,
    "num_heads": 4,
    "encoder_layers": 1,
    "decoder_layers": 3,
    "ffn_dim": 32,
    "eval_short_side": 96,
}


def test_rows_of_the_ablation_differ_only_in_their_options(benchmark: ModuleType) -> None:
    seen = {}
    for row in benchmark.GROUPS["ablation"]:
        name, switches = benchmark.VARIANTS.get(row, (row, {}))
        seen[row] = model_config(name, **switches).flat()
    base = {**seen.pop("relation_detr_lite0"), "relation": "full", "sampling": "standard"}
    plain = {"sampling_in": "both", "code_rank": 16, "code_residual": 0.5, "query_content": "static"}
    plain["position_in_value"] = False
    assert model_config("dape_lite0", sampling="standard", relation="full").flat() == {**base, **plain}
    free = {"relation", "relation_rank", "sampling", "sampling_in", "query_content", "position_in_value"}
    found = [tuple(config[key] for key in sorted(free)) for config in seen.values()]
    assert len(set(found)) == len(found) == len(seen)
    for row, config in seen.items():
        assert {key: value for key, value in config.items() if key not in free} == {
            key: value for key, value in {**base, **plain}.items() if key not in free
        }, row


def test_a_probe_finds_what_a_linear_map_can_find(dape: ModuleType) -> None:
    """Centres that are linear in the features are found entirely, features without them explain nothing."""
    import dape_probe

    torch.manual_seed(0)
    centres, noise = torch.rand(400, 2), torch.randn(400, 5)
    features = torch.cat((centres, noise), dim=1) @ torch.randn(7, 7)
    found = dape_probe.probe((features[:200], centres[:200]), (features[200:], centres[200:]))
    assert found["error"] < 0.01
    assert found["explained"] > 0.999
    assert dape_probe.probe((noise[:200], centres[:200]), (noise[200:], centres[200:]))["explained"] < 0.2


def test_the_fit_to_a_full_relation_improves_with_rank(dape: ModuleType) -> None:
    torch.manual_seed(0)
    rows = dict(dape.fit_errors(PositionRelation(num_heads=2), [1, 4, 16], 300, seed=0))
    errors = [rows[rank]["error"] for rank in (1, 4, 16)]
    assert errors[0] > errors[1] + 0.01 > errors[2] + 0.02
    for row in rows.values():
        assert row["least_error"] <= row["error"] < 1.0
        assert row["least_error"] ** 2 == pytest.approx(1 - row["energy_centred"], abs=0.05)  # heads of similar size
        assert row["error_unseen"] < 1.2


@torch.no_grad()
def test_the_fit_recovers_a_low_rank_relation(dape: ModuleType) -> None:
    torch.manual_seed(0)
    relation = LowRankRelation(num_heads=2, rank=3)
    torch.nn.init.normal_(relation.target_proj.weight)
    rank = importlib.import_module("relation_rank")
    own, others = rank.layer_boxes(120, 0), rank.layer_boxes(120, 1)
    again = rank.fitted(relation(*own), *own, 3)
    torch.testing.assert_close(again(*others), relation(*others), rtol=0.0, atol=0.02 * float(relation(*others).std()))


def test_a_truncated_relation_has_the_requested_rank(dape: ModuleType) -> None:
    torch.manual_seed(0)
    rank = importlib.import_module("relation_rank")
    bias = torch.randn(2, 3, 12, 12)
    shares = rank.energy(bias, (0, 5, 12))
    assert shares["0"] == 0.0
    assert shares["12"] == pytest.approx(1.0)
    left = rank.truncated(bias, 5)
    assert (torch.linalg.matrix_rank(left, rtol=1e-4) == 5).all()
    lost = ((bias - left).square().sum((-1, -2)) / bias.square().sum((-1, -2))).mean()
    assert 1 - shares["5"] == pytest.approx(float(lost), abs=1e-5)
    torch.testing.assert_close(rank.truncated(bias, 12), bias)
    assert not rank.truncated(bias, 0).any()


def results(path: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in map(json.loads, path.read_text().splitlines()) if row["kind"] == kind]


def test_cost_is_measured_once_per_row_and_reported(
    dape: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def run_in_process(command: list[str], env: dict[str, str]) -> Any:
        calls.append(command)
        dape.step(argparse.Namespace(what=command[3], repeats=int(command[4]), out=Path(command[5])))
        return argparse.Namespace(returncode=0)

    monkeypatch.setattr(dape.subprocess, "run", run_in_process)
    rows = [dape.UPSTREAM, "relation_detr_lite0", "dape_rank16", "dape_harmonized"]
    setting = {"model": "dape_r50", "options": json.dumps(TINY), "size": (128, 128), "objects": 2, "device": "cpu"}
    args = argparse.Namespace(
        **setting,
        precision="fp32",
        threads=torch.get_num_threads(),
        repeats=1,
        rows=rows,
        out=tmp_path / "results.jsonl",
    )
    dape.cost(args)
    dape.cost(args)
    assert len(calls) == 4
    upstream, full, low, both = (row["kept_MiB"] for row in results(args.out, "cost"))
    assert upstream > full + 10  # 64 features for 350 x 350 pairs in two layers
    assert low < upstream
    assert both > low  # the codes need memory too
    assert {row["queries"]["matching"] for row in results(args.out, "cost")} == {150}
    dape.report(argparse.Namespace(results=args.out, grid=tmp_path / "none.jsonl"))
    printed = capsys.readouterr().out
    assert "150 matching" in printed
    assert f"| {upstream:,.0f} |" in printed


def tiny_data(folder: Path) -> Path:
    """Two images with one box each, and the three classes of TINY."""
    (folder / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (folder / "images" / split).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (120, 96), (40 * number, 90, 200)).save(folder / "images" / split / f"{number}.png")
        images = [{"id": number, "file_name": f"{number}.png", "width": 120, "height": 96} for number in range(2)]
        boxes = [
            {
                "id": number + 1,
                "image_id": number,
                "category_id": 1,
                "bbox": [10, 10, 40, 40],
                "area": 1600,
                "iscrowd": 0,
            }
            for number in range(2)
        ]
        coco = {
            "images": images,
            "annotations": boxes,
            "categories": [{"id": number + 1, "name": f"class{number}"} for number in range(3)],
        }
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(coco))
    return folder


def test_a_trained_relation_is_truncated_and_content_permuted_without_repeated_evaluations(
    dape: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    model = create_model("relation_detr_r50", **TINY)
    checkpoint = detrkit.save(model, tmp_path / "tiny.safetensors")
    given: dict[str, Any] = {"checkpoint": str(checkpoint), "name": None, "data": str(tiny_data(tmp_path / "data"))}
    out = tmp_path / "results.jsonl"
    seen: list[torch.Tensor] = []
    evaluate = detrkit.evaluate

    def watched(model: Any, *args: Any, **options: Any) -> Any:
        with torch.no_grad():
            torch.manual_seed(1)
            seen.append(model.eval()(torch.randn(1, 3, 96, 120)).logits[-1])  # all box heads have equal initial weights
        return evaluate(model, *args, **options)

    monkeypatch.setattr(detrkit, "evaluate", watched)
    for _ in range(2):
        dape.spectrum(argparse.Namespace(**given, device="cpu", images=1, out=out))
        dape.permute(argparse.Namespace(**given, device="cpu", seeds=[0], out=out))
    observed, whole, none, *truncated, permuted = seen  # each evaluated once
    assert torch.equal(observed, whole)
    assert len(truncated) == 4
    distances = [float((logits - whole).abs().max()) for logits in (none, *truncated)]
    assert distances[0] > distances[-1]  # rank 0 and rank 128 of 150
    assert not torch.equal(permuted, whole)
    (row,) = results(out, "spectrum")
    assert row["queries"] == 150
    assert row["matrices"] == 2 * TINY["num_heads"]
    shares = list(row["energy_centred"].values())
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] <= 1
    assert [row["change"] for row in results(out, "change")] == [
        "none",
        *(f"relation of rank {rank}" for rank in (0, 4, 16, 64, 128)),
        "content permuted, seed 0",
    ]
    dape.report(argparse.Namespace(results=out, grid=tmp_path / "none.jsonl"))
    (row,) = (row for row in results(out, "change") if row["change"] == "relation of rank 16")
    assert f"| relation of rank 16 | {row['AP']:.3f} | {row['AP50']:.3f} |" in capsys.readouterr().out


def test_the_ablation_compares_runs_of_the_same_seed(
    dape: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = []
    for model, aps in (("dape_rank16", (0.1, 0.3)), ("dape_harmonized", (0.2, 0.42)), ("dape_rank64", (0.5,))):
        for seed, ap in enumerate(aps):
            curve = [[2, ap / 2], [5, 0.9 * ap], [9, ap]]
            noise = [0.01 * (number % 5) for number in range(300)]  # what the drawn images do is in both of a pair
            scores = {"AP": ap, "AP50": ap, "doubles": 0.25, "drawn": [ap, *(ap + shift for shift in noise)]}
            found = {"curve": curve, "scores": {"plain": scores, "nms": {**scores, "AP": ap + 0.05, "doubles": 0.0}}}
            lines.append(json.dumps({**json.loads(row(model, seed, ap)), **found}))
    older = {**json.loads(row("dape_no_relation", 0, 0.3)), "curve": [[2, 0.15], [9, 0.3]]}  # without drawn sets
    lines.append(json.dumps(older))
    (tmp_path / "grid.jsonl").write_text("\n".join(lines))
    dape.report(argparse.Namespace(results=tmp_path / "none.jsonl", grid=tmp_path / "grid.jsonl"))
    printed = capsys.readouterr().out
    # differences 0.10 and 0.12: drawn seeds give both of one, or one of each
    assert "| 0.155 | 0.360 / 0.310 | +0.110 (+0.100 to +0.120, 2 seeds) | +0.110 (" in printed
    assert "| 0.250 | 0.550 / 0.500 | +0.400 (+0.400 to +0.400, one seed) |" in printed
    assert "(n = 2) | 0.100 | 0.250 / 0.200 | – | – | 0.25 / 0.00 |" in printed
    assert "| 0.150 | – | – | – | – |" in printed


def test_nms_keeps_the_best_of_a_class_in_an_image() -> None:
    drawn_scores = importlib.import_module("drawn_scores")
    box, other = [10.0, 10.0, 20.0, 20.0], [10.0, 10.0, 20.0, 21.0]
    rows = [
        {"image_id": image, "category_id": label, "bbox": bbox, "score": score}
        for image, label, bbox, score in ((1, 1, box, 0.5), (1, 1, other, 0.9), (1, 2, box, 0.4), (2, 1, box, 0.3))
    ]
    assert sorted(row["score"] for row in drawn_scores.suppressed(rows, 0.7)) == [0.3, 0.4, 0.9]
    assert drawn_scores.suppressed([], 0.7) == []


def test_the_tables_of_the_ablation_in_the_documentation_are_the_recorded_ones(
    dape: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ROOT / "docs" / "results"
    dape.report(argparse.Namespace(results=folder / "dape_ablation.jsonl", grid=folder / "dape_ablation_grid.jsonl"))
    page = (ROOT / "docs" / "results.md").read_text()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(rows) >= 10
    for line in rows:
        assert line in page


# ----------------------------------------------------------------------------------------------- curves of single runs


@pytest.fixture(scope="module")
def curve(benchmarks: None) -> ModuleType:
    return importlib.import_module("curve")


def test_minutes_of_a_curve_do_not_include_the_break_before_a_resume(
    curve: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"event": "start", "step": 0, "time": 1000.0},
        {"event": "eval", "step": 10, "time": 1600.0, "AP": 0.25, "AP50": 0.5},
        {"event": "resume", "step": 10, "time": 9000.0},
        {"event": "train", "step": 15, "time": 9060.0},
        {"event": "eval", "step": 20, "time": 9300.0, "AP": None, "AP50": 0.75},
    ]
    log, picture = tmp_path / "log.jsonl", tmp_path / "curve.svg"
    log.write_text("\n".join(map(json.dumps, rows)))
    curve.main([f"a<b={log}", "--out", str(picture), "--over", "minutes"])
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| a<b | 10 | 10 | 0.250 | 0.500 |",
        "| a<b | 20 | 15 | 0.000 | 0.750 |",
    ]
    drawn = picture.read_text()
    assert "a&lt;b AP50</text>" in drawn
    assert ">15</text>" in drawn
    assert ">minutes</text>" in drawn
    curve.main([f"a={log}", "--out", str(picture)])
    assert ">20</text>" in picture.read_text()


def test_the_curve_in_the_documentation_agrees_with_the_logs(curve: ModuleType, tmp_path: Path) -> None:
    logs = {
        title: ROOT / "docs" / "results" / f"{name}.jsonl"
        for title, name in (
            ("DAPE lite0", "dape_lite0"),
            ("DELA-Conditional-DETR lite0", "dela_conditional_detr_lite0"),
            ("DELA-DETR lite0", "dela_detr_lite0"),
        )
    }
    picture = tmp_path / "curve.svg"
    curve.main([*(f"{title}={log}" for title, log in logs.items()), "--over", "minutes", "--out", str(picture)])
    assert picture.read_text() == (ROOT / "docs" / "images" / "blood_cells_curve.svg").read_text()


def test_panoptic_scoring_is_timed_on_one_result(benchmarks: None, tmp_path: Path) -> None:
    import panoptic_score
    from hotcoco.panoptic import PanopticEval

    panoptic_score.make_files(tmp_path, 30, height=48, width=64)
    files = tmp_path / "gt.json", tmp_path / "found.json"
    evaluation = PanopticEval(*files)
    evaluation.evaluate()
    score = detrkit.score_panoptic(*files)
    assert score.value == pytest.approx(evaluation.results()["All"]["pq"])
    assert 0.2 < score.metrics["PQ"] < 0.9


def test_masks_of_a_large_file_are_read_in_bounded_memory(benchmarks: None, tmp_path: Path) -> None:
    import mask_memory

    counts = {"images": 2000, "objects": 15_000, "vertices": 170_000}
    root = mask_memory.write_coco(tmp_path / "coco", **counts)
    with_masks, without = (mask_memory.measure(root, task) for task in ("inst", "det"))
    assert (with_masks["images"], with_masks["objects"]) == (without["images"], without["objects"]) == (2000, 15_000)
    assert without["packed_mib"] is None
    vertices = counts["vertices"] * 16 / 2**20
    assert vertices < with_masks["packed_mib"] < 1.2 * vertices, "16 bytes per vertex, and little else"
    growth = with_masks["peak_gib"] - with_masks["before_gib"]
    assert growth * 860_000 / counts["objects"] < 2.5 + 2, (
        "at COCO's size; small files also grow by what is imported late"
    )


# --------------------------------------------------------------------------------------------- the memory of masks


@pytest.fixture(scope="module")
def masks(benchmarks: None) -> ModuleType:
    import mask_training

    return mask_training


def test_the_peak_counts_tensors_while_they_live(masks: ModuleType) -> None:
    """Views and operations in place add nothing; what autograd keeps counts until backward."""
    mib = 2**18  # float32 values
    with masks.PeakMemory() as memory:
        first = torch.zeros(mib)
        first.add_(1).view(512, -1)
        second = first + 1
        del first
        third = second + 1
        del second, third
    assert (memory.peak, memory.now) == (2 * 2**20, 0)
    weight = torch.ones(mib, requires_grad=True)
    with masks.PeakMemory() as memory:
        loss = (weight * 2).exp().sum()  # exp keeps its result, the product is free
        kept = memory.now
        loss.backward()
    assert 2**20 <= kept < 1.1 * 2**20


def test_masks_that_are_multiplied_out_give_the_same_loss(masks: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "SETTINGS", {**masks.SETTINGS, "decoder_layers": 2, "hidden_dim": 64, "num_heads": 4})
    monkeypatch.setattr("detrkit.losses.mask_terms._ROWS_AT_ONCE", 32)
    arguments = argparse.Namespace(size=64, objects=3, device="cpu")
    # 3 objects make 200 denoising queries with 100 positives; few enough masks that the random points are the same
    monkeypatch.setattr(masks, "AT_ONCE", {"dense": 10**6, "lazy": 10**6})
    dense, lazy = (masks.measure(variant, 20, arguments) for variant in ("dense", "lazy"))
    assert dense["loss"] == pytest.approx(lazy["loss"], rel=1e-4)
    assert 0 < lazy["peak_MiB"] < dense["peak_MiB"] * 1.5


def test_the_memory_of_an_evaluation_is_measured(
    benchmarks: None, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import mask_evaluation

    monkeypatch.setattr(mask_evaluation, "EVERY", 2)
    root = mask_evaluation.write_data(tmp_path / "data", 3)
    for task in ("inst", "pan"):
        row = mask_evaluation.measure(task, root, 30)
        assert list(row["resident_MiB"]) == [2, 3]
        assert 100 < row["scored_MiB"] < 10_000
        assert row["score"] is not None
    assert "pan: 3 images" in capfd.readouterr().out
