"""Catalogue of the public checkpoint files of the published repositories: address, model, data and published AP.

All values are from the source repository, at its last version: names, addresses and AP from its README, and addresses
from hubconf.py where the README has none. Unpublished values are None.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from detrkit.errors import CheckpointError, did_you_mean
from detrkit.models.presets import PRESETS

__all__ = ["CATALOGUE", "OfficialFile", "find_official", "official_file_at"]

_GITHUB = "https://github.com"


@dataclass(frozen=True, kw_only=True)
class OfficialFile:
    """One published file."""

    name: str
    """Name for ``detrkit weights pull``."""
    model: str
    """Registry name of the model."""
    data: str
    """Training data set; it determines the class slots."""
    epochs: int | None
    """Training length as published."""
    ap: float | None
    """Box AP on the validation set in percent, as published."""
    source: str
    """URL of the repository."""
    options: Mapping[str, object] = field(default_factory=dict)
    """Options for ``create_model``."""
    address: str | None = None
    """URL of the file; None where it has to be downloaded by hand from ``page``."""
    page: str | None = None
    """Web page of a file that has no direct URL."""
    file: str | None = None
    """File name."""
    size: int | None = None
    """Bytes."""
    mib: int | None = None
    """Size in MiB as the README rounds it."""
    sha256: str | None = None
    """SHA-256, or its first digits."""
    licence: str = "Apache-2.0"
    note: str = ""

    @property
    def family(self) -> str:
        """The family of the model, as in ``detrkit models``."""
        return PRESETS[self.model].family

    @property
    def how_to_get(self) -> str:
        """What a user has to do to get the file, as the end of a sentence."""
        if self.address is not None:
            return f"'detrkit weights pull {self.name}' fetches it"
        return f"download it by hand from {self.page}, then 'detrkit weights pull {self.name} --from FILE'"


def _detr(name: str, file: str, ap: float, mib: int, **more: Any) -> OfficialFile:
    """A file of the DETR model zoo; file names end in the first 8 digits of the SHA-256 (convention of torch.hub)."""
    values: dict[str, Any] = {"data": "COCO", "epochs": 500, **more}
    return OfficialFile(
        name=name,
        model=name,
        file=file,
        address=f"https://dl.fbaipublicfiles.com/detr/{file}",
        sha256=file.removesuffix(".pth").rpartition("-")[2],
        ap=ap,
        mib=mib,
        source=f"{_GITHUB}/facebookresearch/detr",
        **values,
    )


# facebookresearch/detr README.md: model zoo and panoptic models (commit b0eca4e). The hashes: its hubconf.py loads
# every file with check_hash=True. Exact size of the first: openvinotoolkit/open_model_zoo, detr-resnet50/model.yml.
_MASKS = {"data": "COCO panoptic", "epochs": None}
_DETR = (
    _detr("detr_r50", "detr-r50-e632da11.pth", 42.0, 159, size=166_618_694),
    _detr("detr_r50_dc5", "detr-r50-dc5-f0fb7ef5.pth", 43.3, 159),
    _detr("detr_r101", "detr-r101-2c7b67e5.pth", 43.5, 232),
    _detr("detr_r101_dc5", "detr-r101-dc5-a2e86def.pth", 44.9, 232),
    _detr("detr_r50_panoptic", "detr-r50-panoptic-00ce5173.pth", 38.8, 165, **_MASKS, note="AP of masks 31.1, PQ 43.4"),
    _detr(
        "detr_r50_dc5_panoptic",
        "detr-r50-dc5-panoptic-da08f1b1.pth",
        40.2,
        165,
        **_MASKS,
        note="AP of masks 31.9, PQ 44.6",
    ),
    _detr(
        "detr_r101_panoptic", "detr-r101-panoptic-40021d53.pth", 40.1, 237, **_MASKS, note="AP of masks 33.0, PQ 45.1"
    ),
)


def _conditional(name: str, file: str, ap: float) -> OfficialFile:
    """A file of the Conditional DETR model zoo."""
    return OfficialFile(
        name=name,
        model=name,
        data="COCO",
        epochs=50,
        ap=ap,
        source=f"{_GITHUB}/Atten4Vis/ConditionalDETR",
        address=f"{_GITHUB}/DeppMeng/ConditionalDETR/releases/download/v1.0/{file}",
        file=file,
        note="no hash is published",
    )


# Atten4Vis/ConditionalDETR README.md (AP; commit 8ea7c3f) and hubconf.py (addresses; commit 970ac7f).
_CONDITIONAL = (
    _conditional("conditional_detr_r50", "ConditionalDETR_r50_epoch50.pth", 41.0),
    _conditional("conditional_detr_r50_dc5", "ConditionalDETR_r50dc5_epoch50.pth", 43.7),
    _conditional("conditional_detr_r101", "ConditionalDETR_r101_epoch50.pth", 42.8),
    _conditional("conditional_detr_r101_dc5", "ConditionalDETR_r101dc5_epoch50.pth", 45.0),
)


def _by_hand(repository: str, model: str, data: str, epochs: int, ap: float, folder: str) -> OfficialFile:
    """A file of the DE-DETR authors on Google Drive; it has the name of its recipe."""
    return OfficialFile(
        name=f"{model}_{data.lower()}_{epochs}ep",
        model=model,
        # Cityscapes: ids 1 to 8, slot 0 unused
        options={"num_classes": 9} if data == "Cityscapes" else {},
        data=data,
        epochs=epochs,
        ap=ap,
        source=f"{_GITHUB}/encounter1997/{repository}",
        page=f"https://drive.google.com/drive/folders/{folder}",
        note="a single run" if data == "Cityscapes" else "",
    )


# encounter1997/DE-DETRs README.md (commit eb72319) and encounter1997/DE-CondDETR README.md (commit c16c018): folders
# with logs and weights. The baselines are DETR and Conditional DETR as those authors trained them.
_DE_DETRS = tuple(
    _by_hand(*row)
    for row in (
        ("DE-DETRs", "detr_r50", "Cityscapes", 300, 11.7, "1P1h95ZK3FB9DEDt7N045uDv7myZe4UR0"),
        ("DE-DETRs", "de_detr_r50", "Cityscapes", 50, 22.2, "1CyBraz-cjkpwYBvZ1FIfRAjpYT_ODnNf"),
        ("DE-DETRs", "dela_detr_r50", "Cityscapes", 50, 25.2, "1SpoCU01LYRAs5sLvg4VUrWA1lNm-KTS6"),
        ("DE-DETRs", "detr_r50", "COCO", 50, 33.6, "1-5xHV24ZYSY2v0kKWKq3tvM8lQ1cHp0b"),
        ("DE-DETRs", "de_detr_r50", "COCO", 50, 40.2, "14g4pjeGAotarT-WDMqH207s3ovKKPb3Z"),
        ("DE-DETRs", "dela_detr_r50", "COCO", 50, 41.9, "1LtsTdihAOzojHsjpJmGkDmCqB0pRFCtv"),
        ("DE-CondDETR", "conditional_detr_r50", "Cityscapes", 50, 12.5, "1J7gFZJlAuf6jaKYrrzZjh2qnU0FIFR1z"),
        ("DE-CondDETR", "de_conditional_detr_r50", "Cityscapes", 50, 27.2, "18yEPHxHeNApcDsK4xOz015ff5fhSjILz"),
        ("DE-CondDETR", "dela_conditional_detr_r50", "Cityscapes", 50, 29.8, "1LvhEo-mnxPKQylGWqtGhFmWQjzwZNKyF"),
        ("DE-CondDETR", "conditional_detr_r50", "COCO", 50, 40.2, "158hBEQ2sa2ow_vpDpPNu9ZEalja1Fhns"),
        ("DE-CondDETR", "de_conditional_detr_r50", "COCO", 50, 41.7, "1qy1H6ZOg7uKNZvk9NDaZqKsorR28kzOo"),
        ("DE-CondDETR", "dela_conditional_detr_r50", "COCO", 50, 43.0, "13_P1blcs-HG8YbxA4BHtU8GObXIb9BuZ"),
    )
)


def _drive(repository: str, model: str, epochs: int, ap: float, page: str, file: str | None = None) -> OfficialFile:
    """A COCO checkpoint on Google Drive; it has the name of its recipe."""
    return OfficialFile(
        name=f"{model}_coco_{epochs}ep",
        model=model,
        data="COCO",
        epochs=epochs,
        ap=ap,
        source=f"{_GITHUB}/{repository}",
        page=f"https://drive.google.com/{page}",
        file=file,
    )


# fundamentalvision/Deformable-DETR README.md (commit c968389): one file per row.
_DEFORMABLE = tuple(
    _drive("fundamentalvision/Deformable-DETR", f"deformable_detr_r50{kind}", 50, ap, f"file/d/{file}/view")
    for kind, ap, file in (
        ("_single_scale", 39.4, "1WEjQ9_FgfI5sw5OZZ4ix-OKk-IJ_-SDU"),
        ("_single_scale_dc5", 41.5, "1m_TgMjzH7D44fbA-c_jiBZ-xf-odxGdk"),
        ("", 44.5, "1nDWZWHuRwtwGden77NLM9JoWe-YisJnA"),
        ("_refine", 46.2, "1JYKyRYzUH7uo9eVfDaVCiaIGZb5YTCuI"),
        ("_two_stage", 46.9, "15I03A7hNTpwuLNdfuEmW9_taZMNVssEp"),
    )
)

# IDEA-Research/DINO README.md (commit faa8520): one folder for all files; one file name is given.
_DINO = tuple(
    _drive(
        "IDEA-Research/DINO",
        f"dino_{backbone}_{levels}scale",
        epochs,
        ap,
        "drive/folders/1qD5m1NmK0kjE5hh-G17XUX751WsEG-h_",
        "checkpoint0011_4scale.pth" if (backbone, levels, epochs) == ("r50", 4, 12) else None,
    )
    for backbone, levels, epochs, ap in (
        ("r50", 4, 12, 49.0),
        ("r50", 5, 12, 49.4),
        ("r50", 4, 24, 50.4),
        ("r50", 5, 24, 51.3),
        ("r50", 4, 36, 50.9),
        ("r50", 5, 36, 51.2),
        ("swin_l", 4, 12, 56.8),
        ("swin_l", 5, 12, 57.3),
        ("swin_l", 4, 36, 58.0),
        ("swin_l", 5, 36, 58.5),
    )
)


def _release(
    repository: str, model: str, file: str, ap: float | None, epochs: int, name: str, **more: Any
) -> OfficialFile:
    """A release file (release/name.pth) of Relation-DETR or Salience-DETR; it has the name of its recipe."""
    values: dict[str, Any] = {"data": "COCO", "note": "no hash is published", **more}
    return OfficialFile(
        name=name,
        model=model,
        epochs=epochs,
        ap=ap,
        source=f"{_GITHUB}/xiuqhou/{repository}",
        address=f"{_GITHUB}/xiuqhou/{repository}/releases/download/{file}",
        file=file.rpartition("/")[2],
        **values,
    )


# xiuqhou/Relation-DETR README.md (commit 0c16451), "Model ZOO" and "Other DETR variants", and xiuqhou/Salience-DETR
# README.md (commit 0812780), "Model Zoo". There is no file of Deformable-DETR++. The number of classes of
# other data sets is read from the file.
_RELATION = (
    *(
        _release("Relation-DETR", model, f"v1.0.1/{config}_resnet50_800_1333_coco_1x.pth", ap, 12, model)
        for model, config, ap in (
            ("dab_deformable_detr_pp_r50", "dab_def_detr_pp", 48.3),
            ("dn_deformable_detr_pp_r50", "dn_def_detr_pp", 47.3),
            ("dino_pp_r50", "dino_pp", 50.1),
        )
    ),
    *(
        _release(
            repository,
            f"{family}_{ours}",
            f"v1.0.0/{family}_{theirs}_800_1333_coco_{epochs // 12}x.pth",
            ap,
            epochs,
            f"{family}_{ours}_coco_{epochs}ep",
        )
        for repository, family, ours, theirs, epochs, ap in (
            ("Relation-DETR", "relation_detr", "r50", "resnet50", 12, 51.7),
            ("Relation-DETR", "relation_detr", "r50", "resnet50", 24, 52.1),
            ("Relation-DETR", "relation_detr", "swin_l", "swin_l", 12, 57.8),
            ("Relation-DETR", "relation_detr", "swin_l", "swin_l", 24, 58.1),
            ("Salience-DETR", "salience_detr", "r50", "resnet50", 12, 50.0),
            ("Salience-DETR", "salience_detr", "r50", "resnet50", 24, 51.2),
            ("Salience-DETR", "salience_detr", "convnext_l", "convnext_l", 12, 54.2),
            ("Salience-DETR", "salience_detr", "swin_l", "swin_l", 12, 56.5),
            ("Salience-DETR", "salience_detr", "focalnet_l", "focalnet_large_lrf", 12, 57.3),
        )
    ),
    _release(
        "Relation-DETR",
        "relation_detr_focalnet_l",
        "v1.0.0/relation_detr_focalnet_large_lrf_fl4_1200_2000_o365_4e-coco_2x.pth",
        63.5,
        24,
        "relation_detr_focalnet_l_1200_2000_coco_24ep",
        options={"denoising_queries": 1000, "eval_short_side": 1200, "eval_max_side": 2000},
        note="no hash is published; after 4 epochs on Objects365",
    ),
    _release(
        "Relation-DETR",
        "relation_detr_focalnet_l",
        "v1.0.0/relation_detr_focalnet_large_lrf_fl4_800_1333_o365_4e.pth",
        None,
        4,
        "relation_detr_focalnet_l_objects365_4ep",
        data="Objects365",
        note="neither AP nor hash is published",
    ),
    _release(
        "Relation-DETR",
        "relation_detr_r50",
        "v1.0.0/relation_detr_resnet50_800_1333_sa_det_100k_1x.pth",
        45.0,
        12,
        "relation_detr_r50_sa_det_100k_12ep",
        data="SA-Det-100k",
    ),
)

CATALOGUE: Mapping[str, OfficialFile] = {
    item.name: item for item in (*_DETR, *_CONDITIONAL, *_DE_DETRS, *_DEFORMABLE, *_DINO, *_RELATION)
}


def find_official(name: str) -> OfficialFile:
    """The published file with this name.

    Raises:
        CheckpointError: no such name; the message names the nearest.
    """
    if name not in CATALOGUE:
        raise CheckpointError(
            f"there is no published checkpoint called '{name}'.{did_you_mean(name, CATALOGUE)} "
            "('detrkit weights list' shows them)"
        )
    return CATALOGUE[name]


def official_file_at(address: str) -> OfficialFile | None:
    """The published file at this address; None where the catalogue has none."""
    return next((item for item in CATALOGUE.values() if item.address == address), None)
