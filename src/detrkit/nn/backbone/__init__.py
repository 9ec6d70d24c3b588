"""Backbones: networks of timm that give feature maps of any image size, the padding kept out of them."""

from detrkit.nn.backbone.backbone import Backbone, FeatureMap, level_mask

__all__ = ["Backbone", "FeatureMap", "level_mask"]
