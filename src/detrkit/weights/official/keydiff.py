"""Difference between the tensors of a model and those of a file."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from detrkit.errors import first_few

__all__ = ["IGNORED", "KeyDiff", "KeyGroup", "Mismatch", "compare"]

# Not weights: leftovers of profilers and other frameworks, and constants of the architecture.
IGNORED = ("_classes_", "total_params", "total_ops", "num_batches_tracked", "relative_position_index")


@dataclass(frozen=True)
class Mismatch:
    """A tensor whose shape differs: our key, its name in the file, the shape in the file and in the model."""

    key: str
    name: str
    given: tuple[int, ...]
    wanted: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.given} instead of {self.wanted}"


@dataclass(frozen=True)
class KeyGroup:
    """Names of one kind with a common prefix (``*`` for numbers): their count and an example."""

    kind: str
    prefix: str
    count: int
    example: str


@dataclass(frozen=True)
class KeyDiff:
    """Names missing in the file, names unknown to the model, and shapes that differ. False where everything fits."""

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[Mismatch, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.mismatched)

    def __len__(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.mismatched)

    def without(self, allowed: Iterable[Mismatch], *, missing: Collection[str] = ()) -> KeyDiff:
        """A copy without the allowed mismatches and missing names."""
        remaining = set(self.mismatched) - set(allowed)
        return replace(
            self,
            missing=tuple(name for name in self.missing if name not in missing),
            mismatched=tuple(item for item in self.mismatched if item in remaining),
        )

    def _kinds(self) -> list[tuple[str, list[str], list[str]]]:
        """(kind, names, text for each name) for every kind that occurs."""
        shown = [str(item) for item in self.mismatched]
        kinds = [
            ("missing", list(self.missing), list(self.missing)),
            ("unexpected", list(self.unexpected), list(self.unexpected)),
            ("mismatched", [item.name for item in self.mismatched], shown),
        ]
        return [kind for kind in kinds if kind[1]]

    def summary(self) -> str:
        """One line: ``2 missing (a, b); 1 unexpected (c)``."""
        return "; ".join(f"{len(shown)} {kind} ({first_few(sorted(shown), 3)})" for kind, _, shown in self._kinds())

    def groups(self) -> list[KeyGroup]:
        """Group the names by kind and prefix, the largest groups of each kind first."""
        groups = []
        for kind, names, shown in self._kinds():
            found: dict[str, list[str]] = {}
            for name, text in zip(names, shown, strict=True):
                prefix = re.sub(r"(?<=\.)\d+(?=\.)", "*", name).rpartition(".")[0] or name
                found.setdefault(prefix, []).append(text)
            ordered = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
            groups += [KeyGroup(kind, prefix, len(texts), min(texts)) for prefix, texts in ordered]
        return groups


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without trailing dimensions of size 1."""
    return _without_ones(shape[:-1]) if shape[-1:] == (1,) else shape


def compare(names: Mapping[str, list[str]], own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> KeyDiff:
    """Compare the tensors of a model with those of a file by name and shape; trailing dimensions of size 1 are ignored.

    Args:
        names: our key -> accepted names in the file, one of which must be present.
        own: tensors of the model.
        given: tensors of the file.
    """
    unused = {name for name in given if not name.endswith(IGNORED)}
    missing: list[str] = []
    mismatched: list[Mismatch] = []
    for key, accepted in names.items():
        present = [name for name in accepted if name in given]
        unused.difference_update(present)
        if not present:
            if not key.endswith(IGNORED):
                missing.append(accepted[0])
            continue
        theirs, ours = tuple(given[present[0]].shape), tuple(own[key].shape)
        if _without_ones(theirs) != _without_ones(ours):  # a 1x1 convolution equals a linear layer
            mismatched.append(Mismatch(key, present[0], theirs, ours))
    return KeyDiff(tuple(missing), tuple(sorted(unused)), tuple(mismatched))
