"""A recipe in the making: what the user gave stands, everything else is settled with a reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from detrkit.config import Recipe, load_recipe
from detrkit.config.schema import ModelSection, leaves

__all__ = ["Draft", "flat"]

_NO_OPTION = frozenset(ModelSection.model_fields)  # keys of the model section that are not options of a model


def flat(overrides: Sequence[str] | Mapping[str, object]) -> dict[str, object]:
    """Dotted key -> checked value of everything that is given.

    Raises:
        RecipeError: unknown key or wrong value.
    """
    return dict(leaves(load_recipe({}, overrides).model_dump(mode="json", exclude_unset=True)))


class Draft:
    """given: what the user wants, by dotted key · lines: every choice with its reason."""

    def __init__(self, given: Mapping[str, object]) -> None:
        self.given: dict[str, Any] = dict(given)  # a recipe has checked their types
        self.lines: list[str] = []
        self._chosen: dict[str, object] = {}

    def say(self, line: str) -> None:
        """A line of its own."""
        self.lines.append(line)

    def settle(self, key: str, value: Any) -> Any:
        """The value of a key: the user's, else this one."""
        if key in self.given:
            return self.given[key]
        self._chosen[key] = value
        return value

    def choose(self, what: str, key: str, value: Any, why: str) -> Any:
        """Settles a key and says why."""
        settled = self.settle(key, value)
        self.say(f"  {what} {_shown(settled)}: {'yours' if key in self.given else why}")
        return settled

    def model_options(self) -> dict[str, object]:
        """The model's options so far, as ``create_model`` takes them."""
        both = {**self._chosen, **self.given}
        options = {key.removeprefix("model."): value for key, value in both.items() if key.startswith("model.")}
        return {key: value for key, value in options.items() if key not in _NO_OPTION}

    def recipe(self) -> Recipe:
        """What was chosen and given, with the lines as comments.

        Raises:
            RecipeError: the values given contradict each other.
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
