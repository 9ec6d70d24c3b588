"""Steps that are measured before a run and leave no trace in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from detrkit.training.rng import preserved_rng

__all__ = ["ADAM_STATES", "optimizer_bytes", "without_trace"]

ADAM_STATES = 2  # numbers that AdamW keeps for each parameter


@contextmanager
def without_trace(model: nn.Module) -> Iterator[None]:
    """Context after which the buffers of a model and the random states are those of before, and gradients are gone.

    Weights stay because nothing inside updates them.
    """
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    try:
        with preserved_rng():
            yield
    finally:
        model.zero_grad(set_to_none=True)
        for name, value in model.named_buffers():
            value.copy_(buffers[name])


def optimizer_bytes(parameters: Iterable[Tensor]) -> int:
    """Memory that the states of AdamW will take."""
    return ADAM_STATES * sum(value.nbytes for value in parameters)
