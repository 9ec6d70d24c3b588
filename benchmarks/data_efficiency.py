"""AP against the number of training images, for the data-efficient family and its baselines, the walk from DE-DETR to
DETR (paper, Table 1) and the ablation of DAPE (tables: dape_ablation.py). Every cell is one `detrkit.train` run with
the same backbone, iterations, batch size, optimizer and images.

python benchmarks/data_efficiency.py run --data blood_cells=DIR --models detr_lite0 dela_detr_lite0 --percent 25 100
python benchmarks/data_efficiency.py run --data blood_cells=DIR --models walk --percent 100 --parallel 2
python benchmarks/data_efficiency.py run --data blood_cells=DIR --models ablation --percent 100 --seeds 0 1 2
python benchmarks/data_efficiency.py report docs/results/data_efficiency.jsonl --images docs/images

`run` continues after an interruption at any point: finished cells are kept, an interrupted one is resumed. DIR is a
COCO folder with lists of training images in `splits/train_<percent>pct_seed<seed>.txt`; without them, the lists next to
this file are used. `report` prints the tables and draws the plots.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# The steps of the paper's walk that have an option here, each added to the previous one.
_ONE_LEVEL = {"num_feature_levels": 1}
_NO_REFINEMENT = {**_ONE_LEVEL, "refine_boxes": False}
_NO_ROI = {**_NO_REFINEMENT, "sparse_sampling": False}
# Options of DAPE; without all of them it is Relation-DETR.
_PLAIN = {"sampling": "standard"}
_HARMONIZED = {"sampling": "harmonized"}
_CORRECTED = {"sampling": "corrected"}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "walk1_single_scale": ("de_detr_lite0", _ONE_LEVEL),
    "walk2_no_refinement": ("de_detr_lite0", _NO_REFINEMENT),
    "walk3_no_roi": ("de_detr_lite0", _NO_ROI),
    "walk4_no_initial_point": ("de_detr_lite0", {**_NO_ROI, "reference_dim": 0}),
    "dape_no_relation": ("dape_lite0", {**_PLAIN, "relation": "none"}),
    "dape_rank16": ("dape_lite0", {**_PLAIN, "relation_rank": 16}),
    "dape_rank64": ("dape_lite0", {**_PLAIN, "relation_rank": 64}),
    "dape_rank128": ("dape_lite0", {**_PLAIN, "relation_rank": 128}),
    "dape_full_harmonized": ("dape_lite0", {**_HARMONIZED, "relation": "full"}),
    "dape_harmonized": ("dape_lite0", _HARMONIZED),
    "dape_content_static_sampled": ("dape_lite0", {**_HARMONIZED, "query_content": "static+sampled"}),
    "dape_content_sampled": ("dape_lite0", {**_HARMONIZED, "query_content": "sampled"}),
    "dape_corrected": ("dape_lite0", _CORRECTED),
    "dape_corrected_encoder": ("dape_lite0", {**_CORRECTED, "sampling_in": "encoder"}),
    "dape_corrected_decoder": ("dape_lite0", {**_CORRECTED, "sampling_in": "decoder"}),
    "dape_corrected_content": ("dape_lite0", {**_CORRECTED, "query_content": "static+sampled"}),
    "dape_value_position": ("dape_lite0", {**_PLAIN, "position_in_value": True}),
}
# Rows of a table in order; `--models NAME` trains all of them. Each row changes one thing.
GROUPS = {
    "walk": ("de_detr_lite0", *(name for name in VARIANTS if name.startswith("walk")), "detr_lite0"),
    "ablation": (
        "dape_no_relation",
        "relation_detr_lite0",
        "dape_rank16",
        "dape_rank64",
        "dape_rank128",
        "dape_full_harmonized",
        "dape_harmonized",
        "dape_content_static_sampled",
        "dape_content_sampled",
        "dape_corrected",
        "dape_corrected_encoder",
        "dape_corrected_decoder",
        "dape_corrected_content",
        "dape_value_position",
    ),
}
TITLES = {
    "detr_lite0": "DETR",
    "de_detr_lite0": "DE-DETR",
    "dela_detr_lite0": "DELA-DETR",
    "conditional_detr_lite0": "CondDETR",
    "de_conditional_detr_lite0": "DE-CondDETR",
    "dela_conditional_detr_lite0": "DELA-CondDETR",
    "deformable_detr_lite0": "Deformable DETR",
    "dino_lite0": "DINO",
    "relation_detr_lite0": "Relation-DETR",
    "salience_detr_lite0": "Salience-DETR",
    "dape_lite0": "DAPE",
    "dape_harmonized": "low-rank relation, harmonised sampling",
    "walk1_single_scale": "− multi-scale",
    "walk2_no_refinement": "− box refinement",
    "walk3_no_roi": "− RoIAlign",
    "walk4_no_initial_point": "− initial points",
    "dape_no_relation": "no relation",
    "dape_rank16": "low-rank relation, 16",
    "dape_rank64": "low-rank relation, 64",
    "dape_rank128": "low-rank relation, 128",
    "dape_full_harmonized": "full relation, harmonised sampling",
    "dape_content_static_sampled": "harmonised sampling, content learned and sampled",
    "dape_content_sampled": "harmonised sampling, content sampled",
    "dape_corrected": "low-rank relation, corrected positions",
    "dape_corrected_encoder": "the same, in the encoder alone",
    "dape_corrected_decoder": "the same, in the decoder alone",
    "dape_corrected_content": "the same in both, content learned and sampled",
    "dape_value_position": "low-rank relation, position of rank 16 in values",
}
# The model that a model adds one thing to: sampling of regions (DE) or augmentation of labels (DELA).
ADDS_TO = {
    "de_detr_lite0": "detr_lite0",
    "dela_detr_lite0": "de_detr_lite0",
    "de_conditional_detr_lite0": "conditional_detr_lite0",
    "dela_conditional_detr_lite0": "de_conditional_detr_lite0",
}
# Additional settings of a data set: nuclei are many and small.
DATA_SETTINGS: dict[str, dict[str, Any]] = {"nuclei": {"num_queries": 300}}
SETTING = ("data", "iterations", "size")  # of runs that are compared
COLOURS = ("#8a8a8a", "#1b6ca8", "#d1495b", "#c9b458", "#2e8b57", "#8e5ea2", "#e08e0b", "#444444", "#00a0a0", "#a0522d")


@dataclass(frozen=True)
class Cell:
    """One run of the grid on ``percent`` of the training images, selected by the split list of ``seed``."""

    data: str
    model: str
    percent: int
    seed: int
    iterations: int
    size: int

    @property
    def name(self) -> str:
        """Folder of the run."""
        return f"{self.data}/{self.model}_{self.percent}pct_seed{self.seed}_{self.iterations}x{self.size}"


def recipe(cell: Cell, root: Path, annotations: Path, images: int) -> dict[str, Any]:
    """The recipe of a cell; cells of a data set differ only in model, images and seed."""
    name, switches = VARIANTS.get(cell.model, (cell.model, {}))
    steps_per_epoch = -(-images // 4)
    return {
        "model": {"name": name, **DATA_SETTINGS.get(cell.data, {}), **switches},
        "data": {
            "root": str(root),
            "format": "coco",
            "train": {"annotations": str(annotations.resolve()), "images": str((root / "images" / "train").resolve())},
            "crop": False,
            "vertical_flip": 0.5,
            "short_sides": [cell.size - 32, cell.size, cell.size + 32],
            "eval_short_side": cell.size,
        },
        "training": {
            "iterations": cell.iterations,
            "batch_size": 4,
            "workers": 0,
            "seed": cell.seed,
            "ema": 0.998,
            "evaluate_every": max(1, round(cell.iterations / 4 / steps_per_epoch)),  # at about each quarter
            "checkpoint_every": 50,
        },
        "optimizer": {"lr": 4e-4, "lr_backbone": 8e-5},
        "schedule": {"kind": "cosine", "warmup": 100},
    }


def subset(root: Path, cell: Cell, out: Path) -> tuple[Path, int]:
    """Write the COCO file of a cell's training images; return it and their number."""
    coco = json.loads((root / "annotations" / "instances_train.json").read_text())
    if cell.percent < 100:
        lists = root / "splits" if (root / "splits").is_dir() else Path(__file__).parent / "splits" / cell.data
        wanted = set((lists / f"train_{cell.percent}pct_seed{cell.seed}.txt").read_text().split())
        coco["images"] = [image for image in coco["images"] if image["file_name"] in wanted]
        image_ids = {image["id"] for image in coco["images"]}
        coco["annotations"] = [box for box in coco["annotations"] if box["image_id"] in image_ids]
    path = out / cell.data / f"train_{cell.percent}pct_seed{cell.seed}_{os.getpid()}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(coco))
    return path.replace(out / cell.data / f"train_{cell.percent}pct_seed{cell.seed}.json"), len(coco["images"])


def train_cell(cell: Cell, root: Path, out: Path, threads: int) -> dict[str, Any]:
    """Train or resume a cell; the metrics are those of the last weights, not of the best evaluation."""
    import torch
    from drawn_scores import drawn_scores

    import detrkit

    torch.set_num_threads(threads)
    annotations, images = subset(root, cell, out)
    folder = out / cell.name
    detrkit.train(recipe(cell, root, annotations, images), resume=True, training={"output": str(folder)})
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    evaluations = [row for row in rows if row["event"] == "eval"]
    last = evaluations[-1]
    return {
        **asdict(cell),
        "images": images,
        "metrics": {name: last[name] for name in ("AP", "AP50", "AP75")},
        "per_class": last["per_class"],
        "curve": [[row["step"], row["AP"]] for row in evaluations],
        "scores": drawn_scores(folder),
        "memory_gb": max(row["memory_gb"] for row in rows if row["event"] == "train"),
        "device": device_name(),
        "torch": torch.__version__,
        "detrkit": detrkit.__version__,
    }


def device_name() -> str:
    """Name of the device."""
    import torch

    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = {line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")}
    except OSError:
        names = {platform.processor()}
    return f"{', '.join(names)}, {os.cpu_count()} cores"


def run(args: argparse.Namespace) -> None:
    """Run every cell of the grid without a result, ``--parallel`` of them at a time, each in its own process."""
    roots = dict(text.split("=", 1) for text in args.data)
    models = dict.fromkeys(model for name in args.models for model in GROUPS.get(name, (name,)))
    cells = [
        Cell(data, model, percent, seed, args.iterations, args.size)
        for data in roots
        for seed in args.seeds
        for model in models
        for percent in args.percent
    ]
    results = args.out / "results.jsonl"
    done = {Cell(**{key: row[key] for key in Cell.__dataclass_fields__}) for row in read(results)}
    stop = time.monotonic() + 60 * args.minutes if args.minutes else None

    def run_cell(cell: Cell) -> bool:
        if stop is not None and time.monotonic() > stop:
            return True  # not started: left for the next call
        log = args.out / f"{cell.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, __file__, "cell", json.dumps(asdict(cell)), roots[cell.data], str(args.out)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
        left = None if stop is None else max(1.0, stop - time.monotonic())
        with log.open("a") as file:
            try:
                code = subprocess.run(command, stdout=file, stderr=file, env=environment, timeout=left).returncode
            except subprocess.TimeoutExpired:
                print(f"{cell.name}: time is up, the next call continues", flush=True)
                return True
        print(f"{cell.name}: {'done' if code == 0 else f'failed ({code}), see {log}'}", flush=True)
        return code == 0

    todo = [cell for cell in cells if cell not in done]
    print(f"{len(done)} cells done, {len(todo)} to do -> {results}", flush=True)
    with ThreadPoolExecutor(args.parallel) as pool:
        failed = [cell.name for cell, good in zip(todo, pool.map(run_cell, todo), strict=True) if not good]
    if failed:
        sys.exit(f"{len(failed)} cells did not finish, {failed[0]} first")


def cell(args: argparse.Namespace) -> None:
    """Train one cell in this process and append its result."""
    wanted = Cell(**json.loads(args.cell))
    row = train_cell(wanted, Path(args.root), Path(args.out), int(os.environ.get("OMP_NUM_THREADS", "1")))
    with (Path(args.out) / "results.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """Rows of a results file, none if it does not exist; incomplete lines are left out."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def summarise(rows: Iterable[dict[str, Any]]) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """Rows of one setting grouped by model and number of images; each group has one row per seed."""
    grouped: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        grouped.setdefault((row["model"], row["images"]), []).append(row)
    return grouped


def spread(rows: list[dict[str, Any]], metric: str = "AP") -> tuple[float, float]:
    """Mean and sample standard deviation over seeds (0 for one seed); NaN if the metric is undefined."""
    values = [math.nan if row["metrics"][metric] is None else row["metrics"][metric] for row in rows]
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def at_quarter(row: dict[str, Any]) -> tuple[int, float]:
    """Step and AP of the evaluation nearest to a quarter of the iterations, to compare how fast models learn."""
    step, ap = min(row["curve"], key=lambda point: abs(point[0] - row["iterations"] / 4))
    return step, math.nan if ap is None else ap


def report(args: argparse.Namespace) -> None:
    """Print the tables of a results file as Markdown and draw its plots, for every data set, length and image size."""
    rows = read(args.results)
    args.images.mkdir(parents=True, exist_ok=True)
    for setting in sorted({tuple(row[name] for name in SETTING) for row in rows}):
        report_setting([row for row in rows if tuple(row[name] for name in SETTING) == setting], args.images)


def report_setting(rows: list[dict[str, Any]], pictures: Path) -> None:
    """Print the tables of runs of one setting, and draw their plots."""
    data, iterations, size = (rows[0][name] for name in SETTING)
    grouped = summarise(rows)
    numbers = sorted({images for _, images in grouped})
    family = [model for model in TITLES if model not in VARIANTS and any(name == model for name, _ in grouped)]
    picture = f"data_efficiency_{data}_{iterations}x{size}"
    if family:
        print(f"\n**{data}**, {iterations} steps at {size} px: AP / AP50 (mean ± standard deviation over seeds)\n")
        print("| model |" + "".join(f" {number} images |" for number in numbers) + "\n|---|" + "---|" * len(numbers))
        for model in family:
            cells = [grouped.get((model, number)) for number in numbers]
            print(f"| {TITLES[model]} |" + "".join(f" {format_cell(found)} |" for found in cells))
        if len(numbers) > 1:
            (pictures / f"{picture}.svg").write_text(curves(family, grouped))
    differences(grouped)
    largest = {model: found for (model, number), found in grouped.items() if number == numbers[-1]}
    if any(model.startswith("walk") for model in largest):
        print(f"\nFrom DE-DETR to DETR, {numbers[-1]} images:\n\n| change, on top of those above | AP / AP50 |")
        print("|---|---|")
        for model in GROUPS["walk"]:
            if model in largest:
                print(f"| {TITLES[model]} | {format_cell(largest[model])} |")
        (pictures / f"{picture}_walk.svg").write_text(walk(largest))


def differences(grouped: dict[tuple[str, int], list[dict[str, Any]]]) -> None:
    """Print what each thing that a model adds is worth, in pairs of runs on the same images with the same seed."""
    from drawn_scores import difference

    lines = []
    for model, base in ADDS_TO.items():
        for number in sorted(number for name, number in grouped if name == model):
            pair = grouped[model, number], grouped.get((base, number), [])
            texts = [difference(*pair, which) for which in ("plain", "nms")]
            if texts[0] != "–":
                lines.append(f"| {TITLES[model]}, {TITLES[base]} | {number} | {' | '.join(texts)} |")
    if lines:
        print("\n| compared | images | difference in AP | with NMS for both |\n|---|---|---|---|")
        print("\n".join(lines))


def format_cell(found: list[dict[str, Any]] | None) -> str:
    """AP / AP50 of a group of seeds as a table cell."""
    if not found:
        return "–"
    parts = []
    for metric in ("AP", "AP50"):
        mean, deviation = spread(found, metric)
        parts.append("–" if math.isnan(mean) else f"{mean:.3f}" + (f" ± {deviation:.3f}" if len(found) > 1 else ""))
    return " / ".join(parts) + (f" (n = {len(found)})" if len(found) > 1 else "")


def svg(width: int, height: int, parts: list[str]) -> str:
    """An SVG picture with a white background."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
    return "\n".join([head + 'font-size="13">', f'<rect width="{width}" height="{height}" fill="white"/>', *parts]) + (
        "\n</svg>\n"
    )


def curves(family: Iterable[str], grouped: dict[tuple[str, int], list[dict[str, Any]]]) -> str:
    """AP against training images, one line per model, error bars of one standard deviation."""
    width, height, left, right, top, bottom = 720, 400, 52, 150, 20, 44
    points = {
        model: sorted((number, *spread(found)) for (name, number), found in grouped.items() if name == model)
        for model in family
    }
    points = {model: [point for point in line if not math.isnan(point[1])] for model, line in points.items()}
    points = {model: line for model, line in points.items() if line}
    biggest = max(size for line in points.values() for size, _, _ in line)
    highest = max(0.1, -(-max(mean + dev for line in points.values() for _, mean, dev in line) // 0.1) * 0.1)

    def at(size: float, ap: float) -> tuple[float, float]:
        return (
            left + (width - left - right) * size / biggest,
            height - bottom - (height - bottom - top) * ap / highest,
        )

    parts = []
    for tenth in range(round(highest * 10) + 1):
        y = at(0, tenth / 10)[1]
        parts.append(f'<path d="M{left},{y:.1f}H{width - right}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tenth / 10:.1f}</text>')
    for size in sorted({size for line in points.values() for size, _, _ in line}):
        x = at(size, 0)[0]
        parts.append(f'<text x="{x:.1f}" y="{height - bottom + 18}" text-anchor="middle">{size}</text>')
    parts.append(f'<text x="{(left + width - right) / 2}" y="{height - 8}" text-anchor="middle">training images</text>')
    parts.append(f'<text x="14" y="{height / 2}" transform="rotate(-90 14 {height / 2})">AP</text>')
    for index, (model, line) in enumerate(points.items()):
        colour = COLOURS[index % len(COLOURS)]
        path = " ".join("{:.1f},{:.1f}".format(*at(size, mean)) for size, mean, _ in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for size, mean, deviation in line:
            x, y = at(size, mean)
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')
            if deviation:
                low, high = at(size, mean - deviation)[1], at(size, mean + deviation)[1]
                parts.append(f'<path d="M{x:.1f},{low:.1f}V{high:.1f}" stroke="{colour}"/>')
        y = top + 10 + 20 * index
        parts.append(f'<path d="M{width - right + 12},{y}h22" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{width - right + 40}" y="{y + 4}">{TITLES[model]}</text>')
    return svg(width, height, parts)


def walk(found: dict[str, list[dict[str, Any]]]) -> str:
    """AP as bars, from DE-DETR to DETR with one change per bar."""
    order = [model for model in GROUPS["walk"] if model in found]
    order = [model for model in order if not math.isnan(spread(found[model])[0])]
    width, row, left = 720, 34, 150
    parts = []
    values = {model: spread(found[model]) for model in order}
    highest = max(mean for mean, _ in values.values()) or 1.0
    for index, model in enumerate(order):
        mean, deviation = values[model]
        length, y = (width - left - 110) * mean / highest, 14 + row * index
        label = f"{mean:.3f}" + (f" ± {deviation:.3f}" if deviation else "")
        parts.append(f'<text x="{left - 10}" y="{y + 16}" text-anchor="end">{TITLES[model]}</text>')
        parts.append(f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{row - 10}" fill="#1b6ca8"/>')
        parts.append(f'<text x="{left + length + 8:.1f}" y="{y + 16}">{label}</text>')
    return svg(width, 24 + row * len(order), parts)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    runner = commands.add_parser("run", help="train all cells without a result")
    runner.add_argument("--data", nargs="+", required=True, metavar="NAME=DIR")
    runner.add_argument("--models", nargs="+", required=True, choices=[*TITLES, *GROUPS], metavar="MODEL")
    runner.add_argument("--percent", nargs="+", type=int, default=[25, 100])
    runner.add_argument("--seeds", nargs="+", type=int, default=[0])
    runner.add_argument("--iterations", type=int, default=1500)
    runner.add_argument("--size", type=int, default=320, help="short side in pixels")
    runner.add_argument("--parallel", type=int, default=1, help="number of cells at a time")
    runner.add_argument("--threads", type=int, default=2, help="CPU threads per cell")
    runner.add_argument("--minutes", type=float, help="time limit; the next call continues")
    runner.add_argument("--out", type=Path, default=Path("runs/data_efficiency"))
    runner.set_defaults(act=run)
    single = commands.add_parser("cell", help="used by run")
    for name in ("cell", "root", "out"):
        single.add_argument(name)
    single.set_defaults(act=cell)
    reporter = commands.add_parser("report", help="tables and plots")
    reporter.add_argument("results", type=Path)
    reporter.add_argument("--images", type=Path, default=Path("docs/images"))
    reporter.set_defaults(act=report)
    args = parser.parse_args()
    args.act(args)


if __name__ == "__main__":
    main()
