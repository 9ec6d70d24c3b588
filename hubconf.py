"""Entry points of ``torch.hub``: ``torch.hub.load("OWNER/detrkit", "detr_r50", pretrained=True)``, one for each model.

``predictor(path_or_name)`` and ``from_pretrained("OWNER/NAME")`` are :class:`detrkit.Predictor` and
:func:`detrkit.from_pretrained`.
"""

import sys
from functools import partial
from pathlib import Path

dependencies = [
    "accelerate",
    "numpy",
    "PIL",
    "pydantic",
    "safetensors",
    "scipy",
    "timm",
    "torch",
    "torchvision",
    "yaml",
]

_SOURCE = str(Path(__file__).resolve().parent / "src")
if _SOURCE not in sys.path:  # torch.hub puts this folder there, not src/
    sys.path.insert(0, _SOURCE)

import detrkit  # noqa: E402
from detrkit.weights import open_checkpoint  # noqa: E402
from detrkit.weights.find import find_checkpoint  # noqa: E402

predictor = detrkit.Predictor
from_pretrained = detrkit.from_pretrained


def _model(name, *, pretrained=False, **overrides):
    """A model by name.

    pretrained: with the weights that its name means (of the package, or published; those are fetched the first time).
    overrides: options for ``detrkit.create_model``; only without ``pretrained``.
    """
    if not pretrained:
        return detrkit.create_model(name, **overrides)
    if overrides:
        raise TypeError(f"pretrained weights fix the options of a model; leave out {', '.join(sorted(overrides))}")
    return open_checkpoint(find_checkpoint(name, fetch_names=True))


globals().update({name: partial(_model, name) for name in detrkit.list_models()})
