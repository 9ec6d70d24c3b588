"""What families of timm networks need so that they take images of any size and are the networks of the papers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Family", "family_of"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """How networks whose name matches ``pattern`` are built.

    options: for ``timm.create_model`` · divisor: sides are padded to a multiple of it, because the network would cut
    off or refuse the rest · plain: all blocks have one stride, so that levels come from a feature pyramid · maskable:
    padding can be kept out of it: it has no average and no attention over the whole map.
    """

    name: str
    pattern: str
    options: Mapping[str, object] = field(default_factory=dict)
    divisor: int = 1
    plain: bool = False
    maskable: bool = True


# Convolutional networks that round sizes up by themselves: ResNet, EfficientNet and what else timm has.
_ANY = Family(name="any", pattern="")
_FAMILIES = (
    # The published Swin rounds up at every stage, once whole patches of 4 pixels are there.
    Family(
        name="swin",
        pattern=r"swin_",
        options={"strict_img_size": False, "always_partition": True},
        divisor=4,
    ),
    # Trained with the modulator divided by its levels (configs of the authors), which timm leaves out.
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
    """The family of a timm name; most networks need nothing special."""
    return next((family for family in _FAMILIES if re.match(family.pattern, name)), _ANY)
