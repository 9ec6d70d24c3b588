"""``detrkit env``: versions and GPUs, for bug reports; with ``--torch`` what a run will use."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Annotated

import typer

from detrkit import __version__
from detrkit.backends import BACKEND_VARIABLE, OPERATORS, backend_on, forced_backend, impossible_on

__all__ = ["env_command"]

_PACKAGES = ("torch", "torchvision", "timm", "accelerate", "numpy", "scipy", "Pillow", "pydantic", "hotcoco")
_OPTIONAL = ("tensorboard", "wandb", "supervision", "onnxruntime", "openvino")


def env_command(
    with_torch: Annotated[
        bool, typer.Option("--torch", help="Import torch and show what it sees: devices, threads, operators.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Show versions, GPUs and folders."""
    from detrkit.cli.console import print_json, stdout

    values = environment()
    if with_torch:
        values |= seen_by_torch()
    if as_json:
        print_json(values)
        return
    from rich.table import Table

    table = Table("name", "value", show_header=False, box=None, pad_edge=False)
    for name, value in values.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {item}" for key, item in value.items())
        elif isinstance(value, list):
            value = ", ".join(map(str, value)) or "none"
        table.add_row(f"[bold]{name}[/bold]", str(value))
    stdout().print(table)


def environment() -> dict[str, object]:
    """Versions, GPUs and folders of this installation, found without importing torch."""
    from importlib import metadata

    from detrkit.weights.find import embedded_names
    from detrkit.weights.published.download import cache_dir

    def versions(names: tuple[str, ...]) -> dict[str, str]:
        found = {}
        for name in names:
            try:
                found[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
        return found

    gpus, cuda = _gpus(), _cuda_build()
    return {
        "detrkit": __version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
        "packages": versions(_PACKAGES),
        "optional packages": versions(_OPTIONAL),
        "cores": os.cpu_count(),
        "gpus": gpus,
        "cuda build": cuda,
        "kernels": _kernels("cuda" if gpus and cuda != "none" else "cpu"),
        "trained weights": embedded_names(),
        "cache folder": str(cache_dir()),
    }


def seen_by_torch() -> dict[str, object]:
    """Devices as torch sees them, and the operators that are used on them."""
    import torch

    from detrkit.devices import resolve_device

    devices = [f"cpu ({torch.get_num_threads()} threads of {os.cpu_count()} cores)"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append(f"cuda:{index} {properties.name} ({properties.total_memory / 2**30:.0f} GiB)")
    if torch.backends.mps.is_available():
        devices.append("mps")
    auto = resolve_device("auto")
    return {
        "devices": devices,
        "device auto": str(auto),
        "kernels": _kernels(auto.type),
    }


def _kernels(device_type: str) -> dict[str, str]:
    """The implementation of each operator that a device uses, and what forces it."""
    found = {}
    for operator, written in OPERATORS.items():
        name = backend_on(device_type, written)
        reason = impossible_on(device_type, name)
        found[operator] = name if reason is None else f"{name} is impossible: {reason}"
    return found | ({} if forced_backend() is None else {"forced by": BACKEND_VARIABLE})


def _gpus() -> list[str]:
    """Name and memory of the NVIDIA GPUs, as the driver's own tool lists them."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in found.splitlines() if line.strip()]


def _cuda_build() -> str:
    """The CUDA version that the installed torch was built for, from its ``version.py``."""
    found = importlib.util.find_spec("torch")
    folders = (found and found.submodule_search_locations) or []
    for folder in folders:
        try:
            text = Path(folder, "version.py").read_text(encoding="utf-8")
        except OSError:
            continue
        match = re.search(r"^cuda\b.*=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
        if match:
            return match[1]
    return "none"
