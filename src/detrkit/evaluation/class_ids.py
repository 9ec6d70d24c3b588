"""Mapping from the classes of a model to the classes of a data set."""

from __future__ import annotations

from dataclasses import dataclass, replace

from detrkit.data import DetectionDataset
from detrkit.errors import DataError, first_few
from detrkit.inference.tasks import Answer
from detrkit.models import Detector
from detrkit.structures import Categories, Category, Detections

__all__ = ["ClassMap", "class_map", "match_classes"]


@dataclass(frozen=True, kw_only=True)
class ClassMap:
    """Mapping from the labels of a model to the labels of a data set.

    Attributes:
        model: classes of the model in label order; slots without a name are unused.
        data: classes of the data set in label order.
        labels: label in the data set for each label of the model; None if the data set does not have the class.
    """

    model: Categories
    data: Categories
    labels: tuple[int | None, ...]

    def in_data(self, answer: Answer, *, image_id: int) -> Answer:
        """An answer with labels of the data set, without the classes that it does not have."""
        if isinstance(answer, Detections):
            return replace(answer.relabel(self.labels, self.data), image_id=image_id)
        return answer.relabel(self.labels, self.data)


def match_classes(model: Detector, dataset: DetectionDataset) -> ClassMap:
    """Match the classes of a model with those of a data set; see :func:`class_map`."""
    return class_map(model.categories, model.config.architecture.num_classes, dataset)


def class_map(own: Categories | None, count: int, dataset: DetectionDataset) -> ClassMap:
    """Match ``count`` classes, of these categories where they are known, by id and name, else by name only.

    For a model without class names, label k is the k-th class of the data set. If the model has more labels than the
    data set has classes, label k is the class with id k (official COCO models).

    Raises:
        DataError: the data set has boxes of a class that the model does not have.
    """
    data = dataset.categories
    if own is not None:
        return _by_name(own, dataset)
    if count == len(data):
        return ClassMap(model=data, data=data, labels=tuple(range(count)))
    if any(not 0 <= category_id < count for category_id in data.ids):
        raise DataError(
            f"{dataset.name}: {len(data)} classes, but the model has {count} and does not say which they are"
        )
    label_of = {category.id: label for label, category in enumerate(data)}
    labels = tuple(label_of.get(slot) for slot in range(count))
    slots = Categories(Category(slot, None if label is None else data[label].name) for slot, label in enumerate(labels))
    return ClassMap(model=slots, data=data, labels=labels)


def _by_name(own: Categories, dataset: DetectionDataset) -> ClassMap:
    data = dataset.categories
    exact = {category: label for label, category in enumerate(data)}
    by_name: dict[str | None, int] = {
        category.name: label for label, category in enumerate(data) if category.name is not None
    }
    labels = tuple(exact.get(category, by_name.get(category.name)) for category in own)
    used = {int(label) for record in dataset.records for label in record.labels}
    missing = [str(data[label].name or data[label].id) for label in sorted(used - set(labels))]
    if missing:
        classes = first_few([category.name for category in own.named], 12)
        raise DataError(
            f"{dataset.name}: the model does not know {', '.join(missing)}; its classes: {classes}. "
            "Evaluate it on data with its classes, or train on these data (model.init=CHECKPOINT starts from it)"
        )
    return ClassMap(model=own, data=data, labels=labels)
