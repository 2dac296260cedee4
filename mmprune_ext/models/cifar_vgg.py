"""VGG for 32x32 images, in the forms that the pruning papers use."""
from collections import OrderedDict
from collections.abc import Sequence

from mmengine.model import BaseModule
from torch import Tensor, nn

from mmprune_ext.models.cifar_stages import INIT_CFG, check_out_indices, choose
from mmprune_ext.registry import MODELS

# Convolutions in each of the five stages, and the width of each stage
# (Simonyan and Zisserman, arXiv 1409.1556, table 1).
ARCHITECTURES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
WIDTHS = (64, 128, 256, 512, 512)


@MODELS.register_module()
class CifarVGG(BaseModule):
    """VGG with five halvings, so that a 32x32 image ends as one position of 512 channels.

    Modules: `features.conv{i}`, `features.bn{i}`, `features.relu{i}`, `features.pool{i}`, where `i`
    counts convolutions and poolings together from 0 (`conv0`, `conv1`, `pool2`, `conv3`, ...).

    The papers differ in what follows; all forms are configs:
    * one linear layer: `GlobalAveragePooling` and `LinearClsHead(in_channels=512)`;
    * 512-512 with BN and ReLU before it: mmpretrain's neck `LinearNeck(512, 512, gap_dim=0,
      norm_cfg=dict(type='BN1d'), act_cfg=dict(type='ReLU'))` and the same head.

    Args:
        depth: 11, 13, 16 or 19.
        conv_bias: whether convolutions have a bias (CHIP, PFEC) or not (stripe-wise pruning).
        batch_norm: whether a BN follows each convolution.
        last_pool: 'max' as in the other stages, or 'avg' (CHIP, PFEC) for the fifth.
        in_channels: channels of the image.
        out_indices: stages (0 to 4, each with its pooling) whose outputs are returned.
        init_cfg: None means Kaiming (fan out) for convolutions, 1 for BN scales.

    Raises:
        ValueError: a depth, a pooling or an index that does not exist; neither bias nor BN.
    """

    def __init__(self, depth: int = 16, conv_bias: bool = True, batch_norm: bool = True,
                 last_pool: str = 'avg', in_channels: int = 3, out_indices: Sequence[int] = (4, ),
                 init_cfg: dict | list | None = None) -> None:
        super().__init__(list(INIT_CFG) if init_cfg is None else init_cfg)
        if depth not in ARCHITECTURES:
            raise ValueError(f'CifarVGG: depth must be one of {sorted(ARCHITECTURES)}, got {depth}')
        if not (conv_bias or batch_norm):
            raise ValueError('CifarVGG: without batch_norm the convolutions need conv_bias=True')
        self.out_indices = check_out_indices('CifarVGG', out_indices, len(WIDTHS))
        final = choose('CifarVGG', 'last_pool', last_pool,
                       {'max': nn.MaxPool2d, 'avg': nn.AvgPool2d})
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        self._stage_ends: list[str] = []
        index = 0
        for stage, (count, width) in enumerate(zip(ARCHITECTURES[depth], WIDTHS, strict=True)):
            for _ in range(count):
                layers[f'conv{index}'] = nn.Conv2d(in_channels, width, 3, padding=1, bias=conv_bias)
                if batch_norm:
                    layers[f'bn{index}'] = nn.BatchNorm2d(width)
                layers[f'relu{index}'] = nn.ReLU(inplace=True)
                in_channels = width
                index += 1
            pool = final if stage == len(WIDTHS) - 1 else nn.MaxPool2d
            layers[f'pool{index}'] = pool(2)
            self._stage_ends.append(f'pool{index}')
            index += 1
        self.features = nn.Sequential(layers)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the stage outputs named by `out_indices`.

        Args:
            x: images, `(N, in_channels, H, W)`, H and W at least 32.

        Returns:
            One `(N, C_i, H // 2**(i + 1), W // 2**(i + 1))` for each stage `i`, C = 64, 128, 256,
            512, 512.
        """
        outputs = []
        wanted = {self._stage_ends[index] for index in self.out_indices}
        for name, layer in self.features.named_children():
            x = layer(x)
            if name in wanted:
                outputs.append(x)
        return tuple(outputs)
