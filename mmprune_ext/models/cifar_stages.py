"""What the residual CIFAR networks share: a stem, three stages, outputs by index."""
from collections.abc import Callable, Sequence

from mmengine.model import BaseModule
from torch import Tensor, nn

from mmprune_ext.ops import ZeroPadShortcut

NUM_STAGES = 3
# He et al., arXiv 1502.01852, with the gain of ReLU; the sum over output channels (fan_out) as
# mmpretrain's ResNets have it.
INIT_CFG = (
    dict(type='Kaiming', layer=['Conv2d']),
    dict(type='Constant', val=1, layer=['BatchNorm2d']),
)


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """Return a padded 3x3 convolution without bias (a BN follows or precedes all of them)."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


def option_a(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Return the shortcut without weights."""
    return ZeroPadShortcut(in_channels, out_channels, stride)


def blocks_per_stage(name: str, depth: int, outside: int) -> int:
    """Return the number of two-convolution blocks in each of the three stages.

    Args:
        name: class name, for the message.
        depth: number of weighted layers, as papers count them.
        outside: how many of them are not in a block.

    Raises:
        ValueError: no network of this family has that depth.
    """
    blocks, rest = divmod(depth - outside, 2 * NUM_STAGES)
    if rest or blocks < 1:
        raise ValueError(f'{name}: depth must be 6n + {outside} with n >= 1 '
                         f'({6 + outside}, {12 + outside}, {18 + outside}, ...), got {depth}')
    return blocks


def choose(name: str, option: str, value: str, table: dict[str, Callable]) -> Callable:
    """Return `table[value]`.

    Raises:
        ValueError: there is no such entry; the message lists those that exist.
    """
    if value not in table:
        raise ValueError(f'{name}: {option} must be one of {sorted(table)}, got {value!r}')
    return table[value]


def check_out_indices(name: str, out_indices: Sequence[int], stages: int) -> tuple[int, ...]:
    """Return `out_indices` as a tuple.

    Raises:
        ValueError: it is empty or names a stage that does not exist.
    """
    indices = tuple(out_indices)
    if not indices or not all(0 <= index < stages for index in indices):
        raise ValueError(f'{name}: out_indices must be stages in [0, {stages}), got {indices}')
    return indices


class ThreeStages(BaseModule):
    """A 3x3 stem and `layer1`, `layer2`, `layer3`; a subclass adds what goes around them.

    Args:
        widths: output channels of the stem and of the three stages.
        blocks: blocks in each stage.
        block: builds one block from `(in_channels, out_channels, stride)`. Stages 2 and 3 start
            with stride 2.
        in_channels: channels of the image.
        out_indices: stages whose outputs `forward` returns, from 0.
        init_cfg: as in every OpenMMLab module; None means INIT_CFG.
    """

    def __init__(self, widths: Sequence[int], blocks: int, block: Callable[..., nn.Module],
                 in_channels: int, out_indices: Sequence[int],
                 init_cfg: dict | list | None) -> None:
        super().__init__(list(INIT_CFG) if init_cfg is None else init_cfg)
        self.out_indices = check_out_indices(type(self).__name__, out_indices, NUM_STAGES)
        self.conv1 = conv3x3(in_channels, widths[0])
        for stage in range(NUM_STAGES):
            width = widths[stage + 1]
            stride = 1 if stage == 0 else 2
            layers = [block(widths[stage], width, stride)]
            layers += [block(width, width, 1) for _ in range(blocks - 1)]
            self.add_module(f'layer{stage + 1}', nn.Sequential(*layers))

    def stem(self, x: Tensor) -> Tensor:
        """Return what enters `layer1`."""
        raise NotImplementedError

    def finish(self, x: Tensor) -> Tensor:
        """Return the last stage's output as a head wants it."""
        return x

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the stage outputs named by `out_indices`.

        Args:
            x: images, `(N, in_channels, H, W)`.

        Returns:
            One `(N, widths[i + 1], ceil(H / 2**i), ceil(W / 2**i))` for each stage `i`.
        """
        x = self.stem(x)
        outputs = []
        for stage in range(NUM_STAGES):
            x = getattr(self, f'layer{stage + 1}')(x)
            if stage in self.out_indices:
                outputs.append(self.finish(x) if stage == NUM_STAGES - 1 else x)
        return tuple(outputs)
