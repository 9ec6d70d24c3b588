"""LoRA: training a few numbers beside weights that stay as they are (Hu et al., LoRA, section 4.1).

W' = W + B A, with A (rank, inputs) random and B (outputs, rank) zero at first, so that the model starts as it was. The
product is part of the weight wherever it is read, and is added to W for good when the model is written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from detrkit.nn.attention import MultiheadAttention

__all__ = ["LowRank", "add_low_rank", "is_low_rank", "merge_low_rank", "merged_state"]


class LowRank(nn.Module):
    """W (outputs, inputs) -> W + B A.

    Args:
        weight: W.
        rank: of the product.
        parts: number of projections that W packs one below the other; each has its own A and B.
    """

    def __init__(self, weight: Tensor, *, rank: int, parts: int = 1) -> None:
        super().__init__()
        outputs, inputs = weight.shape
        self.down = nn.Parameter(weight.new_empty(parts, rank, inputs))
        self.up = nn.Parameter(weight.new_zeros(parts, outputs // parts, rank))
        nn.init.uniform_(self.down, -1 / math.sqrt(inputs), 1 / math.sqrt(inputs))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight as it is used."""
        return weight + (self.up @ self.down).flatten(0, 1)


def add_low_rank(model: nn.Module, *, rank: int, wanted: Callable[[str], bool]) -> int:
    """Give linear layers and packed attention projections whose module name is ``wanted`` a product of low rank.

    Returns:
        The number of weights that got one.
    """
    count = 0
    for name, module in list(model.named_modules()):
        weight, parts = ("in_proj_weight", 3) if isinstance(module, MultiheadAttention) else ("weight", 1)
        if isinstance(module, MultiheadAttention | nn.Linear) and wanted(name):
            product = LowRank(getattr(module, weight).detach(), rank=rank, parts=parts)
            parametrize.register_parametrization(module, weight, product)
            count += 1
    return count


def is_low_rank(name: str) -> bool:
    """Whether a parameter is the A or the B of a product, by its name in the model."""
    return ".parametrizations." in name and name.endswith((".down", ".up"))


def merge_low_rank(model: nn.Module) -> None:
    """Add all products to their weights for good; copies of the model stay as they are."""
    for _, module, weight in list(_changed(model)):
        value = getattr(module, weight).detach()
        # not torch's remove_parametrizations, which changes the class that copies of the module share
        module.__class__ = parametrize.type_before_parametrizations(module)
        del module.parametrizations
        module.register_parameter(weight, nn.Parameter(value))


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with all products added to their weights: that of a model without them."""
    state = model.state_dict()
    for prefix, module, weight in _changed(model):
        inner = f"{prefix}.parametrizations.{weight}."
        state = {name: value for name, value in state.items() if not name.startswith(inner)}
        with torch.no_grad():
            state[f"{prefix}.{weight}"] = getattr(module, weight)
    return state


def _changed(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Name, module and name of the weight of every product."""
    for name, module in model.named_modules():
        for weight, steps in dict(getattr(module, "parametrizations", {})).items():
            if any(isinstance(step, LowRank) for step in steps):
                yield name, module, weight
