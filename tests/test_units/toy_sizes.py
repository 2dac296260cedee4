"""Toy nets: sizes that modules keep apart from their layers, or take from their input."""

from __future__ import annotations

import torch
from mmdet.models.backbones.pvt import AbsolutePositionEmbedding
from mmdet.models.roi_heads.roi_extractors import GenericRoIExtractor
from mmpose.models.backbones.litehrnet import ConditionalChannelWeighting
from mmpose.models.backbones.rsn import RSB
from mmpose.models.heads.heatmap_heads.mspn_head import MSPNHead
from mmpretrain.models.backbones.davit import ChannelAttention, DaViTDownSample
from mmpretrain.models.backbones.edgenext import SDTAEncoder
from mmpretrain.models.backbones.hornet import gnConv
from mmpretrain.models.backbones.levit import Attention, AttentionSubsample
from mmpretrain.models.backbones.swin_transformer import SwinTransformer
from mmpretrain.models.backbones.van import VANBlock
from mmpretrain.models.backbones.vit_sam import ViTSAM
from mmpretrain.models.utils.attention import LeAttention
from mmseg.models.decode_heads.apc_head import ACM
from torch import Tensor, nn
from torchvision.models.maxvit import RelativePositionalMultiHeadAttention
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2

from tests.test_units.toy_base import F, Reason, ToyNet, Wrapped, conv

OUT = (5, Reason.OUTPUT)


class Heads(nn.Module):
    """Window attention as most libraries write it: the width of a head is that of the input, divided."""

    def __init__(self, dims: int, num_heads: int, shortcut: bool = False) -> None:
        super().__init__()
        self.shortcut = shortcut
        self.num_heads, self.scale = num_heads, (dims // num_heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dims, 3 * dims), nn.Linear(dims, dims)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        n, length, width = x.shape
        qkv = self.qkv(x).reshape(n, length, 3, self.num_heads, width // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attention = self.scale * q @ k.transpose(-2, -1)
        attention = attention if bias is None else attention + bias
        out = self.proj((attention.softmax(-1) @ v).transpose(1, 2).reshape(n, length, width))
        return x + out if self.shortcut else out


class Tokens(ToyNet):
    """Patches, something in the middle, head."""

    dims = 12

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.head = nn.Conv2d(3, self.dims, 4, 4), nn.Linear(self.dims, 5)
        self.make()

    def make(self) -> None:
        """Add the layers of the middle."""

    def middle(self, x: Tensor) -> Tensor:
        """Run the middle."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.patch(x).flatten(2).transpose(1, 2)))


class HeadsOfInputWidth(Tokens):
    """Swin, DaViT, HRFormer, HiViT: input and heads lose channels independently."""

    units = {'patch': (12, None), 'attn.qkv': (4, None), 'head': OUT}
    members = {'patch': 'attn.proj[0:12] patch[0:12] |  | attn.qkv[0:12] head[0:12]',
               'attn.qkv': 'attn.qkv[0:36/9]~ |  | attn.proj[0:12/3]~'}

    def make(self) -> None:
        self.attn = Heads(12, 3)

    def middle(self, x: Tensor) -> Tensor:
        return x + self.attn(x, bias=torch.ones(1))


class PositionsOfAGrid(Tokens):
    """PVT: a position embedding that is put on another grid, with its width as a number."""

    units = {'patch': (12, None), 'head': OUT}
    members = {'patch': 'patch[0:12] | places.pos_embed[0:12] | head[0:12]'}

    def make(self) -> None:
        self.places = AbsolutePositionEmbedding(3, 12)

    def middle(self, x: Tensor) -> Tensor:
        return self.places(x, (2, 2))


class HeadsAndAShortcut(Tokens):
    """Attention that adds its input itself needs more of it than the shape."""

    units = {'patch': (12, Reason.FIXED_SIZE), 'attn.qkv': (4, Reason.FIXED_SIZE), 'head': OUT}

    def make(self) -> None:
        self.attn = Heads(12, 3, shortcut=True)

    def middle(self, x: Tensor) -> Tensor:
        return self.attn(x)


class SwinOutputs(ToyNet):
    """Swin: the widths of its outputs stand in a list beside the norms."""

    shape = (3, 16, 16)
    units = {'body.patch_embed.projection': (12, None), 'body.stages.0.blocks.0.attn.w_msa.qkv': (4, None),
             'body.stages.0.blocks.0.ffn.layers.0.0': (48, None), 'body.stages.0.downsample.reduction': (24, None),
             'body.stages.1.blocks.0.attn.w_msa.qkv': (4, None), 'body.stages.1.blocks.0.ffn.layers.0.0': (96, None),
             'fine': OUT, 'coarse': OUT}

    def __init__(self) -> None:
        super().__init__()
        self.body = SwinTransformer(dict(embed_dims=12, depths=[1, 1], num_heads=[3, 6]), img_size=16, window_size=2,
                                    drop_path_rate=0., out_indices=(0, 1))
        self.fine, self.coarse = conv(12, 5), conv(24, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        fine, coarse = self.body(x)
        return self.fine(fine), self.coarse(coarse)


class ChannelGroups(Tokens):
    """DaViT: attention between channels keeps those of its heads; a layer pads its input as if it were an image."""

    units = {'patch': (12, None), 'attn.qkv': (4, Reason.OUTER), 'down.projection': (6, None), 'head': OUT}

    def make(self) -> None:
        self.attn = ChannelAttention(12, 3)
        self.down = DaViTDownSample(12, 6, norm_cfg=dict(type='LN'))
        self.head = nn.Linear(6, 5)

    def middle(self, x: Tensor) -> Tensor:
        return self.down(x + self.attn(x), (2, 2))[0]


class StepsOfABlock(Wrapped):
    """RSN: the width of the parts that a block splits its channels into."""

    units = {'stem.0': (8, None), 'block.conv_bn_relu1.conv': (4, None), 'block.conv_bn_relu2_2_1.conv': (4, None),
             'block.conv_bn_relu2_2_2.conv': (4, None), 'head': OUT}

    def make(self) -> None:
        self.block = RSB(8, 8, num_steps=2, expand_times=1, res_top_channels=2)

    def middle(self, x: Tensor) -> Tensor:
        return self.block(x)


class WidthOfTheLastBlock(Wrapped):
    """VAN: the backbone asks its last block for the width."""

    units = {'stem.0': (8, None), 'block.attn.proj_1': (8, None), 'block.mlp.fc1': (16, None), 'head': OUT}

    def make(self) -> None:
        self.block = VANBlock(8, ffn_ratio=2., drop_path_rate=0.)

    def middle(self, x: Tensor) -> Tensor:
        x = self.block(x)
        size = x.shape[2:]
        return x.flatten(2).transpose(1, 2).reshape(-1, *size, self.block.out_channels).permute(0, 3, 1, 2)


class GatedOrders(Wrapped):
    """HorNet: parts of unequal width, one after the other."""

    units = {'stem.0': (8, None), 'conv.proj_in': (2, None), 'conv.projs.0': (4, None), 'conv.projs.1': (8, None),
             'conv.proj_out': (8, None), 'head': OUT}
    members = {'conv.projs.0': 'conv.proj_in[4:8] conv.projs.0[0:4] | conv.dwconv[2:6] | conv.projs.1[0:4]'}

    def make(self) -> None:
        self.conv = gnConv(8, order=3)

    def middle(self, x: Tensor) -> Tensor:
        return self.conv(x)


class SplitOfTheInput(Wrapped):
    """EdgeNeXt: the input is split into parts, of which the last goes by."""

    units = {'stem.0': (4, None), 'block.csa.proj': (2, None), 'block.csa.qkv': (5, Reason.OUTER),
             'block.pointwise_conv1': (40, None), 'head': OUT}
    channels = 10

    def make(self) -> None:
        self.block = SDTAEncoder(10, num_heads=2, scales=3, use_pos_emb=False)

    def middle(self, x: Tensor) -> Tensor:
        return self.block(x)


class KeysAndValues(Tokens):
    """LeViT, TinyViT: keys and values of different width, in attention that keeps or lowers the resolution."""

    units = {'patch': (12, None), 'a.qkv.linear': (4, None), 'a.qkv.linear#2': (8, None), 'b.qkv': (4, None),
             'c.kv.linear': (4, None), 'c.kv.linear#2': (8, None), 'c.proj.1.linear': (12, None), 'head': OUT}

    def make(self) -> None:
        self.a, self.b = Attention(12, 4, 2, attn_ratio=2, resolution=2), LeAttention(12, 4, 2, 1, resolution=(2, 2))
        self.c = AttentionSubsample(12, 12, 4, 2, resolution=2)
        self.eval()  # they keep their biases apart then

    def middle(self, x: Tensor) -> Tensor:
        x = x + self.a(x)
        return self.c(x + self.b(x))


class WeightsOfBranches(Wrapped):
    """LiteHRNet: one layer for the weights of all branches, split by their widths."""

    units = {'stem.0': (4, None), 'other': (8, None), 'block.cross_resolution_weighting.conv1.conv': (3, None),
             'block.spatial_weighting.0.conv1.conv': (1, Reason.SINGLE),
             'block.spatial_weighting.1.conv1.conv': (2, None), 'head': OUT}
    head_inputs = 24

    def make(self) -> None:
        self.other = conv(8, 16, stride=2)
        self.block = ConditionalChannelWeighting([8, 16], 1, 4)

    def middle(self, x: Tensor) -> Tensor:
        wide, narrow = self.block([x, self.other(x)])
        return torch.cat([wide, F.interpolate(narrow, scale_factor=2.)], 1)


class ContextOfPools(Wrapped):
    """APCNet: the width of a context module."""

    units = {'stem.0': (8, None), 'module.input_redu_conv.conv': (6, None), 'module.pooled_redu_conv.conv': (6, None),
             'module.gla': (4, Reason.OUTER), 'module.fusion_conv.conv': (6, None), 'head': OUT}
    head_inputs = 6

    def make(self) -> None:
        self.module = ACM(2, True, 8, 6, None, dict(type='BN'), dict(type='ReLU'))

    def middle(self, x: Tensor) -> Tensor:
        return self.module(x)


class OneWidthForAllStages(ToyNet):
    """MSPN: a head compares the widths of all stages with one number."""

    units = {'first': (8, None), 'second': (8, None), 'head.predict_layers.0.conv_layers.0.conv': (8, None),
             'head.predict_layers.0.conv_layers.1.conv': OUT, 'head.predict_layers.1.conv_layers.0.conv': (8, None),
             'head.predict_layers.1.conv_layers.1.conv': OUT}

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(3, 8), conv(3, 8)
        self.head = MSPNHead(num_stages=2, num_units=1, out_shape=(8, 8), unit_channels=8, out_channels=5,
                             level_indices=[0, 1], loss={'type': 'mmpose.KeypointMSELoss'})

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.head([[F.relu(self.first(x))], [F.relu(self.second(x))]])


class PositionsLast(ToyNet):
    """SAM: position embeddings with their channels in the last dimension, and the width of them all."""

    units = {'body.patch_embed.projection': (12, None), 'body.layers.0.attn.qkv': (4, None),
             'body.layers.0.ffn.layers.0.0': (24, None), 'head': OUT}
    members = {'body.layers.0.attn.qkv': 'body.layers.0.attn.qkv[0:36/9]~ | body.layers.0.attn.rel_pos_h[0:4] '
                                         'body.layers.0.attn.rel_pos_w[0:4] | body.layers.0.attn.proj[0:12/3]~'}

    def __init__(self) -> None:
        super().__init__()
        self.body = ViTSAM(dict(embed_dims=12, num_layers=1, num_heads=3, feedforward_channels=24,
                                global_attn_indexes=[]), img_size=8, patch_size=4, out_channels=0, use_rel_pos=True,
                           window_size=0)
        self.head = conv(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)[0])


class SumOfLevels(ToyNet):
    """GRoIE: regions of all levels are summed, after one convolution for all, into what is made for that."""

    units = {'a': (8, None), 'regions.pre_module.conv': (8, None), 'fc': (6, None), 'head': OUT}
    members = {'a': 'a[0:8] b[0:8] |  | regions.pre_module.conv[0:8]',
               'regions.pre_module.conv': 'regions.pre_module.conv[0:8] |  | fc[0:32/4]'}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 8), conv(3, 8)
        self.regions = GenericRoIExtractor(
            roi_layer=dict(type='RoIAlign', output_size=2), out_channels=8, featmap_strides=[1, 1],
            pre_cfg=dict(type='ConvModule', in_channels=8, out_channels=8, kernel_size=1))
        self.fc, self.head = nn.Linear(32, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        boxes = x.new_tensor([[0, 0, 0, 4, 4], [0, 1, 2, 7, 6]])
        return self.head(F.relu(self.fc(self.regions([self.a(x), self.b(x)], boxes).flatten(1))))


class HeadsByAWeight(Tokens):
    """timm's Swin V2: the code takes the weight of the layer, with a bias of parts, and the width of its input."""

    units = {'patch': (12, None), 'attn.qkv': (4, None), 'head': OUT}
    members = {'attn.qkv': 'attn.qkv[0:36/9]~ | attn.q_bias[0:12/3]~ attn.v_bias[0:12/3]~ | attn.proj[0:12/3]~'}

    def make(self) -> None:
        self.attn = _CosineHeads(12, 3)

    def middle(self, x: Tensor) -> Tensor:
        return x + self.attn(x)


class _CosineHeads(Heads):
    def __init__(self, dims: int, num_heads: int) -> None:
        super().__init__(dims, num_heads)
        self.qkv = nn.Linear(dims, 3 * dims, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.ones(dims)), nn.Parameter(torch.ones(dims))

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        qkv = F.linear(x, weight=self.qkv.weight, bias=bias).reshape(n, length, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attention = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        return self.proj((attention.softmax(-1) @ v).transpose(1, 2).reshape(n, length, width))


class WindowsByAFunction(Tokens):
    """torchvision's Swin: a function pads and moves the input, and takes the weight of ``qkv`` itself."""

    shape = (3, 20, 12)
    kind = ShiftedWindowAttention
    units = {'patch': (12, None), 'attn.qkv': (4, None), 'head': OUT}
    members = {'patch': 'attn.proj[0:12] patch[0:12] |  | attn.qkv[0:12] head[0:12]',
               'attn.qkv': 'attn.qkv[0:36/9]~ |  | attn.proj[0:12/3]~'}

    def make(self) -> None:
        self.attn = self.kind(12, [2, 2], [1, 1], 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).permute(0, 2, 3, 1)
        return self.head(x + self.attn(x))


class WindowsOfSwinV2(WindowsByAFunction):
    """Queries and keys are normalised: input and heads lose channels independently."""

    kind = ShiftedWindowAttentionV2
    units = {'patch': (12, None), 'attn.qkv': (4, None), 'attn.cpb_mlp.0': (512, None),
             'attn.cpb_mlp.2': (3, Reason.OUTER), 'head': OUT}


class HeadsOfMaxViT(Tokens):
    """The width of a head is stored, that of all heads is taken from the input."""

    units = {'patch': (12, None), 'attn.to_qkv': (4, None), 'head': OUT}

    def make(self) -> None:
        self.attn = RelativePositionalMultiHeadAttention(12, 4, 4)

    def middle(self, x: Tensor) -> Tensor:
        return x + self.attn(x[:, None])[:, 0]
