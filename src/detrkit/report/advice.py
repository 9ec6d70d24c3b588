"""What to do next: rules over measured facts, each with the number behind it and a command, the most urgent first."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from detrkit.report.analysis import Analysis
from detrkit.report.facts import Facts
from detrkit.report.map_scores import MapScores
from detrkit.report.run_log import RunLog
from detrkit.report.signs import Signs

__all__ = ["Advice", "Evidence", "Rule", "advise"]


@dataclass(frozen=True, kw_only=True)
class Advice:
    """One thing to do.

    Attributes:
        kind: a name for the rule.
        urgency: 0 (good to know) to 100 (nothing else matters before).
        title: what to do, in a few words.
        reason: the numbers behind it.
        command: what to type; empty where there is nothing.
    """

    kind: str
    urgency: float
    title: str
    reason: str
    command: str = ""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a run has recorded; rules read nothing else.

    Attributes:
        run: its folder, as it is typed in commands.
        recipe: its settings, section -> key -> value.
        log: its log.
        facts: facts about its data; None where it has recorded none.
        analysis: its best evaluation; None where there is none of objects.
        maps: its best evaluation; None where there is none of maps.
    """

    run: str
    recipe: dict[str, Any]
    log: RunLog
    facts: Facts | None = None
    analysis: Analysis | None = None
    maps: MapScores | None = None

    @cached_property
    def signs(self) -> Signs | None:
        """Signs of faults in the predictions; None where the model finds next to nothing, so that they mean nothing."""
        if self.analysis is None:
            return None
        signs = Signs(analysis=self.analysis)
        return signs if signs.any_class.f1.max(initial=0.0) >= _FINDS_SOMETHING else None

    @property
    def data(self) -> str:
        """The data folder, as it is typed in commands."""
        return shlex.quote(str(self.setting("data.root") or "DATA"))

    def setting(self, key: str) -> Any:
        """A setting of the recipe, such as ``training.epochs``; None where it has none."""
        section, _, name = key.partition(".")
        return (self.recipe.get(section) or {}).get(name)


_FINDS_SOMETHING = 0.3  # F1 without regard to classes

Rule = Callable[[Evidence], Advice | None]


def advise(evidence: Evidence, rules: Sequence[Rule]) -> list[Advice]:
    """The advice of all rules that apply, the most urgent first."""
    found = [advice for rule in rules if (advice := rule(evidence)) is not None]
    return sorted(found, key=lambda advice: -advice.urgency)
