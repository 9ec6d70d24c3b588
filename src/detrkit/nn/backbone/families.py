"""Options of timm networks, per family, so that they accept images of any size and match the papers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Family", "family_of"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of timm networks."""

    name: str
    """Name of the family; several entries can share it."""

    pattern: str
    """Regular expression that the names of its networks match."""

    options: Mapping[str, object] = field(default_factory=dict)
    """Arguments of ``timm.create_model``."""

    divisor: int = 1
    """Sides are padded to a multiple of this, because the network would otherwise crop or reject the image."""

    plain: bool = False
    """All blocks have the same stride, so that the levels come from a feature pyramid."""

    maskable: bool = True
    """Padding can be excluded: the network has no average and no attention over the whole map."""


# Convolutional networks that round sizes up by themselves: ResNet, EfficientNet and all others.
_ANY = Family(name="any", pattern="")
_FAMILIES = (
    # The published Swin rounds up at every stage, but needs whole patches of 4 pixels.
    Family(
        name="swin",
        pattern=r"swin_",
        options={"strict_img_size": False, "always_partition": True},
        divisor=4,
    ),
    # The authors' configurations divide the modulator by the number of its levels; timm does so only on request.
    Family(
        name="focalnet",
        pattern=r"focalnet_\w+_fl4",
        options={"normalize_modulator": True},
        divisor=4,
        maskable=False,
    ),
    Family(name="focalnet", pattern=r"focalnet_", divisor=4, maskable=False),
    Family(name="convnext", pattern=r"convnext_", divisor=32),
    Family(
        name="vit", pattern=r"vit_|eva02_", options={"dynamic_img_size": True}, divisor=32, plain=True, maskable=False
    ),
)


def family_of(name: str) -> Family:
    """Return the family of a timm network."""
    return next((family for family in _FAMILIES if re.match(family.pattern, name)), _ANY)
