"""Strided convolutions of features that are smaller than the stride.

PyTorch's bfloat16 kernels on the CPU (2.15) leave parts of such a weight's gradient unwritten: what memory
held before goes into the update. Small images get there: the features of torchvision's ResNets are 1x1 before
the last stride of 2 if images are 16x16.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class StridedConv2d(nn.Conv2d):
    """Where features are smaller than the stride, every place is computed and the strided ones are taken."""

    def forward(self, input: Tensor) -> Tensor:
        """Features (B, C, H, W) to (B, out, H', W'), as ``nn.Conv2d``."""
        down, right = self.stride
        if self.padding_mode != "zeros" or input.shape[-2] >= down or input.shape[-1] >= right:
            return super().forward(input)
        whole = F.conv2d(input, self.weight, self.bias, 1, self.padding, self.dilation, self.groups)
        return whole if whole.shape[-2:] == (1, 1) else whole[..., ::down, ::right]


def mend_strides(network: nn.Module) -> None:
    """Make every strided ``nn.Conv2d`` of ``network`` a ``StridedConv2d``, in place; weights stay."""
    for module in network.modules():
        if type(module) is nn.Conv2d and max(module.stride) > 1:
            module.__class__ = StridedConv2d
