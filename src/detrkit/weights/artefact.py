"""An exported model as a detector, so that prediction and evaluation take its file like a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detrkit.errors import CheckpointError
from detrkit.models.detector import Detector
from detrkit.models.registry import model_config
from detrkit.nn.masks import sample_points
from detrkit.runtime.engines import Engine, open_engine
from detrkit.runtime.info import check_raw
from detrkit.structures import Predictions, Target, Thresholds

__all__ = ["ArtefactDetector", "DenseMasks", "open_artefact"]


@dataclass(frozen=True)
class DenseMasks:
    """Masks (1, B, N, h, w) that an exported model has computed; see :class:`detrkit.structures.MaskView`."""

    logits: Tensor

    @property
    def factors(self) -> tuple[Tensor, ...]:
        """The masks themselves."""
        return (self.logits,)

    def __getitem__(self, queries: slice) -> DenseMasks:
        """The masks of a part of the queries."""
        return replace(self, logits=self.logits[:, :, queries])

    def dense(self) -> Tensor:
        """Logits (B, N, h, w)."""
        return self.logits[-1]

    def rows(self, layer: Tensor, image: Tensor, query: Tensor) -> Tensor:
        """Logits (M, h, w) of the masks that three index vectors (M,) choose."""
        return self.logits[layer.cpu(), image.cpu(), query.cpu()]

    def of_image(self, image: int, layers: Iterable[int], points: Tensor) -> Iterator[Tensor]:
        """Logits (N, P) float32 of all masks of an image, layer by layer, at points (P, 2) in [0, 1] of the canvas."""
        for layer in layers:
            yield sample_points(self.logits[layer, image][None], points[None])[0]


class ArtefactDetector(Detector):
    """A detector whose forward pass is an exported model; it predicts and cannot be trained.

    Images are padded to what the file takes, and batches are split. The outputs are those of the last decoder layer.
    """

    def __init__(self, engine: Engine, path: Path) -> None:
        info = engine.info
        try:
            config = model_config(info.name, **info.config)
        except Exception as error:  # the metadata may hold anything
            raise CheckpointError(f"{path}: made for a model this version cannot describe ({error})") from error
        super().__init__(config=config)
        check_raw(info, path)
        self.name, self.categories, self.canvas = info.name, info.categories, info.size
        self.thresholds = None if info.thresholds is None else Thresholds.from_json(info.thresholds)
        self._engine = engine
        # where inputs are expected: engines take and give arrays of the host
        self.host = nn.Parameter(torch.zeros(0), requires_grad=False)

    def detect(self, images: Tensor, padding_mask: Tensor, targets: list[Target] | None) -> Predictions:
        """Run the file on the batch."""
        info, height, width = self._engine.info, images.shape[-2], images.shape[-1]
        canvas = self.full_canvas((height, width))
        below, right = canvas[0] - height, canvas[1] - width
        images, padding_mask = (
            F.pad(images, (0, right, 0, below)),
            F.pad(padding_mask, (0, right, 0, below), value=True),
        )
        parts = []
        for start in range(0, len(images), info.batch or len(images)):
            part = slice(start, start + (info.batch or len(images)))
            parts.append(self._run(images[part], padding_mask[part]))
        found = {name: torch.cat([part[name] for part in parts]).to(images.device) for name in parts[0]}
        masks = None
        if "masks" in found:
            # cells of the canvas that the caller does not know of
            masks = DenseMasks(found["masks"][None, :, :, : -(-height // 4), : -(-width // 4)])
        return Predictions(found["logits"][None].float(), found["boxes"][None].float(), masks=masks)

    @property
    def precision(self) -> str:
        """Precision of the file: "fp32", "fp16" (weights) or "int8"."""
        return self._engine.info.precision

    def full_canvas(self, shape: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the canvas on which the file sees images of a smaller (height, width).

        Raises:
            CheckpointError: they do not fit.
        """
        height, width = self._engine.info.canvas(*shape)
        if shape[0] > height or shape[1] > width:
            raise CheckpointError(
                f"images of {shape[0]}x{shape[1]} do not fit: this file takes {height}x{width}; make them smaller, or "
                "export with --size dynamic"
            )
        return height, width

    def _run(self, images: Tensor, padding_mask: Tensor) -> dict[str, Tensor]:
        number, batch = len(images), self._engine.info.batch or len(images)
        if number < batch:
            images = images[[*range(number), *[number - 1] * (batch - number)]]
            padding_mask = padding_mask[[*range(number), *[number - 1] * (batch - number)]]
        found = self._engine.run(images.float().cpu().contiguous().numpy(), padding_mask.cpu().contiguous().numpy())
        return {name: torch.from_numpy(value)[:number] for name, value in found.items()}


def open_artefact(path: str | Path, *, threads: int | None = None) -> ArtefactDetector:
    """Open an exported model as a detector in evaluation mode.

    Raises:
        CheckpointError, DetrkitError: see :func:`detrkit.runtime.open_engine`.
    """
    detector = ArtefactDetector(open_engine(path, threads=threads), Path(path))
    detector.eval()
    return detector
