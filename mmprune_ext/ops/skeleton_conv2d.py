"""The convolution that stripe-wise pruning (arXiv 2009.14410) trains: filters and their shapes."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmprune_ext.ops.in_place import conv_with
from mmprune_ext.registry import MODELS


@MODELS.register_module()
class SkeletonConv2d(nn.Conv2d):
    """A convolution whose filters are multiplied by a Filter Skeleton, one number a stripe.

    Source: Meng et al., "Pruning Filter in Filter", NeurIPS 2020, section 3.2. A filter `W[j]` is `kH * kW` stripes
    `W[j, :, a, b]`; the forward pass is the convolution with `W * skeleton[:, None]`. A stripe whose number is
    exactly 0 is dead, and stays dead under :class:`mmprune_ext.engine.StripeHook`.

    The arguments are those of `nn.Conv2d`, with `groups=1`.

    Attributes:
        weight: The filters, `(C_out, C_in, kH, kW)`.
        skeleton: The Filter Skeleton, a parameter `(C_out, kH, kW)`, ones at the start.

    Raises:
        ValueError: For grouped convolutions.
    """

    skeleton: nn.Parameter

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.groups != 1:
            raise ValueError(f'SkeletonConv2d takes groups=1, got {self.groups}')
        self.skeleton = nn.Parameter(self.weight.detach().new_ones(self.out_channels, *self.kernel_size))

    @classmethod
    def from_conv(cls, conv: nn.Conv2d) -> SkeletonConv2d:
        """Return the layer with the weight and bias of a convolution, the same parameters.

        Raises:
            ValueError: If the convolution is grouped.
        """
        # Nothing is drawn at random for the parameters that the next lines replace.
        layer = cls(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation,
                    conv.groups, conv.bias is not None, conv.padding_mode, device='meta')
        layer.weight, layer.bias = conv.weight, conv.bias
        layer.skeleton = nn.Parameter(conv.weight.detach().new_ones(conv.out_channels, *conv.kernel_size))
        return layer.train(conv.training)

    def reset_parameters(self) -> None:
        """Draw filters as `nn.Conv2d` does; the skeleton is ones again."""
        super().reset_parameters()
        if 'skeleton' in self._parameters:
            nn.init.ones_(self.skeleton)

    def alive(self) -> Tensor:
        """Return which stripes there are, bool `(C_out, kH, kW)`."""
        return self.skeleton.detach() != 0

    @torch.no_grad()
    def add_sparsity(self, rate: float | Tensor) -> None:
        """Add the subgradient of `rate * |skeleton|` to the gradient, which is 0 for dead stripes.

        Without a gradient, of a layer that the step passed by, nothing happens.
        """
        if self.skeleton.grad is not None:
            self.skeleton.grad.add_(self.skeleton.sign() * rate).mul_(self.skeleton != 0)

    @torch.no_grad()
    def cut(self, threshold: float, before: Tensor) -> None:
        """Let stripes die after a step: those up to a threshold, and those that the step has taken past it.

        Numbers that have changed their sign were at the threshold in between, and dead ones, that momentum has moved,
        are dead.

        Args:
            threshold: The largest absolute value that dies.
            before: The numbers before the step, `(C_out, kH, kW)`.
        """
        self.skeleton.mul_((self.skeleton.abs() > threshold) & (self.skeleton * before > 0))

    def skeletal_weight(self) -> Tensor:
        """Return `W * skeleton[:, None]`, `(C_out, C_in, kH, kW)`."""
        return self.weight * self.skeleton[:, None]

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution, `(N, C_out, H', W')`, of an input `(N, C_in, H, W)`."""
        return self._conv_forward(input, self.skeletal_weight(), self.bias)

    @torch.no_grad()
    def plain_conv(self) -> nn.Conv2d:
        """Return a plain convolution that computes the same, with zeros in the place of dead stripes."""
        return conv_with(self, nn.Parameter(self.skeletal_weight(), self.weight.requires_grad), self.bias)

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, stripes={int(self.alive().sum())} of {self.skeleton.numel()}'
