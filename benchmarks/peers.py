"""Detectors of other packages for vs_peers.py: how each is built, and trained as its own documentation says."""

from __future__ import annotations

import importlib.util
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

LITE0 = "tf_efficientnet_lite0"
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
HALF = [0.5, 0.5, 0.5]  # mean and deviation that EfficientNet-Lite0 was trained with


@dataclass(frozen=True)
class Example:
    """An image as the model takes it, boxes (N, 4) xyxy in its pixels, labels (N,) from 0, and its original size."""

    image: Tensor
    boxes: Tensor
    labels: Tensor
    size: tuple[int, int]


Found = tuple[Tensor, Tensor, Tensor]
"""Boxes (N, 4) xyxy in pixels of the original, scores (N,), labels (N,) from 0."""


class Peer(ABC):
    """A detector of another package, with the training of its documentation."""

    title: str
    weights: str  # what it starts from
    how: str  # the documented training
    batch: int
    clip: float | None = None
    ema: float | None = None
    needs: ClassVar[tuple[str, ...]] = ()

    def missing(self) -> str | None:
        """Why it cannot be trained here; None: it can."""
        absent = [name for name in self.needs if importlib.util.find_spec(name) is None]
        return f"not installed: {', '.join(absent)}" if absent else None

    @abstractmethod
    def build(self, classes: int) -> nn.Module:
        """The model with its initial weights."""

    @abstractmethod
    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer with its learning rates."""

    @abstractmethod
    def factor(self, progress: float, step: int) -> float:
        """Factor on the learning rates after so much of the time, and so many steps."""

    @abstractmethod
    def prepare(self, image: Image.Image, boxes: Tensor, labels: Tensor, *, augment: bool) -> Example:
        """An image, augmented in training."""

    @abstractmethod
    def loss(self, model: nn.Module, examples: Sequence[Example]) -> Tensor:
        """The loss of a batch."""

    @abstractmethod
    def detect(self, model: nn.Module, example: Example) -> Found:
        """What is found in an image."""


def flipped(image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Image and boxes, mirrored half of the time."""
    if random.random() < 0.5:
        return image, boxes
    left, right = image.shape[-1] - boxes[:, 2], image.shape[-1] - boxes[:, 0]
    return image.flip(-1), torch.stack([left, boxes[:, 1], right, boxes[:, 3]], dim=1)


def resized(image: Image.Image, boxes: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Image as float in [0, 1], and boxes, of another size."""
    scale = torch.tensor([width / image.width, height / image.height] * 2)
    pixels = F.to_dtype(F.resize(F.pil_to_tensor(image), [height, width], antialias=True), torch.float32, scale=True)
    return pixels, boxes * scale


def centred(boxes: Tensor, image: Tensor) -> Tensor:
    """Boxes xyxy in pixels as middle, width and height in parts of the image."""
    height, width = image.shape[-2:]
    middle, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    return torch.cat([middle, sides], dim=1) / torch.tensor([width, height, width, height])


def lite0(levels: tuple[int, ...]) -> nn.Module:
    """EfficientNet-Lite0 as a network of feature maps, with the ImageNet weights that a package has."""
    import timm

    from detrkit.nn.backbone.imagenet import load_backbone_weights

    body = timm.create_model(LITE0, features_only=True, out_indices=levels, pretrained=False)
    load_backbone_weights(body, LITE0, "package")
    freeze_norms(body)
    return body


class FasterRCNN(Peer):
    """torchvision, references/detection: SGD with momentum 0.9, 0.02 for 16 images, here for 4; weight decay 1e-4;
    rates rise over at most 1,000 steps and drop to a tenth after 16/26 and 22/26 of the time; flips."""

    how = "SGD 0.005 for 4 images, drops at 16/26 and 22/26, flips"
    batch = 4

    def __init__(self, *, imagenet: bool) -> None:
        self.imagenet = imagenet
        self.title = "torchvision Faster R-CNN, " + (
            "EfficientNet-Lite0 FPN, 320 px" if imagenet else "MobileNet v3 320"
        )
        self.weights = "ImageNet" if imagenet else "random"

    def build(self, classes: int) -> nn.Module:
        from torchvision.models.detection import FasterRCNN as Network
        from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn
        from torchvision.models.detection.anchor_utils import AnchorGenerator

        if not self.imagenet:
            return fasterrcnn_mobilenet_v3_large_320_fpn(
                weights=None, weights_backbone=None, num_classes=classes + 1, trainable_backbone_layers=6
            )
        sizes = ((32, 64, 128, 256, 512),) * 3  # as for MobileNet v3 there
        anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 3)
        sizes_of_images = {"min_size": 320, "max_size": 640, "image_mean": HALF, "image_std": HALF}
        return Network(Pyramid(), classes + 1, rpn_anchor_generator=anchors, **sizes_of_images)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return torch.optim.SGD(learned, lr=0.005, momentum=0.9, weight_decay=1e-4)

    def factor(self, progress: float, step: int) -> float:
        warm = min(1.0, 0.001 + step / 50)  # an epoch of 205 images; the script takes 1,000 steps of a longer one
        return warm * (1.0 if progress < 16 / 26 else 0.1 if progress < 22 / 26 else 0.01)

    def prepare(self, image: Image.Image, boxes: Tensor, labels: Tensor, *, augment: bool) -> Example:
        pixels = F.to_dtype(F.pil_to_tensor(image), torch.float32, scale=True)
        pixels, moved = flipped(pixels, boxes) if augment else (pixels, boxes)
        return Example(pixels, moved, labels, (image.height, image.width))

    def loss(self, model: nn.Module, examples: Sequence[Example]) -> Tensor:
        targets = [{"boxes": one.boxes, "labels": one.labels + 1} for one in examples]
        losses: dict[str, Tensor] = model([one.image for one in examples], targets)
        return torch.stack(list(losses.values())).sum()

    def detect(self, model: nn.Module, example: Example) -> Found:
        (found,) = model([example.image])
        return found["boxes"], found["scores"], found["labels"] - 1


class Pyramid(nn.Module):
    """EfficientNet-Lite0 with a feature pyramid, strides 16 and 32 and one pooled map, as torchvision builds it of
    MobileNet v3 for its 320 px model."""

    out_channels = 256

    def __init__(self) -> None:
        super().__init__()
        from torchvision.ops import FeaturePyramidNetwork
        from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

        self.body: Any = lite0((3, 4))
        channels = self.body.feature_info.channels()
        self.pyramid = FeaturePyramidNetwork(channels, self.out_channels, extra_blocks=LastLevelMaxPool())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps: dict[str, Tensor] = self.pyramid({str(k): one for k, one in enumerate(self.body(images))})
        return maps


def freeze_norms(body: nn.Module) -> None:
    """Keep the statistics of batch norms, as torchvision and DETR do with backbones from ImageNet."""
    for module in body.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
            vars(module)["train"] = lambda mode=True, module=module: module  # stays as it is
            module.requires_grad_(False)


class HubDetr(Peer):
    """transformers' DETR as in the notebooks that its page names: AdamW 1e-4, backbone 1e-5, weight decay 1e-4, clip
    0.1, batches of 4; images at most 480 px and flips as in the guide of object detection."""

    how = "AdamW 1e-4, backbone 1e-5, clipping 0.1, 480 px, flips"
    batch, clip = 4, 0.1
    needs = ("transformers",)

    def __init__(self, *, imagenet: bool) -> None:
        self.imagenet = imagenet
        self.title = f"transformers DETR, {'EfficientNet-Lite0' if imagenet else 'ResNet-50'}"
        self.weights = "ImageNet" if imagenet else "random"

    def build(self, classes: int) -> nn.Module:
        from transformers import DetrConfig, DetrForObjectDetection

        own: dict[str, Any] = {"use_timm_backbone": True, "use_pretrained_backbone": False, "num_labels": classes}
        if self.imagenet:
            own["backbone"] = LITE0
        model = DetrForObjectDetection(DetrConfig(**own))
        if self.imagenet:
            # its own frozen norms take the place of timm's with their activations, without which nothing can be learned
            encoder: Any = next(module for module in model.modules() if type(module).__name__ == "DetrConvEncoder")
            encoder.model = lite0((1, 2, 3, 4))
        return model

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        groups: dict[bool, list[nn.Parameter]] = {False: [], True: []}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                groups["backbone" in name].append(parameter)
        rates = {False: 1e-4, True: 1e-5}
        return torch.optim.AdamW(
            [{"params": group, "lr": rates[key]} for key, group in groups.items()], weight_decay=1e-4
        )

    def factor(self, progress: float, step: int) -> float:
        return 1.0

    def prepare(self, image: Image.Image, boxes: Tensor, labels: Tensor, *, augment: bool) -> Example:
        scale = 480 / max(image.size)
        pixels, moved = resized(image, boxes, round(image.height * scale), round(image.width * scale))
        pixels, moved = flipped(pixels, moved) if augment else (pixels, moved)
        mean, deviation = (HALF, HALF) if self.imagenet else (MEAN, STD)
        return Example(F.normalize(pixels, mean, deviation), moved, labels, (image.height, image.width))

    def loss(self, model: nn.Module, examples: Sequence[Example]) -> Tensor:
        labels = [{"class_labels": one.labels, "boxes": centred(one.boxes, one.image)} for one in examples]
        loss: Tensor = model(pixel_values=torch.stack([one.image for one in examples]), labels=labels).loss
        return loss

    def detect(self, model: nn.Module, example: Example) -> Found:
        from torchvision.ops import box_convert

        out = model(pixel_values=example.image[None])
        scores, labels = out.logits[0].softmax(-1)[:, :-1].max(-1)
        height, width = example.size
        boxes = box_convert(out.pred_boxes[0], "cxcywh", "xyxy") * torch.tensor([width, height, width, height])
        return boxes, scores, labels


class RfDetrNano(Peer):
    """rfdetr's smallest, with the defaults of its TrainConfig: AdamW 1e-4, encoder 1.5e-4 with decay by layer, batches
    of 4, EMA 0.993, clipping 0.1, sides from 224 to 512 px, flips. Its trainer needs Lightning; the loop here replaces
    that, with its own model, matcher, losses and groups of parameters."""

    title, weights = "rfdetr nano", "random (its weights come from the network)"
    how = "AdamW 1e-4, encoder 1.5e-4, EMA 0.993, clipping 0.1, 224 to 512 px, flips"
    batch, clip, ema = 4, 0.1, 0.993
    needs = ("rfdetr",)

    def build(self, classes: int) -> nn.Module:
        from rfdetr.config import RFDETRNanoConfig, TrainConfig
        from rfdetr.models.lwdetr import build_criterion_from_config, build_model_from_config

        self.own = RFDETRNanoConfig(pretrain_weights=None, num_classes=classes, device="cpu", amp=False)
        self.training = TrainConfig(dataset_dir=".", output_dir=".", amp_dtype=None)
        self.criterion, self.choose = build_criterion_from_config(self.own, self.training)
        return build_model_from_config(self.own, self.training)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        from rfdetr._namespace import _namespace_from_configs

        settings: Any = _namespace_from_configs(self.own, self.training)
        whole: Any = model
        encoder = whole.backbone[0].get_named_param_lr_pairs(settings, prefix="backbone.0")
        groups = list(encoder.values())
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and name not in encoder:
                slower = self.training.lr_component_decay if "transformer.decoder" in name else 1.0
                groups.append({"params": parameter, "lr": self.training.lr * slower})
        return torch.optim.AdamW(groups, lr=self.training.lr, weight_decay=self.training.weight_decay)

    def factor(self, progress: float, step: int) -> float:
        return 1.0  # its default: one drop after 100 epochs

    def prepare(self, image: Image.Image, boxes: Tensor, labels: Tensor, *, augment: bool) -> Example:
        side = random.choice(range(224, 513, 32)) if augment else self.own.resolution
        pixels, moved = resized(image, boxes, side, side)
        pixels, moved = flipped(pixels, moved) if augment else (pixels, moved)
        return Example(F.normalize(pixels, MEAN, STD), moved, labels, (image.height, image.width))

    def loss(self, model: nn.Module, examples: Sequence[Example]) -> Tensor:
        from rfdetr.utilities.tensors import nested_tensor_from_tensor_list

        side = examples[0].image.shape[-1]  # one size a batch
        images = [v2.functional.resize(one.image, [side, side], antialias=True) for one in examples]
        targets = [{"labels": one.labels, "boxes": centred(one.boxes, one.image)} for one in examples]
        losses = self.criterion(model(nested_tensor_from_tensor_list(images), targets), targets)
        weights = self.criterion.weight_dict
        return torch.stack([losses[name] * weights[name] for name in losses if name in weights]).sum()

    def detect(self, model: nn.Module, example: Example) -> Found:
        from rfdetr.utilities.tensors import nested_tensor_from_tensor_list

        out = model(nested_tensor_from_tensor_list([example.image]))
        (found,) = self.choose(out, torch.tensor([example.size]))
        return found["boxes"], found["scores"], found["labels"]


PEERS: dict[str, Peer] = {
    "torchvision_mobilenet": FasterRCNN(imagenet=False),
    "torchvision_lite0": FasterRCNN(imagenet=True),
    "transformers_detr_r50": HubDetr(imagenet=False),
    "transformers_detr_lite0": HubDetr(imagenet=True),
    "rfdetr_nano": RfDetrNano(),
}
