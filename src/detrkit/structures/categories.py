"""Classes: ids, names and order, and the annotation keys of LVIS."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypedDict

__all__ = ["FREQUENCIES", "NEGATIVES", "NOT_EXHAUSTIVE", "Categories", "Category", "CategoryRow"]

# Keys and values that LVIS adds to COCO annotations (Gupta et al., LVIS, section 4).
NEGATIVES = "neg_category_ids"
"""Key of an image: classes verified to be absent."""
NOT_EXHAUSTIVE = "not_exhaustive_category_ids"
"""Key of an image: classes that are not exhaustively annotated."""
FREQUENCIES = ("r", "c", "f")
"""Rare, common, frequent: classes in at most 10, at most 100, and more of the training images."""


@dataclass(frozen=True)
class Category:
    """One class: its id in the data set and its name (None = an unused slot)."""

    id: int
    name: str | None


class CategoryRow(TypedDict):
    """A category in JSON."""

    id: int
    name: str | None


class Categories(tuple[Category, ...]):
    """The classes of a data set or model in label order: label ``k`` is ``categories[k]``.

    Labels are contiguous (0..K-1); ``id`` is the number in the user's files.
    """

    __slots__ = ()

    @classmethod
    def from_json(cls, rows: Iterable[CategoryRow]) -> Categories:
        """Categories from rows in label order."""
        return cls(Category(int(row["id"]), row["name"]) for row in rows)

    def to_json(self) -> list[CategoryRow]:
        """Rows in label order."""
        return [{"id": category.id, "name": category.name} for category in self]

    @property
    def names(self) -> list[str | None]:
        """Names in label order."""
        return [category.name for category in self]

    @property
    def ids(self) -> list[int]:
        """Ids of the data set in label order."""
        return [category.id for category in self]

    @property
    def named(self) -> list[Category]:
        """The classes that have a name, without unused slots (gaps in COCO's 91 ids)."""
        return [category for category in self if category.name is not None]
