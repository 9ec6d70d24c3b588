"""Reads the comment on top of a shipped recipe: published figures, published commands, and our commands for them.

Lines that are understood, each on a line of its own; any other line is plain text:

    # TITLE on DATA, …                                                  (the first line)
    # Published AP / S / M / L: 41.0 / 20.6 / 44.3 / 59.3 (SOURCE).      (or PQ / APmask / APbox)
    # Published configuration (REPOSITORY): NAME
    # Published command (REPOSITORY[, branch NAME][, N=PROCESSES][, EPOCHS epochs]): COMMAND
    # Published evaluation (REPOSITORY): COMMAND
    # Ours: COMMAND                       (for the line above; without it, the recipe's own command)
    # No figure is published[: REASON].
    # Measured figures: docs/results.md.
    #   detrkit train RECIPE              (or accelerate launch … -m detrkit train RECIPE)
    #   detrkit eval RECIPE --checkpoint CHECKPOINT

A line that begins with "Published", "Ours" or "No figure" and has none of these forms is an error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

__all__ = [
    "METRICS",
    "METRICS_OF",
    "OUR_DATA",
    "RECIPES",
    "REPOSITORIES",
    "ROOT",
    "Command",
    "Figure",
    "Header",
    "HeaderError",
    "headers",
]

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "recipes"

METRICS = ("AP", "AP50", "AP75", "S", "M", "L")
METRICS_OF = {
    "COCO panoptic": ("PQ", "APmask", "APbox"),
    "COCO instances": (*METRICS, "APbox"),
    "Cityscapes instances": ("AP", "AP50"),
}
"""What is published on data sets with masks; on others ``METRICS``."""
REPOSITORIES = {
    "DETR": "https://github.com/facebookresearch/detr",
    "Conditional DETR": "https://github.com/Atten4Vis/ConditionalDETR",
    "DE-DETRs": "https://github.com/encounter1997/DE-DETRs",
    "DE-CondDETR": "https://github.com/encounter1997/DE-CondDETR",
    "Deformable DETR": "https://github.com/fundamentalvision/Deformable-DETR",
    "DINO": "https://github.com/IDEA-Research/DINO",
    "Relation-DETR": "https://github.com/xiuqhou/Relation-DETR",
    "Salience-DETR": "https://github.com/xiuqhou/Salience-DETR",
    "DAPE": "https://github.com/xiuqhou/DAPE",
}
PAPER = "DE-DETR paper"

_NAMES = "|".join(map(re.escape, REPOSITORIES))
_NUMBERS = r"\d+\.\d(?: / \d+\.\d)*"
_FIGURE = re.compile(
    rf"Published ((?:AP|PQ)(?: / \w+)*): ({_NUMBERS}) \(((?:{_NAMES}) repository|{PAPER})(?:, (.+))?\)\."
)
_CONFIGURATION = re.compile(rf"Published configuration \(({_NAMES})\): (\w+)")
_COMMAND = re.compile(
    rf"Published (command|evaluation) \(({_NAMES})(?:, branch (\w+))?(?:, N=(\d+))?(?:, (\d+) epochs)?\): (\S.*)"
)
_OURS = re.compile(
    r"Ours: ((?:CUDA_VISIBLE_DEVICES=\S+ )?(?:detrkit|accelerate launch .*-m detrkit) (?:train|eval) recipes/.+)"
)
_NO_FIGURE = re.compile(r"No figure is published(?:[:;] (.+))?\.")
OUR_DATA = (
    "205 images of blood cells",
    "458 images of nuclei",
    "40 aerial images",
    "10 photos of nuts",
    "21 photos of COCO",
)
_WITH_MASKS = (*METRICS_OF, "Cityscapes panoptic", "Cityscapes semantics", "LVIS v1 instances")
_DATA = "|".join((*_WITH_MASKS, "COCO", "Cityscapes", "LVIS v1", "SA-Det-100k", *OUR_DATA))
_TITLE = re.compile(rf"(.+?),? on (?:\d+ % of )?({_DATA})\b")
_OUR_COMMAND = re.compile(r" {3}(?=.*\bdetrkit (train|eval) )(.+)")
_STRICT = ("Published", "Ours", "No figure")


class HeaderError(Exception):
    """A header that cannot be understood; names file and line."""


@dataclass(frozen=True)
class Figure:
    """Published numbers by metric, in percent as published; ``detail``: what the source says besides its name."""

    values: dict[str, str]
    source: str
    detail: str


@dataclass(frozen=True)
class Command:
    """A published command and ours. ``kind``: "command" (training) or "evaluation"."""

    kind: str
    repository: str
    branch: str | None
    processes: int | None
    epochs: int | None
    theirs: str
    ours: str


@dataclass
class Header:
    """What the header of one recipe says."""

    path: Path
    title: str = ""
    data: str = ""
    figures: list[Figure] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)
    configurations: list[tuple[str, str]] = field(default_factory=list)
    no_figure: str | None = None
    measured: bool = False
    reconstruction: bool = False
    train: str = ""
    evaluate: str = ""

    @property
    def name(self) -> str:
        """The name that the command line takes: the path below ``recipes/`` without ending."""
        return self.path.relative_to(RECIPES).with_suffix("").as_posix()

    @property
    def link(self) -> str:
        """Target of a link from a page in ``docs/``."""
        return f"../{self.path.relative_to(ROOT).as_posix()}"


def headers() -> list[Header]:
    """The headers of all shipped experiments, sorted by path.

    Raises:
        HeaderError: a line that is not understood; the message names file and line.
    """
    paths = (path for path in RECIPES.rglob("*.yaml") if path.parent.name != "_base")
    return [read(path) for path in sorted(paths)]


def read(path: Path) -> Header:
    """The header of one recipe.

    Raises:
        HeaderError: a line that is not understood, or no title.
    """
    header = Header(path)
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line[1:].rstrip())
    _read_own_commands(header, lines)
    previous: re.Match[str] | None = None
    for number, line in enumerate(lines, start=1):
        text = line.removeprefix(" ")
        try:
            previous = _read_line(header, text, previous)
        except ValueError as error:
            raise HeaderError(f"{path}:{number}: {error}: {text}") from None
    title = _TITLE.match(lines[0].strip()) if lines else None
    if title is None:
        raise HeaderError(f"{path}:1: the first line has to say 'TITLE on DATA, …'")
    header.title, header.data = title[1], title[2]
    header.reconstruction = any("econstruction from the published description" in line for line in lines)
    return header


def _read_own_commands(header: Header, lines: list[str]) -> None:
    """The recipe's own training and evaluation commands."""
    for line in lines:
        if found := _OUR_COMMAND.fullmatch(line):
            if found[1] == "train":
                header.train = header.train or found[2]
            else:
                header.evaluate = header.evaluate or found[2].replace("CHECKPOINT", "X")


def _read_line(header: Header, text: str, previous: re.Match[str] | None) -> re.Match[str] | None:
    """Takes one line; returns its match if it is a published command, which the next line may answer."""
    if found := _FIGURE.fullmatch(text):
        header.figures.append(_figure(found))
    elif found := _CONFIGURATION.fullmatch(text):
        header.configurations.append((found[1], found[2]))
    elif found := _COMMAND.fullmatch(text):
        header.commands.append(_command(found, header.train if found[1] == "command" else header.evaluate))
        return found
    elif found := _OURS.fullmatch(text):
        if previous is None:
            raise ValueError("'Ours' answers the published command in the line above, and there is none")
        header.commands[-1] = _command(previous, found[1])
    elif found := _NO_FIGURE.fullmatch(text):
        header.no_figure = found[1] or ""
    elif text == "Measured figures: docs/results.md.":
        header.measured = True
    elif text.startswith(_STRICT):
        raise ValueError("not understood (docs/generator/headers.py says what is)")
    return None


def _figure(found: re.Match[str]) -> Figure:
    names, numbers = found[1].split(" / "), found[2].split(" / ")
    known = (METRICS, *METRICS_OF.values())
    if len(names) != len(numbers) or not any(set(names) <= set(row) for row in known):
        raise ValueError(f"as many numbers as metrics, of {' or of '.join(map(', '.join, known))}")
    return Figure(dict(zip(names, numbers, strict=True)), found[3].removesuffix(" repository"), found[4] or "")


def _command(found: re.Match[str], ours: str) -> Command:
    processes, epochs = (None if found[index] is None else int(found[index]) for index in (4, 5))
    return Command(found[1], found[2], found[3], processes, epochs, found[6], ours)
