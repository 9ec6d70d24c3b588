"""Folders of class maps (PNG files) as people have them: which files belong together, and what their values mean."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detrkit.data.class_lists import VALUES, extent, read_class_list
from detrkit.data.class_maps import ignored_values
from detrkit.data.label_maps import read_class_png
from detrkit.data.listing import IMAGE_SUFFIXES
from detrkit.errors import DataError
from detrkit.structures import Categories, SemanticMap
from detrkit.structures.segment_maps import LabelArray, no_class

__all__ = ["ClassValues", "class_values", "matching_files", "values_of_results"]


@dataclass(frozen=True)
class ClassValues:
    """What the values in the files mean.

    Attributes:
        categories: the classes in the order of their values; their ids are the values.
        ignore: the value of pixels that do not count in the ground truth; None: all count.
        source: what messages call the list of classes.
    """

    categories: Categories
    ignore: int | None
    source: str

    def truth(self, path: Path) -> SemanticMap:
        """A map of ground truth; pixels of the value ``ignore`` have no class.

        Raises:
            DataError: the file cannot be read, or a value is no class.
        """
        return self._map(path, ignored=[] if self.ignore is None else [self.ignore])

    def found(self, path: Path) -> SemanticMap:
        """A map of results; pixels of the value ``ignore`` have no class, unless it is the value of a class.

        Raises:
            DataError: the file cannot be read, or a value is no class.
        """
        return self._map(
            path, ignored=[] if self.ignore is None or self.ignore in self.categories.ids else [self.ignore]
        )

    def _map(self, path: Path, ignored: list[int]) -> SemanticMap:
        return SemanticMap(self._labels(path, ignored), self.categories, path=path)

    def _labels(self, path: Path, ignored: list[int]) -> LabelArray:
        values = read_class_png(path)
        ids = self.categories.ids
        known = {*ids, *ignored, no_class(values)}
        pixels = np.bincount(values.reshape(-1))
        wrong = [value for value in np.flatnonzero(pixels).tolist() if value not in known]
        if wrong:
            shown = ", ".join(map(str, wrong[:5])) + (", …" if len(wrong) > 5 else "")
            raise DataError(
                f"{path}: value{'s' * (len(wrong) > 1)} {shown} ({pixels[wrong].sum()} pixels): no class of "
                f"{self.source} ({extent(ids)}) and not the value to ignore ({self.ignore}); mend the map, the "
                "classes or the value to ignore"
            )
        small = len(ids) <= np.iinfo(np.uint8).max
        label_of: LabelArray = np.zeros(VALUES, np.uint8) if small else np.zeros(VALUES, np.uint16)
        label_of[:] = no_class(label_of)
        label_of[ids] = np.arange(len(ids))
        label_of[ignored] = no_class(label_of)
        return label_of[values]


@dataclass(frozen=True)
class NamedValues(ClassValues):
    """Values in results that have a list of classes of their own.

    Attributes:
        truth_categories: the classes of the ground truth, which have the same names; others are wrong.
    """

    truth_categories: Categories

    def found(self, path: Path) -> SemanticMap:
        """As in :class:`ClassValues`, with the classes of the ground truth."""
        labels = super().found(path).labels
        place = {category.name: label for label, category in enumerate(self.truth_categories)}
        label_of = np.full(len(self.categories) + 1, no_class(labels), dtype=labels.dtype)
        for label, category in enumerate(self.categories):
            label_of[label] = place.get(category.name, no_class(labels))
        return SemanticMap(label_of[np.minimum(labels, len(self.categories))], self.truth_categories, path=path)


def class_values(source: object, ignore: int | None = None) -> ClassValues:
    """The classes that the values of class maps stand for.

    Args:
        source: a JSON file or its content, as ``detrkit.data.class_lists.read_class_list`` takes it.
        ignore: the value of pixels that do not count; None: as training has it, ``ignore_index`` of the list, else 255
            where that is no class.

    Raises:
        DataError: no such file, or another content.
    """
    classes = read_class_list(source)
    if ignore is None:
        ignore = next(iter(ignored_values(classes)), None)
    if ignore is None:
        return ClassValues(classes.categories, None, classes.source)
    if not 0 <= ignore < VALUES:
        raise DataError(f"the value to ignore must be between 0 and {VALUES - 1}, not {ignore}")
    names = {category.id: category.name for category in classes.categories}
    if ignore in names:
        warnings.warn(
            f"{classes.source}: {ignore} is the value of class '{names[ignore]}' and the value to ignore: its pixels "
            "do not count",
            stacklevel=3,
        )
    return ClassValues(classes.categories, ignore, classes.source)


def values_of_results(results: Path, truth: ClassValues) -> ClassValues:
    """What the values in results mean: the same as in the ground truth, unless they come with a list of their own.

    ``detrkit predict`` numbers classes from 0 and writes the list beside its folder of maps; the ground truth may have
    other numbers, such as ADE20K's, which begin with 1. Classes are then matched by name.

    Raises:
        DataError: the list has none of the classes of the ground truth.
    """
    path = results.parent / "classes.json"
    if results.name != "semantic" or not path.is_file():
        return truth
    classes = read_class_list(path)
    none = np.iinfo(np.uint8 if len(classes.categories) <= np.iinfo(np.uint8).max else np.uint16).max
    own = ClassValues(classes.categories, none, classes.source)
    names = [[category.name for category in values.categories] for values in (own, truth)]
    if own.categories.ids == truth.categories.ids and names[0] == names[1]:
        return truth
    if any(len(set(some)) < len(some) for some in names) or not set(names[0]) & set(names[1]):
        raise DataError(
            f"{path}: the classes of these results cannot be matched by name with those of {truth.source}: a name is "
            "there twice, or none is in both"
        )
    return NamedValues(own.categories, own.ignore, own.source, truth.categories)


def matching_files(truth: Path, results: Path) -> dict[Path, Path]:
    """The result of every map of the ground truth, matched by relative path without ending.

    Results may keep the ending of the image before their own (``photo.jpg.png``), as ``detrkit predict`` writes them
    where two images would share a name. Results without ground truth are left out with a warning.

    Raises:
        DataError: a folder or a result is missing, or two files have one name.
    """
    true_files, found_files = _by_stem(truth, "ground truth"), _by_stem(results, "results")
    longer: dict[str, list[str]] = {}
    for stem in found_files:
        if Path(stem).suffix.lower() in IMAGE_SUFFIXES:
            longer.setdefault(str(Path(stem).with_suffix("")), []).append(stem)
    pairs: dict[Path, Path] = {}
    missing = []
    for stem, path in true_files.items():
        stems = [stem] if stem in found_files else longer.get(stem, [])
        if len(stems) > 1:
            names = " and ".join(str(found_files[other]) for other in stems)
            raise DataError(f"{path}: has two results, {names}; keep the one that belongs to it")
        if stems:
            pairs[path] = found_files[stems[0]]
        else:
            missing.append(stem)
    if missing:
        lower = {stem.lower(): path for stem, path in found_files.items()}
        near = next((lower[stem.lower()] for stem in missing if stem.lower() in lower), None)
        hint = f"; {near} is there, but names must be equal in case" if near else ""
        raise DataError(
            f"{results}: {len(missing)} of {len(true_files)} maps of {truth} have no result, such as "
            f"{missing[0]}.png{hint}"
        )
    if len(pairs) < len(found_files):
        used = set(pairs.values())
        extra = [path for path in found_files.values() if path not in used]
        warnings.warn(f"{len(extra)} results have no ground truth and are left out, such as {extra[0]}", stacklevel=3)
    return pairs


def _by_stem(folder: Path, what: str) -> dict[str, Path]:
    """PNG files below a folder by their path in it without ending, sorted."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of {what}")
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() != ".png" or not path.is_file():
            continue
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if stem in files:
            raise DataError(f"{path}: {files[stem].name} has the same name up to its ending; keep one")
        files[stem] = path
    if not files:
        raise DataError(f"{folder}: has no PNG files; the {what} is one PNG class map for each image")
    return files
