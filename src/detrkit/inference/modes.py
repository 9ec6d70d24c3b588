"""Prediction with a model that somebody else uses too: evaluation mode for as long as it runs, from any thread."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import nn

from detrkit.models import Detector

__all__ = ["evaluating", "in_single_precision"]


@dataclass
class _Use:
    """How many threads predict with a model, and the modules that were in training mode when the first one began."""

    threads: int = 0
    training: list[nn.Module] = field(default_factory=list)


_lock = threading.RLock()  # not Lock: a generator that is collected in here may leave its block
_uses: WeakKeyDictionary[nn.Module, _Use] = WeakKeyDictionary()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run a block with the model in evaluation mode; when the last thread leaves, every module is as it was."""
    with _lock:
        use = _uses.setdefault(model, _Use())
        if use.threads == 0:
            use.training = [module for module in model.modules() if module.training]
            for module in use.training:
                module.training = False
        use.threads += 1
    try:
        yield
    finally:
        with _lock:
            use.threads -= 1
            if use.threads == 0:
                for module in use.training:
                    module.training = True
                use.training = []


def in_single_precision(model: Detector) -> Detector:
    """The model, or a float32 copy of one with weights in another precision, which mixes badly with float32 images."""
    kinds = {value.dtype for value in model.state_dict().values() if value.is_floating_point()}
    return model if kinds <= {torch.float32} else copy.deepcopy(model).float()
