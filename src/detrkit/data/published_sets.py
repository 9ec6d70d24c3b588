"""Published data sets: the archives of their owners, and the files and folders that these unpack to.

One table. :mod:`detrkit.data.inventory` compares it with a folder.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PUBLISHED_SETS", "Download", "Part", "PublishedSet", "Use"]


@dataclass(frozen=True, kw_only=True)
class Download:
    """An archive as its owner publishes it.

    Attributes:
        archive: its file name.
        size: as its owner states it.
        address: where it is.
        unpack_in: the folder to unpack it in, relative to that of the data set.
        within: the archive that holds this one; size and address are those of that one.
    """

    archive: str
    size: str
    address: str
    unpack_in: str = "."
    within: str = ""


@dataclass(frozen=True, kw_only=True)
class Use:
    """What a part of a data set is for. tasks: those that need it, of uses of which one is enough."""

    name: str
    tasks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Part:
    """A file, or a folder of files, of a data set.

    Attributes:
        places: where it may lie, relative to the folder of the data set, the usual place first.
        download: the archive that has it; None for what is made from other files.
        split: train, val or test; empty: all of them.
        use: what needs it; None: everything.
        ending: of the names of the files of a folder; empty for a single file.
        count: files of the folder, as published.
        listed_in: the first place of the files that list those of the folder, or of the folder that has their partners.
        below: files lie in sub-folders, as those of cities.
        mistaken: names of files and folders that people have instead (regular expressions), and what these are.
        made_from: the file that it is made from where it is absent.
    """

    places: tuple[str, ...]
    download: Download | None
    split: str
    use: Use | None = None
    ending: str = ""
    count: int = 0
    listed_in: tuple[str, ...] = ()
    below: bool = False
    mistaken: tuple[tuple[str, str], ...] = ()
    made_from: str = ""

    @property
    def path(self) -> str:
        """The usual place."""
        return self.places[0]


@dataclass(frozen=True, kw_only=True)
class PublishedSet:
    """A published data set.

    Attributes:
        title: what messages call it.
        page: its owner's page of downloads.
        parts: what it consists of, annotations first: of two problems, reading names the first.
        formats: the names of the formats that read it.
        folder: that its archive unpacks to, which is the folder of the data set.
        unused: folders and files that are not read, and why.
    """

    title: str
    page: str
    parts: tuple[Part, ...]
    formats: tuple[str, ...]
    folder: str = ""
    unused: tuple[tuple[str, str], ...] = ()


_COCO = "http://images.cocodataset.org"
_LVIS = "https://dl.fbaipublicfiles.com/LVIS"
_CITYSCAPES = "https://www.cityscapes-dataset.com"
_ADE20K = "http://data.csail.mit.edu/places/ADEchallenge"
_ANOTHER_YEAR = "is of another year, whose images are not those of 2017"

_PHOTOS = {
    "train": Download(archive="train2017.zip", size="18 GB", address=f"{_COCO}/zips/train2017.zip"),
    "val": Download(archive="val2017.zip", size="1 GB", address=f"{_COCO}/zips/val2017.zip"),
}
_PHOTO_COUNTS = {"train": 118_287, "val": 5_000}
_INSTANCES = Download(
    archive="annotations_trainval2017.zip",
    size="241 MB",
    address=f"{_COCO}/annotations/annotations_trainval2017.zip",
)
_PANOPTIC = Download(
    archive="panoptic_annotations_trainval2017.zip",
    size="821 MB",
    address=f"{_COCO}/annotations/panoptic_annotations_trainval2017.zip",
)
_WITH_INSTANCES = Use(name="boxes and instances", tasks=("det", "inst"))
_WITH_PANOPTIC = Use(name="panoptic segmentation", tasks=("pan", "sem"))


def _coco(split: str) -> tuple[Part, ...]:
    year = f"{split}2017"
    return (
        Part(
            places=(f"annotations/instances_{year}.json", f"instances_{year}.json"),
            download=_INSTANCES,
            split=split,
            mistaken=((rf"instances_{split}20(?!17)\d\d\.json", _ANOTHER_YEAR),),
            use=_WITH_INSTANCES,
        ),
        Part(
            places=(f"annotations/panoptic_{year}.json",),
            download=_PANOPTIC,
            split=split,
            mistaken=((rf"panoptic_{split}20(?!17)\d\d\.json", _ANOTHER_YEAR),),
            use=_WITH_PANOPTIC,
        ),
        Part(
            places=(f"annotations/panoptic_{year}",),
            download=Download(
                archive=f"panoptic_{year}.zip",
                size=_PANOPTIC.size,
                address=_PANOPTIC.address,
                unpack_in="annotations",
                within=_PANOPTIC.archive,
            ),
            split=split,
            ending=".png",
            count=_PHOTO_COUNTS[split],
            listed_in=(f"annotations/panoptic_{year}.json",),
            use=_WITH_PANOPTIC,
        ),
        Part(
            places=(year, f"images/{year}", f"images/{split}", split),
            download=_PHOTOS[split],
            split=split,
            ending=".jpg",
            count=_PHOTO_COUNTS[split],
            listed_in=(f"annotations/instances_{year}.json", f"annotations/panoptic_{year}.json"),
            mistaken=((f"{split}2014", _ANOTHER_YEAR),),
        ),
    )


def _lvis(split: str, size: str) -> Part:
    name = f"lvis_v1_{split}.json"
    return Part(
        places=(f"annotations/{name}", name),
        download=Download(archive=f"{name}.zip", size=size, address=f"{_LVIS}/{name}.zip", unpack_in="annotations"),
        split=split,
        mistaken=((rf"lvis_v0[._]?5_{split}.*\.json", "is of version 0.5, which has other classes"),),
    )


def _lvis_photos(split: str) -> Part:
    year = f"{split}2017"
    return Part(
        places=(year, f"images/{year}", f"../coco/{year}", f"../coco/images/{year}"),
        download=_PHOTOS[split],
        split="",  # each split has images of both folders
        ending=".jpg",
        count=_PHOTO_COUNTS[split],
        listed_in=("annotations/lvis_v1_train.json", "annotations/lvis_v1_val.json"),
    )


_LEFT = Download(
    archive="leftImg8bit_trainvaltest.zip", size="11 GB", address=f"{_CITYSCAPES}/file-handling/?packageID=3"
)
_FINE = Download(archive="gtFine_trainvaltest.zip", size="241 MB", address=f"{_CITYSCAPES}/file-handling/?packageID=1")
_COARSE = "has coarse outlines, which are not the labels of the benchmark"


def _cityscapes(split: str, count: int) -> tuple[Part, Part]:
    photos, labels = f"leftImg8bit/{split}", f"gtFine/{split}"
    return (
        Part(
            places=(labels,),
            download=_FINE,
            split=split,
            ending="_gtFine_instanceIds.png",
            count=count,
            listed_in=(photos,),
            below=True,
            mistaken=((r"gtCoarse|.*_gtCoarse_instanceIds\.png", _COARSE),),
        ),
        Part(
            places=(photos,),
            download=_LEFT,
            split=split,
            ending="_leftImg8bit.png",
            count=count,
            listed_in=(labels,),
            below=True,
        ),
    )


_SCENES = Download(archive="ADEChallengeData2016.zip", size="923 MB", address=f"{_ADE20K}/ADEChallengeData2016.zip")


def _ade20k(split: str, word: str, count: int) -> tuple[Part, Part]:
    photos, labels = f"images/{word}", f"annotations/{word}"
    return (
        Part(places=(labels,), download=_SCENES, split=split, ending=".png", count=count, listed_in=(photos,)),
        Part(places=(photos,), download=_SCENES, split=split, ending=".jpg", count=count, listed_in=(labels,)),
    )


PUBLISHED_SETS = {
    "coco": PublishedSet(
        title="COCO",
        page="https://cocodataset.org/#download",
        parts=(*_coco("train"), *_coco("val")),
        formats=("coco", "coco_panoptic"),
    ),
    "lvis": PublishedSet(
        title="LVIS",
        page="https://www.lvisdataset.org/dataset",
        parts=(
            _lvis("train", "about 350 MB"),
            _lvis("val", "about 64 MB"),
            Part(
                places=("annotations/lvis_v1_minival.json", "lvis_v1_minival.json"),
                download=None,
                split="val",
                made_from="annotations/lvis_v1_val.json",
            ),
            _lvis_photos("train"),
            _lvis_photos("val"),
        ),
        formats=("lvis",),
    ),
    "cityscapes": PublishedSet(
        title="Cityscapes",
        page=f"{_CITYSCAPES}/downloads/ (after registration)",
        parts=(
            *_cityscapes("train", 2_975),
            *_cityscapes("val", 500),
            Part(
                places=("leftImg8bit/test",),
                download=_LEFT,
                split="test",
                ending="_leftImg8bit.png",
                count=1_525,
                below=True,
                use=Use(name="predictions on the test split"),
            ),
        ),
        formats=("cityscapes",),
        unused=(("gtCoarse", _COARSE), ("leftImg8bit/train_extra", "has photos without fine labels")),
    ),
    "ade20k": PublishedSet(
        title="ADE20K",
        page="http://sceneparsing.csail.mit.edu",
        parts=(
            *_ade20k("train", "training", 20_210),
            *_ade20k("val", "validation", 2_000),
            Part(places=("objectInfo150.txt", "classes.json"), download=_SCENES, split="train"),
        ),
        formats=("ade20k",),
        folder="ADEChallengeData2016",
    ),
}
"""The data sets by the name that ``detrkit data check NAME DIR`` takes."""
