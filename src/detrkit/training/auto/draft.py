"""A recipe under construction: values of the user have priority, all others are chosen with a reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detrkit.config import Recipe, load_recipe
from detrkit.config.schema import IMAGE_SIZES, ModelSection

__all__ = ["Draft"]

_SECTION_KEYS = frozenset(ModelSection.model_fields)  # keys of the model section that are not model options
# Image sizes may be given in two sections, of which ``data`` has priority.
_SAME = {f"data.{key}": f"model.{option}" for key, option in IMAGE_SIZES.items()}


class Draft:
    """A recipe under construction.

    Args:
        given: values of the user by dotted key (types are checked by ``override_values``).
    """

    def __init__(self, given: Mapping[str, object]) -> None:
        self.given: dict[str, Any] = dict(given)
        self.lines: list[str] = []
        self._chosen: dict[str, object] = {}

    def note(self, line: str) -> None:
        """Add a line to the comments of the recipe."""
        self.lines.append(line)

    def set_default(self, key: str, value: Any) -> Any:
        """Set a key unless the user gave it; returns its value."""
        for name in (key, _SAME.get(key)):
            if name in self.given:
                return self.given[name]
        self._chosen[key] = value
        return value

    def choose(self, label: str, key: str, value: Any, reason: str) -> Any:
        """Set a key unless the user gave it, and note the reason; returns its value."""
        chosen = self.set_default(key, value)
        self.note(f"  {label} {_shown(chosen)}: {'yours' if {key, _SAME.get(key)} & self.given.keys() else reason}")
        return chosen

    def model_options(self) -> dict[str, object]:
        """The model options so far, for ``create_model``."""
        values = {**self._chosen, **self.given}
        options = {key.removeprefix("model."): value for key, value in values.items() if key.startswith("model.")}
        return {key: value for key, value in options.items() if key not in _SECTION_KEYS}

    def recipe(self) -> Recipe:
        """The recipe with all values, and the lines as comments.

        Raises:
            RecipeError: given values contradict each other.
        """
        tree: dict[str, dict[str, object]] = {}
        for key, value in self._chosen.items():
            section, _, field = key.partition(".")
            tree.setdefault(section, {})[field] = value
        recipe = load_recipe(load_recipe(tree), self.given)
        recipe._comments = tuple(self.lines)
        return recipe


def _shown(value: object) -> str:
    if value is None or value is False or value == 0:
        return "off"
    if value is True:
        return "on"
    return f"{value:,}" if isinstance(value, int) else str(value)
