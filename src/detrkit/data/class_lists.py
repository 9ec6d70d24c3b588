"""``classes.json``: what the values or colours of mask files stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

from detrkit.data.coco_json import read_json
from detrkit.data.listing import read_lines
from detrkit.errors import DataError
from detrkit.structures import Categories, Category

__all__ = ["VALUES", "ClassList", "extent", "read_class_list", "valid_color"]

VALUES = 2**16
"""Values that a class map of one channel can have."""


@dataclass(frozen=True)
class ClassList:
    """The classes of mask files.

    Attributes:
        categories: in the order of their values; their ids are the values.
        ignore: the value of pixels that belong to no class, where the file says it.
        marked: whether a class is a thing, for the values of those of which the file says it (``isthing``).
        source: what messages call the list.
    """

    categories: Categories
    ignore: int | None
    marked: Mapping[int, bool]
    source: str


def read_class_list(source: object) -> ClassList:
    """Read the classes that the values of class maps stand for.

    source: a JSON file or its content: a list of names (the value is the place in the list); ``{"0": "name", …}``;
    a list of ``{"id": value, "name": …}``, with ``color`` [red, green, blue] and ``isthing`` as in COCO; or an object
    with one of these as ``names``, ``classes`` or ``categories``, which may also have ``ignore_index``. A text file
    has one name per line, the first of value 1, or the table of ADE20K's ``objectInfo150.txt``.

    Raises:
        DataError: no such file, or another content.
    """
    content: object
    if isinstance(source, str | Path) and Path(source).suffix.lower() == ".txt":
        content, name = _text_rows(Path(source)), str(source)
    else:
        content, name = read_json(source, "classes")
    ignore = None
    if isinstance(content, Mapping):
        ignore = content.get("ignore_index")
        if ignore is not None and (type(ignore) is not int or not 0 <= ignore < VALUES):
            raise DataError(f"{name}: ignore_index is {ignore!r}, but values are whole numbers below {VALUES}")
        content = next((content[key] for key in ("names", "classes", "categories") if key in content), content)
    rows: list[Mapping[str, object]] = []
    if isinstance(content, Mapping):
        rows = [
            {"id": int(key) if str(key).isdecimal() else key, "name": value}
            for key, value in content.items()
            if key != "ignore_index"
        ]
    elif isinstance(content, Sequence) and not isinstance(content, str):
        rows = [row if isinstance(row, Mapping) else {"id": place, "name": row} for place, row in enumerate(content)]
    if not rows:
        raise DataError(
            f'{name}: lists no classes; give a list of names, {{"0": "name", …}}, or a list of {{"id": 0, "name": "…"}}'
        )
    found: dict[int, Category] = {}
    for row in rows:
        category = _category(row, name)
        if category.id in found:
            names = f"'{found[category.id].name}' and '{category.name}'"
            raise DataError(f"{name}: the value {category.id} is used twice, by {names}")
        found[category.id] = category
    marked = {int(str(row["id"])): bool(row["isthing"]) for row in rows if "isthing" in row}
    return ClassList(Categories(found[value] for value in sorted(found)), ignore, marked, name)


def valid_color(value: object) -> tuple[int, int, int] | None:
    """[red, green, blue] as a colour, or None if it is none."""
    if isinstance(value, list | tuple) and len(value) == 3 and all(type(v) is int and 0 <= v <= 255 for v in value):
        return value[0], value[1], value[2]
    return None


def extent(values: Sequence[int]) -> str:
    """Values in words: a range, or some of them."""
    if list(values) == list(range(values[0], values[-1] + 1)):
        return f"{values[0]} to {values[-1]}"
    return ", ".join(map(str, values[:5])) + (f", … {values[-1]}" if len(values) > 5 else "")


def _text_rows(path: Path) -> list[dict[str, object]]:
    """The classes of a text file: a table with the columns Idx and Name, or one name per line, the first of value 1."""
    lines = [line for line in read_lines(path) if line]
    columns = [column.strip().lower() for column in lines[0].split("\t")] if lines else []
    if not {"idx", "name"} <= {*columns}:
        return [{"id": number, "name": line} for number, line in enumerate(lines, start=1)]
    rows: list[dict[str, object]] = []
    for number, line in enumerate(lines[1:], start=2):
        values = dict(zip(columns, (value.strip() for value in line.split("\t")), strict=False))
        if not values.get("idx", "").isdecimal() or not values.get("name"):
            raise DataError(f"{path}: line {number} has no number and name as the first line says: '{line}'")
        rows.append({"id": int(values["idx"]), "name": values["name"]})
    short = [str(row["name"]).split(",")[0].strip() for row in rows]  # "door, double door" lists words for one class
    return (
        rows if len(set(short)) < len(short) else [{**row, "name": name} for row, name in zip(rows, short, strict=True)]
    )


def _category(row: Mapping[str, object], name: str) -> Category:
    value, label, color = row.get("id"), row.get("name"), row.get("color")
    if isinstance(value, bool) or not isinstance(value, Integral) or not 0 <= int(value) < VALUES:
        raise DataError(f"{name}: class {label!r} has value {value!r}, but values are whole numbers below {VALUES}")
    if not isinstance(label, str):
        raise DataError(f"{name}: the name of class {value} is {label!r}; names are texts")
    if color is not None and valid_color(color) is None:
        raise DataError(f"{name}: class '{label}' has color {color!r}; write [red, green, blue], each 0 to 255")
    return Category(int(value), label, bool(row.get("isthing", 1)), valid_color(color))
