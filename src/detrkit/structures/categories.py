"""Classes: ids, names and order, and the annotation keys of LVIS."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

from detrkit.errors import DataError, did_you_mean

__all__ = ["FREQUENCIES", "NEGATIVES", "NOT_EXHAUSTIVE", "Categories", "Category", "CategoryRow", "spelled_alike"]

# Keys and values that LVIS adds to COCO annotations (Gupta et al., LVIS, section 4).
NEGATIVES = "neg_category_ids"
"""Key of an image: classes verified to be absent."""
NOT_EXHAUSTIVE = "not_exhaustive_category_ids"
"""Key of an image: classes that are not exhaustively annotated."""
FREQUENCIES = ("r", "c", "f")
"""Rare, common, frequent: classes in at most 10, at most 100, and more of the training images."""


@dataclass(frozen=True)
class Category:
    """One class.

    Attributes:
        id: its id in the data set.
        name: its name; None: an unused slot.
        is_thing: whether its objects can be counted, such as cars; False for stuff, such as sky.
        color: RGB, if the data set has one.
    """

    id: int
    name: str | None
    is_thing: bool = True
    color: tuple[int, int, int] | None = None


class CategoryRow(TypedDict):
    """A category in JSON; ``isthing`` is left out where it is 1, as in files without stuff."""

    id: int
    name: str | None
    isthing: NotRequired[int]
    color: NotRequired[Sequence[int]]


class Categories(tuple[Category, ...]):
    """The classes of a data set or model in label order: label ``k`` is ``categories[k]``.

    Labels are contiguous (0..K-1); ``id`` is the number in the user's files.
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

    def labels_of(self, classes: str | int | Iterable[str | int]) -> list[int]:
        """Labels, ascending, of the classes with these names or ids of the data set.

        A text that is no name may list several with commas; digits that are no name are an id.

        Raises:
            DataError: no class is given, or one that there is not.
            TypeError: ``classes`` are neither names nor ids.
        """
        if not isinstance(classes, str | int | Iterable) or isinstance(classes, bool):
            raise TypeError(f"classes are names or ids, got {classes!r}")
        wanted = [classes] if isinstance(classes, str | int) else list(classes)
        if not wanted:
            raise DataError("classes: none is named; leave them out for all")
        labels: set[int] = set()
        for one in wanted:
            text = str(one)
            found = {label for label, category in enumerate(self) if category.name is not None and one == category.name}
            if not found and "," in text:
                found = set(self.labels_of([part.strip() for part in text.split(",") if part.strip()]))
            elif not found and text.isdecimal():
                found = {label for label, category in enumerate(self) if category.name and category.id == int(text)}
            if not found:
                names = [category.name for category in self.named if category.name is not None]
                ids = f"; ids go from {min(self.ids)} to {max(self.ids)}" if text.isdecimal() and self else ""
                raise DataError(f"class '{text}': there is no such name or id{ids}.{did_you_mean(text, names)}")
            labels |= found
        return sorted(labels)

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


def spelled_alike(name: object) -> str:
    """A class name without letter case, underscores and needless spaces: ``Traffic_Light `` is ``traffic light``."""
    return " ".join(str(name).casefold().replace("_", " ").split())


def _color(values: Sequence[int] | None) -> tuple[int, int, int] | None:
    if values is None:
        return None
    red, green, blue = (int(value) for value in values)
    return red, green, blue
