"""What is there of a published data set, file by file, and what is missing, packed or in the wrong place.

Folders are listed once and no image is opened, so that it takes seconds on COCO. Does not import torch.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from detrkit.data.listing import IMAGE_SUFFIXES, is_hidden
from detrkit.data.published_sets import PUBLISHED_SETS, Download, Part, PublishedSet
from detrkit.errors import DataError, did_you_mean, first_few

__all__ = ["PartState", "State", "explanation", "inventory", "names_archive", "published_set"]

State = Literal["here", "elsewhere", "incomplete", "packed", "misplaced", "missing", "not needed", "not read"]

_FINE = ("here", "elsewhere", "not needed", "not read")
_KINDS = {".jpg": "images", ".png": "PNG files"}
_DEPTH = 5  # of folders to list: leftImg8bit_trainvaltest/leftImg8bit/train/ulm
_NAME = re.compile(rb'"(?:file_name|coco_url)"\s*:\s*("(?:[^"\\]|\\.)*")')


@dataclass(frozen=True, kw_only=True)
class PartState:
    """The state of one part of a data set.

    Attributes:
        path: where it should be, relative to the folder of the data set.
        state: "here"; "elsewhere" (images that are found by name); "incomplete", "packed", "misplaced", "missing",
            which are problems; "not needed"; or "not read" (what the data set has beside its parts).
        message: one line on it.
        split: train, val or test; empty: all of them.
        download: the archive that has it.
    """

    path: str
    state: State
    message: str
    split: str = ""
    download: Download | None = None

    @property
    def problem(self) -> bool:
        """Whether something has to be done."""
        return self.state not in _FINE


def published_set(name: str) -> PublishedSet:
    """A data set of ``PUBLISHED_SETS``.

    Raises:
        DataError: there is none of this name.
    """
    if name.lower() not in PUBLISHED_SETS:
        raise DataError(
            f"'{name}' is no published data set.{did_you_mean(name, PUBLISHED_SETS)} Without a name: detrkit data "
            "check DIR"
        )
    return PUBLISHED_SETS[name.lower()]


def inventory(name: str, root: Path, *, task: str | None = None) -> list[PartState]:
    """The state of each part of a published data set in a folder.

    Args:
        name: of the data set, a key of ``PUBLISHED_SETS``.
        root: its folder.
        task: det, inst, sem or pan: what is needed for it; None: what is needed for what is there.

    Raises:
        DataError: no data set of this name, or no such folder.
    """
    found = published_set(name)
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "no such data folder"
        raise DataError(f"{root}: {what}")
    if found.folder and (root / found.folder).is_dir():
        root = root / found.folder
    return _Inventory(found, root).states(task)


def explanation(root: Path, *, format: str | None = None, split: str | None = None) -> str | None:
    """Why a folder of a published data set cannot be read, in one line, or None: it is none, or has all its parts.

    Args:
        root: the folder.
        format: what it was read as; None: not recognised.
        split: what was read; None: all splits.
    """
    if not root.is_dir():
        return None
    candidates = [(name, one) for name, one in PUBLISHED_SETS.items() if format is None or format in one.formats]
    counted = [(_Inventory(one, root), name) for name, one in candidates]
    marks = [(parts.marks(), parts, name) for parts, name in counted]
    most = max((number for number, _, _ in marks), default=0)
    if not most:
        return None
    parts, name = next((parts, name) for number, parts, name in marks if number == most)
    task = "pan" if format == "coco_panoptic" else None
    concerned = (one for one in parts.states(task) if split is None or one.split in ("", split))
    problems = [one for one in concerned if one.problem]
    if not problems:
        return None
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return (
        f"{parts.published.title} is not complete: {problems[0].message}{more}. All files: detrkit data check {name} "
        f"{root}"
    )


def names_archive(folder: str) -> bool:
    """Whether a folder has the name of an archive of a published data set without its ending, and is not that set."""
    sets = [one for one in PUBLISHED_SETS.values() if one.folder != folder]
    downloads = (part.download for one in sets for part in one.parts if part.download)
    return any(folder == PurePosixPath(name).stem for download in downloads for name in _archives(download))


def _archives(download: Download) -> tuple[str, ...]:
    return (download.archive, download.within) if download.within else (download.archive,)


class _Inventory:
    """A published data set and the files of a folder."""

    def __init__(self, published: PublishedSet, root: Path) -> None:
        self.published = published
        self.root = root
        self.folders = _listing(root, "")
        outside = {place.split("/")[1] for part in published.parts for place in part.places if place.startswith("../")}
        for name in sorted(outside - {root.resolve().name}):
            self.folders |= _listing(root.resolve().parent / name, f"../{name}/")
        self.places = {part.path: self._place(part) for part in published.parts}
        self.names: dict[str, frozenset[str]] = {}

    def marks(self) -> int:
        """How many parts and archives of the data set the folder has."""
        beside = {name for folder in ("", "annotations", "images") for name in self.folders.get(folder, ())}
        archives = {one for part in self.published.parts if part.download for one in _archives(part.download)}
        unpacked = sum(PurePosixPath(name).stem in self.folders for name in archives)
        usual = [part.path for part in self.published.parts]
        placed = sum(path in self.folders or self.places[path] == path for path in usual)
        return len(archives & beside) + unpacked + placed

    def states(self, task: str | None) -> list[PartState]:
        """The state of each part."""
        states = [self._state(part) for part in self.published.parts]
        present = {
            part.use for part, state in zip(self.published.parts, states, strict=True) if state.state != "missing"
        }
        uses = list(dict.fromkeys(part.use for part in self.published.parts if part.use))
        needed = {use for use in uses if use in present or (task is not None and task in use.tasks)}
        choices = [use for use in uses if use.tasks]
        if choices and not needed & {*choices}:
            needed.add(choices[0])
        found = []
        for part, state in zip(self.published.parts, states, strict=True):
            if part.use is not None and part.use not in needed and state.state == "missing":
                source = "" if part.download is None else f"; {_source(part.download)}"
                message = f"{part.path}: not there, and needed for {part.use.name} alone{source}"
                state = self._said(part, "not needed", message)
            found.append(state)
        for place, why in self.published.unused:
            if place in self.folders:
                found.append(PartState(path=place, state="not read", message=f"{place}: is not read: it {why}"))
        return found

    def _state(self, part: Part) -> PartState:
        place = self.places[part.path]
        if place is None:
            return self._absent(part)
        return self._folder(part, place) if part.ending else self._file(part, place)

    def _file(self, part: Part, place: str) -> PartState:
        if place.endswith(".json") and not _ends(self.root / place):
            message = f"{place}: is cut off or empty; {self._again(part)}"
            return self._said(part, "incomplete", message)
        return self._said(part, "here", f"{place}: here")

    def _folder(self, part: Part, place: str) -> PartState:
        present, expected = self._names(part), self._expected(part)
        lacking = expected - present
        listed = self._listed(part)
        what = _KINDS.get(part.ending, "files")
        if not lacking:
            of = f" ({part.count:,} are published)" if len(present) < part.count else ""
            return self._said(part, "here", f"{place}: {len(present):,} {what}{of}")
        other = self._elsewhere(part, lacking)
        if other:
            return self._said(part, "elsewhere", f"{place}: {other}")
        cities = {str(PurePosixPath(name).parent) for name in expected} - {
            str(PurePosixPath(name).parent) for name in present
        }
        whole = f", with no {what} of {first_few(sorted(cities), 5)}" if part.below and cities else ""
        message = (
            f"{place}: {len(lacking):,} of {len(expected):,} {what} missing, compared with {listed}, such as "
            f"{min(lacking)}{part.ending * (part.ending != '.jpg')}{whole}; {self._again(part)}"
        )
        return self._said(part, "incomplete", message)

    def _absent(self, part: Part) -> PartState:
        """The state of a part that is at none of its places."""
        other = self._elsewhere(part, self._expected(part)) if part.ending == ".jpg" else ""
        if other:
            return self._said(part, "elsewhere", f"{part.path}: {other}")
        misplaced = self._misplaced(part)
        if misplaced:
            message = f"{part.path}: lies in {misplaced} instead; move it to {self.root / part.path}"
            return self._said(part, "misplaced", message)
        if part.made_from:
            source = self.places.get(part.made_from)
            name = PurePosixPath(part.made_from).name
            if source is not None:
                return self._said(part, "here", f"{part.path}: made from {name} where a recipe asks for it")
            return self._said(part, "not needed", f"{part.path}: is made from {name}, once that is there")
        assert part.download is not None
        instead = self._mistaken(part)
        archive = self._archive(part.download.archive) or (part.download.within and self._archive(part.download.within))
        if archive:
            where = self._target(part.download if PurePosixPath(archive).name == part.download.archive else None)
            broken = (
                ""
                if zipfile.is_zipfile(self.root / archive)
                else f"; the archive is not whole, so download it again: {_source(part.download)}"
            )
            message = f"{part.path}: not unpacked yet; {instead}unpack {self.root / archive} in {where}{broken}"
            return self._said(part, "packed", message)
        return self._said(part, "missing", f"{part.path}: missing; {instead}{self._get(part.download)}")

    def _get(self, download: Download) -> str:
        """What to download, and where to unpack it."""
        return (
            f"download {_source(download)} and unpack it in {self._target(download if not download.within else None)}"
            + (f", then {download.archive} in {self._target(download)}" if download.within else "")
        )

    def _again(self, part: Part) -> str:
        """How to complete a part."""
        if part.download is None:
            return "delete it"
        archive = self._archive(part.download.archive)
        what = str(self.root / archive) if archive else _source(part.download)
        return f"unpack {what} again in {self._target(part.download)}"

    def _target(self, download: Download | None) -> Path:
        return self.root if download is None else self.root / download.unpack_in

    def _said(self, part: Part, state: State, message: str) -> PartState:
        return PartState(path=part.path, state=state, message=message, split=part.split, download=part.download)

    def _place(self, part: Part) -> str | None:
        """Where a part is, relative to the root, or None."""
        if part.ending:
            return next((place for place in part.places if any(self._files(part, place))), None)
        return next((place for place in part.places if self._is_file(place)), None)

    def _is_file(self, place: str) -> bool:
        folder, _, name = place.rpartition("/")
        return name in self.folders.get(folder, ())

    def _files(self, part: Part, place: str) -> Iterator[str]:
        """The files of a folder that belong to a part, relative to the folder."""
        for folder, names in self.folders.items():
            if folder == place or (part.below and folder.startswith(f"{place}/")):
                inner = f"{folder[len(place) + 1 :]}/" if folder != place else ""
                for name in names:
                    if name.endswith(part.ending) or (part.ending == ".jpg" and _is_image(name)):
                        yield inner + name

    def _names(self, part: Part) -> frozenset[str]:
        """The files of a part without their endings."""
        place = self.places[part.path]
        if part.path not in self.names:
            found = self._files(part, place) if place is not None else ()
            self.names[part.path] = frozenset(_stem(name, part.ending) for name in found)
        return self.names[part.path]

    def _expected(self, part: Part) -> frozenset[str]:
        """The files that a folder should have, without their endings, by the lists of other parts."""
        others = {PurePosixPath(one.path).name for one in self.published.parts if one.ending and one is not part}
        parts = {one.path: one for one in self.published.parts}
        found: set[str] = set()
        for path in part.listed_in:
            place = self.places[path]
            if place is None:
                continue
            if parts[path].ending:
                found |= self._names(parts[path])
                continue
            listed = [PurePosixPath(name) for name in _listed_names(self.root / place)]
            typical = [name for name in listed if name.suffix.lower() == part.ending] or listed
            found |= {name.stem for name in typical if name.parent.name not in others}
        return frozenset(found)

    def _listed(self, part: Part) -> str:
        return " or ".join(place for path in part.listed_in if (place := self.places[path]) is not None)

    def _elsewhere(self, part: Part, names: frozenset[str]) -> str:
        """Where photos are that are found by their name, or nothing."""
        if not names or part.ending != ".jpg":
            return ""
        at = {
            PurePosixPath(name).stem: folder or "."
            for folder, files in self.folders.items()
            for name in files
            if _is_image(name) and not folder.startswith("annotations")
        }
        if not names <= at.keys():
            return ""
        folders = ", ".join(sorted({at[name] for name in names}))
        return (
            f"{len(names):,} images that {self._listed(part)} lists here lie in {folders} instead, such as "
            f"{min(names)}; reading finds them by name, but is quicker where they are moved here"
        )

    def _misplaced(self, part: Part) -> str | None:
        """Another place of a file or folder of the same name."""
        tail = part.path if part.below else PurePosixPath(part.path).name
        if part.ending:
            places = (folder for folder in self.folders if f"/{folder}".endswith(f"/{tail}"))
            return next((place for place in places if any(self._files(part, place))), None)
        return next((f"{folder}/{tail}".lstrip("/") for folder, names in self.folders.items() if tail in names), None)

    def _mistaken(self, part: Part) -> str:
        """What is there in place of a part."""
        for pattern, why in part.mistaken:
            names = {name for names in self.folders.values() for name in names} | {*self.folders}
            found = min((name for name in names if re.fullmatch(pattern, name)), default=None)
            if found is not None:
                return f"{found} {why}; "
        return ""

    def _archive(self, name: str) -> str | None:
        """The place of an archive that was downloaded."""
        return next((f"{folder}/{name}".lstrip("/") for folder, names in self.folders.items() if name in names), None)


def _source(download: Download) -> str:
    """An archive, its size and its address."""
    archive = download.within or download.archive
    return f"{archive} ({download.size}, {download.address})"


def _listing(root: Path, prefix: str) -> dict[str, list[str]]:
    """The names of the files of each folder below ``root``, by its path relative to it; links are followed."""
    found: dict[str, list[str]] = {}
    for parent, folders, names in os.walk(root, followlinks=True):
        relative = Path(parent).relative_to(root)
        within = "" if relative == Path() else relative.as_posix()
        depth = len(relative.parts)
        folders[:] = sorted(name for name in folders if not is_hidden(name) and depth < _DEPTH)
        found[(prefix + within).rstrip("/")] = [name for name in names if not is_hidden(name)]
    return found


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _stem(name: str, ending: str) -> str:
    return name.removesuffix(ending) if name.endswith(ending) else os.path.splitext(name)[0]


def _ends(path: Path) -> bool:
    """Whether a JSON file has its end."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 64))
            return file.read().rstrip().endswith((b"}", b"]"))
    except OSError:
        return False


def _listed_names(path: Path) -> Iterator[str]:
    """The file names and addresses of images in a COCO file, which is not parsed: that takes ten times as long."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for match in _NAME.finditer(content):
                yield json.loads(match[1])
    except (OSError, ValueError):  # an empty file, or one in another encoding
        return
