"""GoogLeNet for 32x32 images, in the form that HRank, CHIP and DCFF prune."""
from collections.abc import Sequence

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmprune_ext.models.cifar_stages import INIT_CFG, check_out_indices
from mmprune_ext.registry import MODELS

STEM_WIDTH = 192
# Output widths of each Inception module's convolutions: 1x1; 1x1 and 3x3; 1x1, 3x3 and 3x3; 1x1
# after the pooling (Szegedy et al., arXiv 1409.4842, table 1).
WIDTHS = {
    'a3': (64, (96, 128), (16, 32), 32), 'b3': (128, (128, 192), (32, 96), 64),
    'a4': (192, (96, 208), (16, 48), 64), 'b4': (160, (112, 224), (24, 64), 64),
    'c4': (128, (128, 256), (24, 64), 64), 'd4': (112, (144, 288), (32, 64), 64),
    'e4': (256, (160, 320), (32, 128), 128),
    'a5': (256, (160, 320), (32, 128), 128), 'b5': (384, (192, 384), (48, 128), 128),
}
# Modules of the three stages; a pooling that halves the image stands between two stages.
STAGES = (('a3', 'b3'), ('a4', 'b4', 'c4', 'd4', 'e4'), ('a5', 'b5'))


def convolutions(in_channels: int, *widths: int, kernels: Sequence[int]) -> list[nn.Module]:
    """Return padded convolutions in a row, with bias, each followed by BN and ReLU."""
    layers: list[nn.Module] = []
    for width, kernel in zip(widths, kernels, strict=True):
        layers += [nn.Conv2d(in_channels, width, kernel, padding=kernel // 2),
                   nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        in_channels = width
    return layers


class Inception(nn.Module):
    """Four branches over one input, joined along the channels.

    The 5x5 convolution of the original is two 3x3 convolutions.

    Args:
        in_channels: channels that enter.
        single: width of the 1x1 branch.
        middle: widths of the 1x1 and the 3x3 convolution of the second branch.
        large: widths of the 1x1 and of both 3x3 convolutions of the third branch.
        pooled: width of the 1x1 convolution after the pooling.
    """

    def __init__(self, in_channels: int, single: int, middle: tuple[int, int],
                 large: tuple[int, int], pooled: int) -> None:
        super().__init__()
        self.b1 = nn.Sequential(*convolutions(in_channels, single, kernels=(1, )))
        self.b2 = nn.Sequential(*convolutions(in_channels, *middle, kernels=(1, 3)))
        self.b3 = nn.Sequential(*convolutions(in_channels, *large, large[1], kernels=(1, 3, 3)))
        self.b4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1),
                                *convolutions(in_channels, pooled, kernels=(1, )))

    def forward(self, x: Tensor) -> Tensor:
        """Return `(N, single + middle[1] + large[1] + pooled, H, W)`."""
        return torch.cat([self.b1(x), self.b2(x), self.b3(x), self.b4(x)], dim=1)


@MODELS.register_module()
class CifarGoogLeNet(BaseModule):
    """GoogLeNet whose stem keeps the size of the image: a 3x3 convolution of 192 channels.

    Modules: `pre_layers`, then `a3`, `b3`, `a4` to `e4`, `a5`, `b5` with branches `b1` to `b4`: the
    names of the widespread public CIFAR checkpoints. No auxiliary classifiers. Follow it by
    `GlobalAveragePooling` and `LinearClsHead(in_channels=1024)`.

    Args:
        in_channels: channels of the image.
        out_indices: stages (0, 1, 2) whose outputs are returned.
        init_cfg: None means Kaiming (fan out) for convolutions, 1 for BN scales.

    Raises:
        ValueError: an index that does not exist.
    """

    def __init__(self, in_channels: int = 3, out_indices: Sequence[int] = (2, ),
                 init_cfg: dict | list | None = None) -> None:
        super().__init__(list(INIT_CFG) if init_cfg is None else init_cfg)
        self.out_indices = check_out_indices('CifarGoogLeNet', out_indices, len(STAGES))
        self.pre_layers = nn.Sequential(*convolutions(in_channels, STEM_WIDTH, kernels=(3, )))
        width = STEM_WIDTH
        for name, widths in WIDTHS.items():
            self.add_module(name, Inception(width, *widths))
            single, middle, large, pooled = widths
            width = single + middle[1] + large[1] + pooled
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the stage outputs named by `out_indices`.

        Args:
            x: images, `(N, in_channels, H, W)`.

        Returns:
            One `(N, C_i, ceil(H / 2**i), ceil(W / 2**i))` for each stage `i`, C = 480, 832, 1024.
        """
        x = self.pre_layers(x)
        outputs = []
        for stage, names in enumerate(STAGES):
            if stage > 0:
                x = self.maxpool(x)
            for name in names:
                x = getattr(self, name)(x)
            if stage in self.out_indices:
                outputs.append(x)
        return tuple(outputs)
