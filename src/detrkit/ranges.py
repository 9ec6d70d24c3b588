"""Types and ranges of settings: recipe keys and model options are declared with the same types and read alike."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, get_args, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

__all__ = [
    "Count",
    "CountOrZero",
    "Few",
    "Layers",
    "LayersOrZero",
    "NonNegative",
    "Number",
    "PartBelowOne",
    "Positive",
    "Rows",
    "RowsOrZero",
    "Share",
    "Side",
    "Width",
    "check_fields",
    "fields_model",
]


def _not_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("Input should be a number")
    return value


_NUMBER = BeforeValidator(_not_bool)  # true is not 1
_MANY = 10**9  # more of anything is a slip of the keyboard, and would end in the libraries below

Count = Annotated[int, _NUMBER, Field(ge=1, le=_MANY)]
CountOrZero = Annotated[int, _NUMBER, Field(ge=0, le=_MANY)]
Few = Annotated[int, _NUMBER, Field(ge=1, le=1000)]
Layers = Annotated[int, _NUMBER, Field(ge=1, le=100)]
LayersOrZero = Annotated[int, _NUMBER, Field(ge=0, le=100)]
Width = Annotated[int, _NUMBER, Field(ge=1, le=16_384)]
"""Channels."""
Rows = Annotated[int, _NUMBER, Field(ge=1, le=100_000)]
"""Rows of a table of weights, such as queries and classes."""
RowsOrZero = Annotated[int, _NUMBER, Field(ge=0, le=100_000)]
Side = Annotated[int, _NUMBER, Field(ge=1, le=65_536)]
"""Pixels."""
Number = Annotated[float, _NUMBER]
Positive = Annotated[float, _NUMBER, Field(gt=0)]
NonNegative = Annotated[float, _NUMBER, Field(ge=0)]
Share = Annotated[float, _NUMBER, Field(ge=0, le=1)]
PartBelowOne = Annotated[float, _NUMBER, Field(ge=0, lt=1)]


def check_fields(part: object) -> None:
    """Check every field of a dataclass against its declared type and range; numbers written as text become numbers.

    Raises:
        ValueError: a value does not fit; the message names the field.
    """
    cls: Any = type(part)
    values = {field.name: getattr(part, field.name) for field in dataclasses.fields(cls)}
    try:
        checked = fields_model(cls)(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        raise ValueError(f"{name} {_rule(first, get_type_hints(cls, include_extras=True)[name])}") from None
    for name in values:
        object.__setattr__(part, name, getattr(checked, name))  # the dataclasses are frozen


@cache
def fields_model(cls: type) -> type[BaseModel]:
    """The fields of a dataclass as a pydantic model, which knows types and ranges."""
    hints = get_type_hints(cls, include_extras=True)
    fields: dict[str, Any] = {field.name: (hints[field.name], field.default) for field in dataclasses.fields(cls)}
    config = ConfigDict(allow_inf_nan=False, protected_namespaces=())
    return create_model(cls.__name__, __config__=config, **fields)


_WORDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def _rule(error: Any, hint: object) -> str:
    """``must be …, got …`` of a validation error."""
    limits = dict(_limits(hint))
    context = {name: value for name, value in error.get("ctx", {}).items() if name in _WORDS}
    low, high = limits.get("ge", limits.get("gt")), limits.get("le", limits.get("lt"))
    if error["type"] == "literal_error":
        text = f"must be {error['ctx']['expected']}"
    elif context and low is not None and high is not None and high <= 1:
        text = f"must be in {'(' if 'gt' in limits else '['}{low}, {high}{')' if 'lt' in limits else ']'}"
    elif context:
        text = " and ".join(f"must be {_WORDS[name]} {value}" for name, value in context.items())
    else:
        text = re.sub(r"^(Value error, )?(Input|Tuple) ", "", error["msg"])
    value = repr(error["input"])
    return f"{text}, got {value if len(value) < 80 else value[:77] + '...'}"


def _limits(hint: object) -> Iterator[tuple[str, float]]:
    """(ge, gt, le or lt; value) of a type, also of a type that may be None."""
    for part in get_args(hint):
        for mark in getattr(part, "metadata", ()):
            yield from ((name, getattr(mark, name)) for name in _WORDS if hasattr(mark, name))
        yield from _limits(part)
