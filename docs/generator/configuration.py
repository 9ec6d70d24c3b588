"""Tables of every key: of a recipe, from its schema, and of the options that all models have."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import textwrap
from collections.abc import Mapping
from typing import Any

from generator.tables import table

__all__ = ["SECTIONS"]

HEADING = ("key", "type", "default", "meaning")
_NO_LIMIT = 10**9  # only keeps slips of the keyboard out
_TYPES = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false"}


def recipe_keys() -> str:
    """A table per section of a recipe."""
    from detrkit.config import Recipe
    from detrkit.config.schema import SECTIONS as PARTS

    parts = []
    for name, section in PARTS.items():
        note = inspect.cleandoc(section.__doc__ or "").split("\n\n")[0].replace("\n", " ")
        schema = section.model_json_schema()
        parts.append(f"### {name}\n\n{_markdown(note)}\n\n{table(HEADING, _rows(schema, f'{name}.'))}")
    assert list(PARTS) == list(Recipe.model_fields), "a key of a recipe that is not a section"
    return "\n\n".join(parts)


def _rows(schema: Mapping[str, Any], prefix: str) -> list[list[str]]:
    """A row per key; the keys of a nested section stand in place of it."""
    rows = []
    for key, entry in schema["properties"].items():
        if reference := entry.get("$ref"):
            nested = schema["$defs"][reference.rpartition("/")[2]]
            rows += _rows({**nested, "$defs": schema["$defs"]}, f"{prefix}{key}.")
            continue
        if "description" not in entry:
            raise SystemExit(f"{prefix}{key}: the schema does not say what it means")
        default = entry.get("default", [])  # lists are made by a factory, which a JSON schema does not show
        rows.append([f"`{prefix}{key}`", _type(entry), _value(default), _markdown(entry["description"])])
    return rows


def _type(entry: Mapping[str, Any]) -> str:
    """A JSON schema in words."""
    if "anyOf" in entry:
        return " or ".join(_type(part) for part in entry["anyOf"])
    if "enum" in entry:
        return ", ".join(f"`{value}`" for value in entry["enum"])
    if "const" in entry:
        return f"`{entry['const']}`"
    if entry.get("type") == "null":
        return "null"
    if entry.get("type") == "array":
        items = entry.get("prefixItems")
        return f"{len(items)} of: {_type(items[0])}" if items else f"list of: {_type(entry['items'])}"
    limits = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits |= {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}  # behind a validator pydantic calls them so
    said = [f"{sign} {entry[key]:g}" for key, sign in limits.items() if entry.get(key, _NO_LIMIT) < _NO_LIMIT]
    return " ".join([_TYPES[entry["type"]], " and ".join(said)]).strip()


def model_options() -> str:
    """A table per part of a model's configuration: the options that every model has."""
    from detrkit.models.config import Architecture, Input, Objective, Postprocessing

    parts = {"architecture": Architecture, "input": Input, "objective": Objective, "postprocess": Postprocessing}
    return "\n\n".join(
        f"### model.config.{name}\n\n{table(('option', *HEADING[1:]), _options(part))}" for name, part in parts.items()
    )


def _options(part: type) -> list[list[str]]:
    from detrkit.ranges import fields_model

    meanings, schema = attribute_docstrings(part), fields_model(part).model_json_schema()["properties"]
    rows = []
    for entry in dataclasses.fields(part):
        if entry.name not in meanings:
            raise SystemExit(f"{part.__qualname__}.{entry.name}: nothing says what it means")
        row = [f"`{entry.name}`", _type(schema[entry.name]), _value(entry.default), _markdown(meanings[entry.name])]
        rows.append(row)
    return rows


def attribute_docstrings(cls: type) -> dict[str, str]:
    """Field -> the string below it, or what the ``Attributes:`` of the class say of it."""
    found: dict[str, str] = {}
    listed = re.search(r"^Attributes:\n((?:    .*\n?|\n)+)", inspect.getdoc(cls) or "", re.MULTILINE)
    for entry in re.split(r"\n(?=\S)", textwrap.dedent(listed[1])) if listed else []:
        names, _, meaning = entry.partition(":")
        found |= dict.fromkeys(re.split(r",\s+", names.strip()), " ".join(meaning.split()))
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            found[ast.unparse(field.target)] = inspect.cleandoc(str(below.value.value))
    return found


def _value(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, float):
        return f"{value:g}"
    return f"`{value}`" if isinstance(value, str) else json.dumps(value)


def _markdown(text: str) -> str:
    """The reStructuredText of a docstring as one line of Markdown."""

    def last(found: re.Match[str]) -> str:
        return f"`{found[1].rpartition('.')[2]}`"

    line = re.sub(r":(?:class|func):`~?([^`]+)`", last, " ".join(text.split()))
    return line.replace("``", "`")


SECTIONS = {"recipe keys": recipe_keys, "options of every model": model_options}
