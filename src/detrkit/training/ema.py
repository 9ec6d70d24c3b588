"""Exponential moving average of the weights."""

from __future__ import annotations

import copy
from typing import TypedDict

import torch
from torch import Tensor, nn

__all__ = ["EMA", "EMAState"]


class EMAState(TypedDict):
    """:class:`EMA` as it is stored in a checkpoint."""

    model: dict[str, Tensor]
    updates: int


class EMA:
    """Moving average of a model's weights: average ← d · average + (1 - d) · weights after each step.

    d = min(decay, (1 + n) / (10 + n)) in update n, so that the initial weights soon lose their influence. Integer
    tensors are copied.

    Args:
        model: the model to average, not wrapped for distributed training or mixed precision.
        decay: upper limit of d, e.g. 0.9997.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.module = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Update the average after an optimizer step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        source = model.state_dict()
        for name, average in self.module.state_dict().items():
            value = source[name].detach().to(average)
            if average.is_floating_point():
                average.lerp_(value, 1 - decay)  # a frozen tensor equals its average and stays exactly the same
            else:
                average.copy_(value)

    def state_dict(self) -> EMAState:
        """Averaged weights and number of updates."""
        return {"model": self.module.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: EMAState) -> None:
        """Continue from :meth:`state_dict`."""
        self.module.load_state_dict(state["model"])
        self.updates = state["updates"]
