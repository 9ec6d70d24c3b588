"""Layer index of each backbone parameter as timm groups them, for layer-wise learning rate decay."""

from __future__ import annotations

from timm.models import group_parameters

from detrkit.nn.backbone import Backbone
from detrkit.nn.backbone.imagenet import timm_names, whole_network

__all__ = ["layer_depths"]


def layer_depths(backbone: Backbone) -> dict[str, int]:
    """Name of every parameter of the network and the level norms -> layer index, from 0 for the stem.

    The levels of a feature pyramid are not layers of the network and are left out.

    Raises:
        ValueError: timm does not group the layers of this network.
    """
    network = whole_network(backbone.name.split(".")[0])
    if not hasattr(network, "group_matcher"):
        raise ValueError(f"timm does not know the layers of '{backbone.name}'")
    layers: dict[str, int] = group_parameters(network, network.group_matcher(coarse=False), reverse=True)
    names = timm_names([name for name, _ in backbone.body.named_parameters()], layers)
    depths = {f"body.{name}": layers[given] for name, given in names.items()}
    last = max(depths.values())
    norms = [] if backbone.norms is None else backbone.norms.named_parameters(prefix="norms")
    return depths | {name: last for name, _ in norms}
