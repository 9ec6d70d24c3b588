"""Matching and losses; :func:`build_criterion` is what training uses.

Modules are imported on first use: predictions need the classes of losses alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from detrkit.on_use import import_on_use

if TYPE_CHECKING:
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

__getattr__ = import_on_use(
    __name__,
    {
        "build": ["build_criterion", "build_terms"],
        "classes": ["ClassLoss", "Focal", "Softmax", "Varifocal", "build_classes"],
        "criterion": ["Criterion"],
        "federated": ["FederatedClasses"],
        "label_augmentation": ["LabelAugmentation"],
        "matcher": ["HungarianMatcher"],
        "normalisers": ["Normalisers"],
        "output": ["LossOutput"],
        "problem": ["Candidates", "Matched", "Matches", "Problem"],
        "terms": ["ClassTerm", "GIoUTerm", "L1Term", "Term"],
    },
)
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
