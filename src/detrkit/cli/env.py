"""``detrkit env``: versions and devices, for bug reports and for checking what a run will use."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Annotated

import typer

from detrkit import __version__

__all__ = ["env_command"]

_PACKAGES = ("torch", "torchvision", "timm", "accelerate", "numpy", "scipy", "Pillow", "pydantic", "hotcoco")
_OPTIONAL = ("tensorboard", "wandb", "supervision", "onnxruntime", "openvino")


def env_command(as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False) -> None:
    """Show versions, devices and folders."""
    from detrkit.cli.console import print_json, stdout

    values = environment()
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
    """Versions, devices and folders of this installation."""
    import torch

    from detrkit.devices import resolve_device
    from detrkit.ops.ms_deform_attn import active_backend
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

    devices = [f"cpu ({torch.get_num_threads()} threads of {os.cpu_count()} cores)"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append(f"cuda:{index} {properties.name} ({properties.total_memory / 2**30:.0f} GiB)")
    if torch.backends.mps.is_available():
        devices.append("mps")
    return {
        "detrkit": __version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
        "packages": versions(_PACKAGES),
        "optional packages": versions(_OPTIONAL),
        "devices": devices,
        "device auto": str(resolve_device("auto")),
        "cuda build": torch.version.cuda or "none",
        "operators": {"ms_deform_attn": active_backend(resolve_device("auto").type)},
        "trained weights": embedded_names(),
        "cache folder": str(cache_dir()),
    }
