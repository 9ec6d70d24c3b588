"""AP of a model and of its exported files in fp32, fp16 and int8 on the validation images of a data set.

python benchmarks/export_accuracy.py --data data/blood_cells --size 320 448 --json docs/results/export_accuracy_cpu.json

Files are made of one trace. int8 is calibrated on training images, which are not those of the AP.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx

import detrkit
from detrkit.data.formats import find_source
from detrkit.data.images import read_image
from detrkit.data.open import load_source
from detrkit.export.export import export_model
from detrkit.export.onnx_file import with_half_weights, write_onnx
from detrkit.export.openvino_files import openvino_model, quantized, write_openvino
from detrkit.runtime import LightPredictor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="dape_lite0")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--size", type=int, nargs=2, default=(320, 448), metavar=("H", "W"))
    parser.add_argument("--calibration", type=int, default=100, help="training images")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        record = measure(options, Path(folder))
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Write all files, then evaluate them one after the other."""
    path = folder / "onnx_fp32.onnx"
    export_model(options.model, path, format="onnx", batch=1, size=tuple(options.size), proof=False)
    light = LightPredictor(path)
    info, proto = light.info, onnx.load(path)
    files: dict[str, Any] = {"checkpoint": options.model, "onnx fp32": path}
    files["onnx fp16"] = folder / "onnx_fp16.onnx"
    write_onnx(with_half_weights(proto), files["onnx fp16"], replace(info, precision="fp16"))
    for precision in ("fp32", "fp16", "int8"):
        vino = openvino_model(proto)
        if precision == "int8":
            train = load_source(find_source(options.data, "train"))
            step = max(1, len(train.records) // options.calibration)
            paths = [record.path for record in train.records[::step]][: options.calibration]
            vino = quantized(vino, [light.prepare([read_image(one)]) for one in paths])
        name = f"openvino {precision}"
        files[name] = folder / f"{name.replace(' ', '_')}.xml"
        write_openvino(vino, files[name], replace(info, precision=precision))
    rows: list[dict[str, Any]] = []
    for name, file in files.items():
        start = time.perf_counter()
        ap = detrkit.evaluate(file, options.data)["metrics"]["AP"]
        loss = None if not rows else rows[0]["AP"] - ap
        rows.append({"file": name, "AP": ap, "loss": loss, "megabytes": _megabytes(file)})
        print(f"{name:14s} AP {ap:.4f}  loss {loss or 0:+.4f}  {time.perf_counter() - start:.0f} s", flush=True)
    return {
        "model": options.model,
        "data": options.data.name,
        "canvas": list(options.size),
        "processor": platform.processor() or platform.machine(),
        "rows": rows,
    }


def _megabytes(file: Any) -> float | None:
    parts = [part for part in (Path(file), Path(file).with_suffix(".bin")) if part.is_file()]
    return round(sum(part.stat().st_size for part in parts) / 1e6, 1) if parts else None


if __name__ == "__main__":
    main()
