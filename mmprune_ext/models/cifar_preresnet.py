"""Pre-activation networks for 32x32 images: PreResNet and Wide ResNet."""
from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from mmprune_ext.models.cifar_stages import ThreeStages, blocks_per_stage, choose, conv3x3, option_a
from mmprune_ext.registry import MODELS


def projection(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Return a 1x1 convolution; no BN, since the next block begins with one."""
    return nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)


class PreActBlock(nn.Module):
    """BN, ReLU, 3x3 convolution, twice, around a shortcut; nothing after the sum.

    Args:
        in_channels: channels that enter.
        out_channels: channels of both convolutions.
        stride: of the first convolution and of the shortcut.
        shortcut: builds the shortcut where the shape changes.
        activated_shortcut: whether that shortcut reads the activated input (Wide ResNet) or the
            input itself (PreResNet).
        dropout: probability between the convolutions.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int,
                 shortcut: Callable[[int, int, int], nn.Module], activated_shortcut: bool = False,
                 dropout: float = 0.) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        # Not in place: the block's input is still needed by the shortcut.
        self.relu1 = nn.ReLU()
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        self.conv2 = conv3x3(out_channels, out_channels)
        same = stride == 1 and in_channels == out_channels
        self.downsample = None if same else shortcut(in_channels, out_channels, stride)
        self.activated_shortcut = activated_shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Return `(N, out_channels, ceil(H / stride), ceil(W / stride))`."""
        active = self.relu1(self.bn1(x))
        if self.downsample is not None:
            x = self.downsample(active if self.activated_shortcut else x)
        out = self.relu2(self.bn2(self.conv1(active)))
        return self.conv2(self.dropout(out)) + x


class PreActStages(ThreeStages):
    """Three pre-activation stages and the BN and ReLU that the last one leaves over."""

    def __init__(self, widths: Sequence[int], blocks: int, block: Callable[..., nn.Module],
                 in_channels: int, out_indices: Sequence[int],
                 init_cfg: dict | list | None) -> None:
        super().__init__(widths, blocks, block, in_channels, out_indices, init_cfg)
        self.bn = nn.BatchNorm2d(widths[-1])
        self.relu = nn.ReLU(inplace=True)

    def stem(self, x: Tensor) -> Tensor:
        return self.conv1(x)

    def finish(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(x))


@MODELS.register_module()
class CifarPreResNet(PreActStages):
    """PreResNet-110 and every other depth 6n + 2 (He et al., arXiv 1603.05027).

    Modules: `conv1`, `layer{1,2,3}.{k}` with `bn1`, `conv1`, `bn2`, `conv2` and, where the shape
    changes, `downsample`, then `bn`. Follow it by `GlobalAveragePooling` and
    `LinearClsHead(in_channels=4 * base_channels)`.

    Args:
        depth: number of weighted layers with the classifier, 6n + 2.
        shortcut: 'A' (subsample and pad with zeros, no weights) or 'B' (1x1 convolution, no BN).
        base_channels: width of the stem and of stage 1; stages 2 and 3 double it.
        in_channels: channels of the image.
        out_indices: stages (0, 1, 2) whose outputs are returned; only stage 2's is normalised and
            activated.
        init_cfg: None means Kaiming (fan out) for convolutions, 1 for BN scales.

    Raises:
        ValueError: a depth, a shortcut or an index that does not exist.
    """

    def __init__(self, depth: int, shortcut: str = 'A', base_channels: int = 16,
                 in_channels: int = 3, out_indices: Sequence[int] = (2, ),
                 init_cfg: dict | list | None = None) -> None:
        blocks = blocks_per_stage('CifarPreResNet', depth, outside=2)
        make = choose('CifarPreResNet', 'shortcut', shortcut, {'A': option_a, 'B': projection})
        widths = (base_channels, base_channels, 2 * base_channels, 4 * base_channels)
        super().__init__(widths, blocks, partial(PreActBlock, shortcut=make), in_channels,
                         out_indices, init_cfg)


@MODELS.register_module()
class WideResNet(PreActStages):
    """WRN-28-10 and its relatives, depth 6n + 4 (Zagoruyko and Komodakis, arXiv 1605.07146).

    Modules as in CifarPreResNet; `downsample` (1x1 convolution) reads the activated input, and
    stage 1 has one too, since it is `widen_factor` times wider than the stem. Follow it by
    `GlobalAveragePooling` and `LinearClsHead(in_channels=4 * base_channels * widen_factor)`.

    Args:
        depth: number of weighted layers as the paper counts them (the three 1x1 projections
            count), 6n + 4.
        widen_factor: width of the stages in units of the plain network's.
        dropout: probability between the two convolutions of a block.
        base_channels: width of the stem.
        in_channels: channels of the image.
        out_indices: stages (0, 1, 2) whose outputs are returned; only stage 2's is normalised and
            activated.
        init_cfg: None means Kaiming (fan out) for convolutions, 1 for BN scales.

    Raises:
        ValueError: a depth, a factor or an index that does not exist.
    """

    def __init__(self, depth: int, widen_factor: int = 1, dropout: float = 0.,
                 base_channels: int = 16, in_channels: int = 3,
                 out_indices: Sequence[int] = (2, ),
                 init_cfg: dict | list | None = None) -> None:
        blocks = blocks_per_stage('WideResNet', depth, outside=4)
        if widen_factor < 1:
            raise ValueError(f'WideResNet: widen_factor must be >= 1, got {widen_factor}')
        width = base_channels * widen_factor
        block = partial(PreActBlock, shortcut=projection, activated_shortcut=True, dropout=dropout)
        super().__init__((base_channels, width, 2 * width, 4 * width), blocks, block, in_channels,
                         out_indices, init_cfg)
