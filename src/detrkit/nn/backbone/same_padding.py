"""TensorFlow's "same" padding in whole numbers: timm divides sides as floats, which torch.export cannot follow."""

from __future__ import annotations

from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["SameConv2d"]


class SameConv2d(Conv2dSame):
    """timm's convolution whose output has ceil(side / stride) cells, with the same paddings from integer arithmetic."""

    @staticmethod
    def take_over(network: nn.Module) -> None:
        """Makes every such convolution inside ``network`` one of these; parameters stay what and where they are.

        Kernels that do not reach from one step to the next, which no network here has, stay timm's.
        """
        for module in network.modules():
            if type(module) is Conv2dSame and all(_reach(module, axis) >= module.stride[axis] for axis in (0, 1)):
                module.__class__ = SameConv2d

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', ceil(h / stride), ceil(w / stride))."""
        # a step of s cells covers s of the kernel's; of the last step as many lie inside as the side has over
        above, left = (_reach(self, axis) - 1 - (x.shape[axis - 2] - 1) % self.stride[axis] for axis in (0, 1))
        x = F.pad(x, (left // 2, left - left // 2, above // 2, above - above // 2))
        return F.conv2d(x, self.weight, self.bias, self.stride, (0, 0), self.dilation, self.groups)


def _reach(module: nn.Conv2d, axis: int) -> int:
    """Cells from the first to the last that the kernel sees along an axis."""
    return module.dilation[axis] * (module.kernel_size[axis] - 1) + 1
