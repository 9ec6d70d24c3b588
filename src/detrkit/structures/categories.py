"""Classes: their ids, names and order, and what LVIS says of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

__all__ = ["FREQUENCIES", "NEGATIVES", "NOT_EXHAUSTIVE", "Categories", "Category", "CategoryRow"]

# What LVIS adds to COCO annotations (Gupta et al., LVIS, section 4).
NEGATIVES = "neg_category_ids"
"""Of an image: the classes verified to be absent."""
NOT_EXHAUSTIVE = "not_exhaustive_category_ids"
"""Of an image: the classes of which not every object is annotated."""
FREQUENCIES = ("r", "c", "f")
"""Rare, common, frequent: classes in at most 10, at most 100, and more of the training images."""


@dataclass(frozen=True)
class Category:
    """One class.

    Attributes:
        id: in the data set's own numbering.
        name: None for an unused slot.
        is_thing: whether its objects can be counted, such as cars; False for stuff, such as sky.
        color: RGB, where the data set brings one.
    """

    id: int
    name: str | None
    is_thing: bool = True
    color: tuple[int, int, int] | None = None


class CategoryRow(TypedDict):
    """A category as JSON has it; ``isthing`` is left out where it is 1, as files without stuff have it."""

    id: int
    name: str | None
    isthing: NotRequired[int]
    color: NotRequired[Sequence[int]]


class Categories(tuple[Category, ...]):
    """The classes of a data set or model in label order: label ``k`` is ``categories[k]``.

    Labels are contiguous (0..K-1) inside; ``id`` keeps the number the user's files have.
    """

    __slots__ = ()

    @classmethod
    def from_json(cls, rows: Iterable[CategoryRow]) -> Categories:
        """Categories from rows in label order."""
        return cls(
            Category(int(row["id"]), row["name"], bool(row.get("isthing", 1)), _color(row.get("color"))) for row in rows
        )

    def to_json(self) -> list[CategoryRow]:
        """Rows in label order."""
        rows: list[CategoryRow] = []
        for category in self:
            row: CategoryRow = {"id": category.id, "name": category.name}
            if not category.is_thing:
                row["isthing"] = 0
            if category.color is not None:
                row["color"] = list(category.color)
            rows.append(row)
        return rows

    @property
    def names(self) -> list[str | None]:
        """Names in label order."""
        return [category.name for category in self]

    @property
    def ids(self) -> list[int]:
        """The data set's own ids in label order."""
        return [category.id for category in self]

    @property
    def named(self) -> list[Category]:
        """The classes that exist: slots without a name (gaps of COCO's 91 ids) left out."""
        return [category for category in self if category.name is not None]


def _color(values: Sequence[int] | None) -> tuple[int, int, int] | None:
    if values is None:
        return None
    red, green, blue = (int(value) for value in values)
    return red, green, blue
