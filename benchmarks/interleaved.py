"""Timing two checkouts in one run: one process per checkout, in turns, so that drift of the machine affects both."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Answer = Callable[[str], dict[str, float]]


def environment(checkout: Path, **more: str) -> dict[str, str]:
    """Environment of a process that imports the package of a checkout instead of the installed one.

    Raises:
        FileNotFoundError: the folder has no package.
    """
    source = (checkout / "src").resolve()
    if not (source / "detrkit").is_dir():
        raise FileNotFoundError(f"{checkout} is no checkout: there is no {source / 'detrkit'}")
    path = os.pathsep.join(filter(None, (str(source), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, **more}


@contextmanager
def side(checkout: Path, script: Path, arguments: list[str]) -> Iterator[Answer]:
    """Run ``script`` with the package of a checkout; yield a function that sends a question and returns the answer.

    The script reads questions from standard input and writes one line of JSON per question, see :func:`serve`.
    """
    command, env = [sys.executable, str(script), *arguments], environment(checkout)
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        questions, answers = process.stdin, process.stdout

        def ask(question: str) -> dict[str, float]:
            questions.write(question + "\n")
            questions.flush()
            line = answers.readline()
            if not line:
                raise RuntimeError(f"{checkout} ended before it answered '{question}': see above")
            answer: dict[str, float] = json.loads(line)
            return answer

        try:
            yield ask
        finally:
            questions.close()


def serve(answers: dict[str, Callable[[], Any]]) -> None:
    """Answer questions from standard input until it ends; all other prints go to standard error."""
    replies, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        replies.write(json.dumps(answers[line.strip()]()) + "\n")
        replies.flush()


@dataclass(frozen=True)
class Ratio:
    """Medians of both sides, and the median and quartiles of new / old over consecutive pairs."""

    old: float
    new: float
    ratio: float
    low: float
    high: float


def compare(old: list[float], new: list[float]) -> Ratio:
    """Ratio of values measured in pairs."""
    pairs = [b / a for a, b in zip(old, new, strict=True)]
    low, middle, high = statistics.quantiles(pairs, n=4, method="inclusive") if len(pairs) > 1 else pairs * 3
    return Ratio(statistics.median(old), statistics.median(new), middle, low, high)


def in_turns(old: Answer, new: Answer, question: str, pairs: int) -> Ratio:
    """Ask old, new, new, old, old, … for ``{"value": …}``, so that neither is always first in its pair."""
    values: dict[str, list[float]] = {"old": [], "new": []}
    sides = [("old", old), ("new", new)]
    for pair in range(pairs):
        for name, ask in sides if pair % 2 == 0 else reversed(sides):
            values[name].append(ask(question)["value"])
    return compare(values["old"], values["new"])
