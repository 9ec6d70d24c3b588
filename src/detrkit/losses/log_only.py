"""Numbers of the official logs that nothing is learned from."""

from __future__ import annotations

import torch
from torch import Tensor

from detrkit.losses.problem import Matches, Problem

__all__ = ["cardinality_error", "class_error"]


def cardinality_error(problem: Problem) -> Tensor:
    """(L,) mean absolute difference between the number of queries that claim an object and the objects.

    As in the official code a query claims nothing when its last logit is the highest, also for focal classification,
    where that is an ordinary class.
    """
    logits = problem.group.logits.detach()
    counts = torch.tensor([len(target) for target in problem.targets], device=logits.device, dtype=torch.float32)
    claimed = (logits.argmax(-1) != logits.shape[-1] - 1).sum(-1)
    return (claimed.float() - counts).abs().mean(-1)


def class_error(problem: Problem, matches: Matches) -> Tensor:
    """Per cent of the last layer's matched queries whose highest logit is of another class than their object."""
    logits = problem.group.logits.detach()
    if len(matches.layer) == 0:
        return logits.new_full((), 100.0, dtype=torch.float32)
    last = matches.layer == len(logits) - 1
    guess = logits[-1, matches.image[last], matches.query[last]].argmax(-1)
    return 100 - 100 * (guess == problem.labels[matches.target[last]]).float().mean()
