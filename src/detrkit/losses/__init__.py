"""Matching and losses; :func:`build_criterion` is what training uses."""

from detrkit.losses.build import build_criterion, build_terms
from detrkit.losses.classes import ClassLoss, Focal, Softmax, Varifocal, build_classes
from detrkit.losses.criterion import Criterion
from detrkit.losses.federated import FederatedClasses
from detrkit.losses.label_augmentation import LabelAugmentation
from detrkit.losses.matcher import HungarianMatcher
from detrkit.losses.normalisers import Normalisers
from detrkit.losses.output import LossOutput
from detrkit.losses.problem import Candidates, Matched, Matches, Problem
from detrkit.losses.terms import ClassTerm, GIoUTerm, L1Term, Term

__all__ = [
    "Candidates",
    "ClassLoss",
    "ClassTerm",
    "Criterion",
    "FederatedClasses",
    "Focal",
    "GIoUTerm",
    "HungarianMatcher",
    "L1Term",
    "LabelAugmentation",
    "LossOutput",
    "Matched",
    "Matches",
    "Normalisers",
    "Problem",
    "Softmax",
    "Term",
    "Varifocal",
    "build_classes",
    "build_criterion",
    "build_terms",
]
