"""ResNets for 32x32 images (He et al., arXiv 1512.03385, section 4.2)."""
from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from mmprune_ext.models.cifar_stages import ThreeStages, blocks_per_stage, choose, conv3x3, option_a
from mmprune_ext.registry import MODELS


def option_b(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Return the shortcut with weights: a 1x1 convolution and its BN."""
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                         nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, each with a BN, around a shortcut.

    Args:
        in_channels: channels that enter.
        out_channels: channels of both convolutions.
        stride: of the first convolution and of the shortcut.
        shortcut: builds the shortcut where the shape changes.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int,
                 shortcut: Callable[[int, int, int], nn.Module]) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        # A ReLU of its own, so that a forward hook sees one activation and not two.
        self.relu2 = nn.ReLU(inplace=True)
        same = stride == 1 and in_channels == out_channels
        self.downsample = None if same else shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return `(N, out_channels, ceil(H / stride), ceil(W / stride))`."""
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(out)) + identity)


@MODELS.register_module()
class CifarResNet(ThreeStages):
    """ResNet-20/32/44/56/110 and every other depth 6n + 2.

    Modules: `conv1`, `bn1`, then `layer{1,2,3}.{k}` with `conv1`, `bn1`, `conv2`, `bn2` and, where
    the shape changes, `downsample`: the names of the widespread public CIFAR checkpoints. Follow it
    by `GlobalAveragePooling` and `LinearClsHead(in_channels=4 * base_channels)`.

    Args:
        depth: number of weighted layers with the classifier, 6n + 2.
        shortcut: 'A' (subsample and pad with zeros, no weights) or 'B' (1x1 convolution and BN).
        base_channels: width of the stem and of stage 1; stages 2 and 3 double it.
        in_channels: channels of the image.
        out_indices: stages (0, 1, 2) whose outputs are returned.
        init_cfg: None means Kaiming (fan out) for convolutions, 1 for BN scales.

    Raises:
        ValueError: a depth, a shortcut or an index that does not exist.
    """

    def __init__(self, depth: int, shortcut: str = 'A', base_channels: int = 16,
                 in_channels: int = 3, out_indices: Sequence[int] = (2, ),
                 init_cfg: dict | list | None = None) -> None:
        blocks = blocks_per_stage('CifarResNet', depth, outside=2)
        make = choose('CifarResNet', 'shortcut', shortcut, {'A': option_a, 'B': option_b})
        widths = (base_channels, base_channels, 2 * base_channels, 4 * base_channels)
        super().__init__(widths, blocks, partial(BasicBlock, shortcut=make), in_channels,
                         out_indices, init_cfg)
        self.bn1 = nn.BatchNorm2d(base_channels)
        self.relu1 = nn.ReLU(inplace=True)

    def stem(self, x: Tensor) -> Tensor:
        return self.relu1(self.bn1(self.conv1(x)))
