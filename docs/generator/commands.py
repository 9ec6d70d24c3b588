"""The tables of published commands and ours, one per repository, and of the configurations of two of them."""

from __future__ import annotations

from functools import partial

from generator.headers import Command, headers
from generator.tables import table

__all__ = ["SECTIONS"]


def of_repositories(*names: str) -> str:
    """Training commands first, those of the main branch before the others; then evaluations."""
    found = [command for header in headers() for command in header.commands if command.repository in names]
    found.sort(key=lambda command: (names.index(command.repository), command.kind, command.branch or ""))
    return table(["published", "ours"], [[_theirs(command, names), f"`{command.ours}`"] for command in found])


def _theirs(command: Command, names: tuple[str, ...]) -> str:
    said = [command.repository] if len(names) > 1 else []
    said += [f"branch `{command.branch}`"] if command.branch else []
    said += [f"N={command.processes}"] if command.processes else []
    said += [f"{command.epochs} epochs"] if command.epochs else []
    return (", ".join(said) + ": " if said else "") + f"`{command.theirs}`"


def configurations() -> str:
    """Which recipes stand for a configuration file of the Relation- and Salience-DETR repositories."""
    found: dict[tuple[str, str], list[str]] = {}
    for header in headers():
        for repository, name in header.configurations:
            found.setdefault((repository, name), []).append(f"[`{header.path.stem}`]({header.link})")
    rows = [[repository, f"`{name}`", ", ".join(links)] for (repository, name), links in sorted(found.items())]
    return table(["repository", "`model_path`", "recipe"], rows)


SECTIONS = {
    "commands of Conditional DETR": partial(of_repositories, "Conditional DETR"),
    "commands of DE-DETRs": partial(of_repositories, "DE-DETRs"),
    "commands of DE-CondDETR": partial(of_repositories, "DE-CondDETR"),
    "commands of Deformable DETR": partial(of_repositories, "Deformable DETR"),
    "commands of DINO": partial(of_repositories, "DINO"),
    "commands of Relation-DETR, Salience-DETR and DAPE": partial(
        of_repositories, "Relation-DETR", "Salience-DETR", "DAPE"
    ),
    "configurations of Relation-DETR and Salience-DETR": configurations,
}
