"""Backbones: timm networks that return feature maps for images of any size and can exclude padding."""

from detrkit.nn.backbone.backbone import Backbone, FeatureMap, level_mask

__all__ = ["Backbone", "FeatureMap", "level_mask"]
