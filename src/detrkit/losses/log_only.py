"""Values of the official logs that are not part of the loss."""

from __future__ import annotations

import torch
from torch import Tensor

from detrkit.losses.problem import Matches, Problem

__all__ = ["cardinality_error", "class_error"]


def cardinality_error(problem: Problem) -> Tensor:
    """(L,) mean absolute difference between the number of queries that predict an object and the number of objects.

    As in the official code, a query predicts no object when its last logit is the highest. This also holds for focal
    classification, where the last logit is an ordinary class.
    """
    logits = problem.group.logits.detach()
    counts = torch.tensor([len(target) for target in problem.targets], device=logits.device, dtype=torch.float32)
    predicted = (logits.argmax(-1) != logits.shape[-1] - 1).sum(-1)
    return (predicted.float() - counts).abs().mean(-1)


def class_error(problem: Problem, matches: Matches) -> Tensor:
    """Percentage of matched queries in the last layer whose highest logit is not the class of their object."""
    logits = problem.group.logits.detach()
    if len(matches.layer) == 0:
        return logits.new_full((), 100.0, dtype=torch.float32)
    last = matches.layer == len(logits) - 1
    guess = logits[-1, matches.image[last], matches.query[last]].argmax(-1)
    return 100 - 100 * (guess == problem.labels[matches.target[last]]).float().mean()
