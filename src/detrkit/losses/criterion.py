"""The set-prediction loss of DETR (section 3.1), computed for all decoder layers together."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from detrkit.losses.federated import FederatedClasses
from detrkit.losses.heatmaps import heatmap_loss
from detrkit.losses.label_augmentation import LabelAugmentation
from detrkit.losses.log_only import cardinality_error, class_error
from detrkit.losses.matcher import HungarianMatcher
from detrkit.losses.normalisers import Normalisers
from detrkit.losses.output import LossOutput, by_layer_name
from detrkit.losses.problem import Matched, Matches, Problem
from detrkit.losses.terms import Term
from detrkit.structures import Predictions, Target

__all__ = ["Criterion"]


class Criterion:
    """Matching of every query group, then the sum of the losses over terms, groups and layers.

    Args:
        terms: terms of the loss, in the order of the log.
        matcher: matcher built from the same terms.
        num_queries: matching queries per image.
        label_augmentation: repeats objects before matching.
        federated: selects the classes of the loss per batch, for data not annotated for all classes.

    Raises:
        ValueError: two terms have the same name.
    """

    def __init__(
        self,
        *,
        terms: Sequence[Term],
        matcher: HungarianMatcher,
        num_queries: int,
        label_augmentation: LabelAugmentation,
        federated: FederatedClasses | None = None,
    ) -> None:
        names = [term.name for term in terms]
        if len(set(names)) < len(names):
            raise ValueError(f"every term needs a name of its own, got {', '.join(names)}")
        self.terms = list(terms)
        self.matcher = matcher
        self.num_queries = num_queries
        self.label_augmentation = label_augmentation
        self.federated = federated
        self._warned = False

    def prepare(self, targets: list[Target]) -> list[Target]:
        """Targets with label augmentation, for training. Evaluation losses use the targets as they are."""
        crowded = max((len(target) for target in targets), default=0)
        if crowded > self.num_queries and not self._warned:
            self._warned = True
            warnings.warn(
                f"an image has {crowded} objects but the model only {self.num_queries} queries: the surplus is not "
                "learned. Set num_queries above the largest number of objects in an image",
                stacklevel=2,
            )
        return self.label_augmentation(targets, self.num_queries)

    def count(self, targets: list[Target]) -> Normalisers:
        """Normalisers of prepared targets; add them up over the micro-batches and processes of a step."""
        return Normalisers.count(targets, num_queries=self.num_queries)

    def __call__(
        self, predictions: Predictions, targets: list[Target], counts: Normalisers | None = None
    ) -> LossOutput:
        """Losses of prepared targets.

        Args:
            predictions: all layers, (L, B, Q, …), with their query groups and heatmaps.
            targets: from :meth:`prepare`.
            counts: normalisers of the whole batch divided by the number of processes; None: those of this batch.
        """
        counts = self.count(targets) if counts is None else counts
        main = Problem.of(predictions, targets)
        groups = {name: Problem.of(group, targets) for name, group in predictions.groups.items()}
        matches, group_matches = self._match(main, groups)
        counted = None if self.federated is None else self.federated(targets)
        total, terms = self._losses(Matched(main, matches, counted), counts)
        terms |= by_layer_name({"cardinality_error": cardinality_error(main)})
        terms["class_error"] = class_error(main, matches)
        for name, problem in groups.items():
            matched = Matched(problem, group_matches[name], None if problem.group.class_agnostic else counted)
            loss, values = self._losses(matched, counts)
            total = total + loss
            terms |= {f"{term}_{name}": value for term, value in values.items()}
        for name, heatmap in predictions.heatmaps.items():
            loss = heatmap_loss(heatmap, targets)
            total = total + heatmap.weight * loss * (len(targets) / counts.images)  # a mean over micro-batches
            terms[f"loss_{name}"] = loss.detach()
        return LossOutput(total, terms, matches, group_matches)

    def anchor(self, predictions: Predictions) -> Tensor:
        """A zero that depends on every tensor that the losses read.

        DDP needs a gradient for every parameter on every process. Adding this zero to the loss provides it where a
        process has no objects.
        """
        read = [heatmap.logits for heatmap in predictions.heatmaps.values()]
        for group in (predictions, *predictions.groups.values()):
            read += [tensor for term in self.terms for tensor in term.reads(group)]
        return torch.stack([(tensor.float() * 0).sum() for tensor in read]).sum()

    def _match(self, main: Problem, groups: dict[str, Problem]) -> tuple[Matches, dict[str, Matches]]:
        """Match all groups in one call; the pairs of denoising groups are fixed."""
        fixed = {
            name: Matches.fixed(problem.group.pairs, layers=problem.layers)
            for name, problem in groups.items()
            if problem.group.pairs is not None
        }
        free = [name for name in groups if name not in fixed]
        matches, *others = self.matcher.match([main, *(groups[name] for name in free)])
        return matches, dict(zip(free, others, strict=True)) | fixed

    def _losses(self, matched: Matched, counts: Normalisers) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum over terms and layers of one group, and the unweighted values by name."""
        group = matched.problem.group
        counts = counts.of_group(group)
        terms = [term for term in self.terms if term.reads(group)]
        values = [term.loss(matched, term.normaliser(counts) * group.normaliser) for term in terms]
        total = torch.stack([term.weight * value.sum() for term, value in zip(terms, values, strict=True)]).sum()
        return total, by_layer_name({term.name: value.detach() for term, value in zip(terms, values, strict=True)})
