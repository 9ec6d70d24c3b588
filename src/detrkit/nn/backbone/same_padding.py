"""TensorFlow's "same" padding in integer arithmetic: timm divides sides as floats, which torch.export cannot trace."""

from __future__ import annotations

from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["SameConv2d"]


class SameConv2d(Conv2dSame):
    """timm's convolution with "same" padding, computed with integers; output sides are ceil(side / stride)."""

    @staticmethod
    def convert_in(network: nn.Module) -> None:
        """Convert such convolutions inside ``network`` in place; parameters and their names stay.

        Convolutions whose stride exceeds their kernel, which no network here has, are not converted.
        """
        for module in network.modules():
            if type(module) is Conv2dSame and all(_reach(module, axis) >= module.stride[axis] for axis in (0, 1)):
                module.__class__ = SameConv2d

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', ceil(h / stride), ceil(w / stride))."""
        # total padding: reach of the kernel minus the cells between the start of its last step and the end of the side
        vertical, horizontal = (_reach(self, axis) - 1 - (x.shape[axis - 2] - 1) % self.stride[axis] for axis in (0, 1))
        left, above = horizontal // 2, vertical // 2
        x = F.pad(x, (left, horizontal - left, above, vertical - above))
        return F.conv2d(x, self.weight, self.bias, self.stride, (0, 0), self.dilation, self.groups)


def _reach(module: nn.Conv2d, axis: int) -> int:
    """Return the extent of the kernel along an axis, in cells."""
    return module.dilation[axis] * (module.kernel_size[axis] - 1) + 1
