"""One tiny network per family, registered in timm, so that tests run in fractions of a second."""

from __future__ import annotations

from typing import Any

from timm.models import convnext, eva, focalnet, register_model, resnet, swin_transformer
from torch import nn

__all__ = ["TINY"]


@register_model
def resnet_tiny_for_tests(pretrained: bool = False, **options: Any) -> nn.Module:
    sizes = {"block": resnet.BasicBlock, "layers": (2, 1, 1, 1), "channels": (16, 24, 32, 48)}
    return resnet._create_resnet("resnet_tiny_for_tests", pretrained, **sizes, **options)


@register_model
def swin_tiny_for_tests(pretrained: bool = False, **options: Any) -> nn.Module:
    sizes = {"embed_dim": 16, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 2, 4), "window_size": 7}
    return swin_transformer._create_swin_transformer("swin_tiny_for_tests", pretrained, **sizes, **options)


@register_model
def convnext_tiny_for_tests(pretrained: bool = False, **options: Any) -> nn.Module:
    sizes = {"depths": (2, 1, 1, 1), "dims": (16, 24, 32, 48)}
    return convnext._create_convnext("convnext_tiny_for_tests", pretrained, **sizes, **options)


@register_model
def focalnet_tiny_for_tests_fl4(pretrained: bool = False, **options: Any) -> nn.Module:
    """With all options of the large one."""
    sizes = {"embed_dim": 16, "depths": (2, 1, 1, 1), "focal_levels": (4, 4, 4, 4)}
    kind = {"use_post_norm": True, "use_overlap_down": True, "layerscale_value": 1e-4}
    return focalnet._create_focalnet("focalnet_tiny_for_tests_fl4", pretrained, **sizes, **kind, **options)


@register_model
def vit_tiny_for_tests_dinov3(pretrained: bool = False, **options: Any) -> nn.Module:
    """A narrower and shallower version of timm's DINOv3 networks."""
    sizes = {"patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 3, "qkv_bias": False, "init_values": 1e-5}
    rope = {"rope_type": "dinov3", "rope_temperature": 100, "rope_rotate_half": True, "use_rot_pos_emb": True}
    rest = {"use_abs_pos_emb": False, "num_reg_tokens": 4, "use_fc_norm": False}
    return eva._create_eva("vit_tiny_for_tests_dinov3", pretrained, **sizes, **rope, **rest, **options)


TINY = {
    "swin": "swin_tiny_for_tests",
    "convnext": "convnext_tiny_for_tests",
    "focalnet": "focalnet_tiny_for_tests_fl4",
    "vit": "vit_tiny_for_tests_dinov3",
    "resnet": "resnet_tiny_for_tests",
}
