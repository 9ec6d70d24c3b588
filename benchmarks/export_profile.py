"""Where exported models spend their time: CPU time beside eager torch, and the time of each kind of operator.

python benchmarks/export_profile.py dape_lite0 model.onnx model.xml --json docs/results/export_profile_cpu.json

One thread and CPU time (not wall time), in turns, so that other work on the machine counts little. Files of one size,
exported from the checkpoint that is named first. ``detrkit bench`` has the wall times.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detrkit.runtime.engines import open_engine
from detrkit.weights import open_checkpoint
from detrkit.weights.find import find_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    engines = {file: open_engine(file, threads=1) for file in options.files}
    (size,) = {engine.info.size for engine in engines.values()}
    if size is None:
        raise SystemExit("give files of a fixed size")
    images = np.random.default_rng(0).standard_normal((1, 3, *size), dtype=np.float32)
    mask = np.zeros((1, *size), dtype=bool)
    torch.set_num_threads(1)
    model = open_checkpoint(find_checkpoint(options.checkpoint))
    tensors = torch.from_numpy(images), torch.from_numpy(mask)
    runs: dict[str, Callable[[], object]] = {"eager torch": lambda: model(*tensors)}
    runs |= {file.name: lambda engine=engine: engine.run(images, mask) for file, engine in engines.items()}
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(options.rounds + 1):
        for name, run in runs.items():
            start = time.process_time()
            with torch.no_grad():
                run()
            if number:
                spent[name].append(1e3 * (time.process_time() - start))
    eager = statistics.median(spent["eager torch"])
    record: dict[str, Any] = {"checkpoint": options.checkpoint, "canvas": list(size), "threads": 1, "rows": []}
    for name, values in spent.items():
        middle = statistics.median(values)
        row: dict[str, Any] = {"name": name, "cpu_ms": round(middle, 1), "times_eager": round(eager / middle, 2)}
        record["rows"].append(row)
        print(f"{name:30s} {middle:7.1f} ms of CPU, {eager / middle:.2f} times eager torch")
    for row, file in zip(record["rows"][1:], options.files, strict=True):
        kinds = (_onnx_kinds if file.suffix == ".onnx" else _openvino_kinds)(file, images, mask, options.rounds)
        row["operators_ms"] = {kind: round(value, 1) for kind, value in kinds.most_common(12)}
        print(file.name, row["operators_ms"])
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _onnx_kinds(file: Path, images: Any, mask: Any, rounds: int) -> Counter[str]:
    """Milliseconds of each kind of operator: the least of every node, summed."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        for _ in range(rounds):
            session.run(None, {"images": images, "padding_mask": mask})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    least: dict[tuple[str, str], float] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            key = event["name"], event["args"]["op_name"]
            least[key] = min(least.get(key, np.inf), event["dur"] / 1e3)
    return _summed(least)


def _openvino_kinds(file: Path, images: Any, mask: Any, rounds: int) -> Counter[str]:
    import openvino

    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERF_COUNT": True,
    }
    request = openvino.Core().compile_model(str(file), "CPU", options).create_infer_request()
    least: dict[tuple[str, str], float] = {}
    for _ in range(rounds):
        request.infer({"images": images, "padding_mask": mask})
        for row in request.get_profiling_info():
            key = row.node_name, row.node_type
            least[key] = min(least.get(key, np.inf), row.real_time.total_seconds() * 1e3)
    return _summed(least)


def _summed(least: dict[tuple[str, str], float]) -> Counter[str]:
    found: Counter[str] = Counter()
    for (_, kind), value in least.items():
        found[kind] += value
    return found


if __name__ == "__main__":
    main()
