"""Matching and losses; :func:`build_criterion` is what training uses."""

from detrkit.losses.criterion import Criterion, LossOutput, build_criterion
from detrkit.losses.federated import FederatedClasses
from detrkit.losses.label_augmentation import LabelAugmentation
from detrkit.losses.matcher import HungarianMatcher, Matches

__all__ = [
    "Criterion",
    "FederatedClasses",
    "HungarianMatcher",
    "LabelAugmentation",
    "LossOutput",
    "Matches",
    "build_criterion",
]
