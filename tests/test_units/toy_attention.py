"""Toy nets: attention whose heads and whose input lose channels independently."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from mmcv.cnn.bricks.transformer import MultiheadAttention as OfMMCV
from mmdet.models.layers import SinePositionalEncoding
from mmpretrain.models.backbones.twins import GlobalSubsampledAttention, LocallyGroupedSelfAttention
from mmpretrain.models.backbones.xcit import XCA, ClassAttntion
from mmpretrain.models.utils.attention import MultiheadAttention as OfMMPretrain
from torch import Tensor, nn

from tests.test_units.toy_base import F, Reason
from tests.test_units.toy_sizes import OUT, Tokens


class MultiheadAttention(Tokens):
    """Queries and keys have one width, values another, the input a third."""

    units = {'patch': (12, None), 'attn.in_proj_weight': (4, None), 'attn.in_proj_weight#2': (4, None),
             'fc1': (16, None), 'head': OUT}
    members = {'patch': 'attn.out_proj[0:12] fc2[0:12] patch[0:12] | attn.in_proj_weight[0:12] | fc1[0:12] head[0:12]',
               'attn.in_proj_weight': 'attn.in_proj_weight[0:24/6]~ | attn.in_proj_bias[0:24/6]~ | ',
               'attn.in_proj_weight#2': 'attn.in_proj_weight[24:36/3]~ | attn.in_proj_bias[24:36/3]~ | '
                                        'attn.out_proj[0:12/3]~'}

    def make(self) -> None:
        self.attn = nn.MultiheadAttention(12, 3, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(12, 16), nn.Linear(16, 12)

    def middle(self, x: Tensor) -> Tensor:
        x = x + self.attn(x, x, x, need_weights=False)[0]
        return x + self.fc2(F.relu(self.fc1(x)))


class CrossAttention(Tokens):
    """Keys and values of other places, with all that the layer can add to them; the weights are used too."""

    units = {'memory': (12, None), 'attn.in_proj_weight': (6, None), 'attn.in_proj_weight#2': (6, None),
             'attn.out_proj': (12, None), 'head': OUT}
    members = {'memory': 'memory[0:12] patch[0:12] | attn.in_proj_weight[0:12] | ',
               'attn.in_proj_weight': 'attn.in_proj_weight[0:24/4]~ | attn.bias_k[0:12/2]~ '
                                      'attn.in_proj_bias[0:24/4]~ | '}

    def make(self) -> None:
        self.memory = nn.Conv2d(3, 12, 2, 2)
        self.attn = nn.MultiheadAttention(12, 2, add_bias_kv=True, add_zero_attn=True)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        memory, x = (conv(x).flatten(2).permute(2, 0, 1) for conv in (self.memory, self.patch))
        x, weights = self.attn(x, memory, memory, average_attn_weights=False)
        return self.head(x), weights


class WidthsOfTheirOwn(Tokens):
    """One weight each for queries, keys and values of different inputs."""

    units = {'patch': (12, None), 'keys': (8, None), 'values': (10, None), 'attn.q_proj_weight': (4, None),
             'attn.v_proj_weight': (4, None), 'attn.out_proj': (12, None), 'head': OUT}
    members = {'keys': 'keys[0:8] | attn.k_proj_weight[0:8] | ',
               'attn.q_proj_weight': 'attn.k_proj_weight[0:12/3]~ attn.q_proj_weight[0:12/3]~ | '
                                     'attn.in_proj_bias[0:24/6]~ | '}

    def make(self) -> None:
        self.keys, self.values = nn.Conv2d(3, 8, 2, 2), nn.Conv2d(3, 10, 2, 2)
        self.attn = nn.MultiheadAttention(12, 3, kdim=8, vdim=10, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = (conv(x).flatten(2).transpose(1, 2) for conv in (self.patch, self.keys, self.values))
        return self.head(self.attn(*tokens, need_weights=False)[0])


class Encoder(Tokens):
    """Torch's own encoder, which takes a fused operator of one width where it can."""

    units = {'patch': (12, None), 'body.layers.0.self_attn.in_proj_weight': (6, None),
             'body.layers.0.self_attn.in_proj_weight#2': (6, None), 'body.layers.0.linear1': (16, None),
             'body.layers.1.self_attn.in_proj_weight': (6, None), 'body.layers.1.self_attn.in_proj_weight#2': (6, None),
             'body.layers.1.linear1': (16, None), 'head': OUT}

    def make(self) -> None:
        layer = nn.TransformerEncoderLayer(12, 2, 16, dropout=0., batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2)

    def middle(self, x: Tensor) -> Tensor:
        return self.body(x)


class Queries(Tokens):
    """DETR: queries that start as zeros, in the layers of mmcv."""

    units = {'patch': (12, None), 'first.attn.in_proj_weight': (4, None), 'first.attn.in_proj_weight#2': (4, None),
             'second.attn.in_proj_weight': (4, None), 'second.attn.in_proj_weight#2': (4, None), 'head': OUT}

    def make(self) -> None:
        self.places = nn.Embedding(5, 12)
        self.first, self.second = (OfMMCV(12, 3, batch_first=True) for _ in range(2))

    def middle(self, x: Tensor) -> Tensor:
        places = self.places.weight[None].expand(len(x), -1, -1)
        queries = torch.zeros_like(places)
        queries = self.first(query=queries, key=queries, value=queries, query_pos=places, key_pos=places)
        return self.second(query=queries, key=x, value=x, query_pos=places)


class Waves(Tokens):
    """DETR: an encoding of positions without weights, added to channels, and read by a layer."""

    units = {'patch': (12, None), 'attn.attn.in_proj_weight': (4, None), 'attn.attn.in_proj_weight#2': (4, None),
             'others': (8, Reason.NO_LAYER), 'look': OUT, 'head': OUT}
    members = {'patch': 'attn.attn.out_proj[0:12] patch[0:12] places[0:12] | attn.attn.in_proj_weight[0:12] | '
                        'head[0:12]'}

    def make(self) -> None:
        self.places, self.others = SinePositionalEncoding(6, normalize=True), SinePositionalEncoding(4)
        self.attn, self.look = OfMMCV(12, 3, batch_first=True), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.patch(x)
        free = x.new_zeros(len(x), *x.shape[2:], dtype=torch.bool)
        places = self.places(free).flatten(2).transpose(1, 2)
        out = self.attn(query=x.flatten(2).transpose(1, 2), query_pos=places)
        return self.head(out), self.look(self.others(None, x))


class LocalHeads(Tokens):
    """Twins: the input is cut into windows, with padding, before a layer reads it."""

    units = {'patch': (12, None), 'attn.qkv': (4, None), 'head': OUT}
    members = {'attn.qkv': 'attn.qkv[0:36/9]~ |  | attn.proj[0:12/3]~'}
    shape = (3, 12, 8)

    def make(self) -> None:
        self.attn = LocallyGroupedSelfAttention(12, 3, qkv_bias=True, window_size=2)

    def middle(self, x: Tensor) -> Tensor:
        return x + self.attn(x, (3, 2))


class SubsampledHeads(Tokens):
    """Twins: keys and values on fewer places, where channels are others."""

    units = {'patch': (12, None), 'attn.q': (4, None), 'attn.sr': (12, None), 'head': OUT}
    members = {'attn.q': 'attn.kv[0:24/6]~ attn.q[0:12/3]~ |  | attn.proj[0:12/3]~',
               'attn.sr': 'attn.sr[0:12] | attn.norm[0:12] | attn.kv[0:12]'}

    def make(self) -> None:
        self.attn = GlobalSubsampledAttention(12, 3, sr_ratio=2)

    def middle(self, x: Tensor) -> Tensor:
        return x + self.attn(x, (2, 2))


class ClassHeads(Tokens):
    """XCiT: the first token alone asks; attention between channels keeps those of its heads."""

    units = {'patch': (12, None), 'cross.qkv': (4, Reason.OUTER), 'attn.q': (4, None), 'attn.v': (4, None), 'head': OUT}
    members = {'attn.q': 'attn.k[0:12/3]~ attn.q[0:12/3]~ |  | ', 'attn.v': 'attn.v[0:12/3]~ |  | attn.proj[0:12/3]~'}

    def make(self) -> None:
        self.cross, self.attn = XCA(12, 3), ClassAttntion(12, 3)
        self.norm, self.scale = nn.LayerNorm(12), nn.Parameter(torch.ones(12))

    def middle(self, x: Tensor) -> Tensor:
        x = x + self.cross(x)
        # The first token has other channels than the rest until they are added.
        return x + self.scale * torch.cat([self.attn(x), self.norm(x)[:, 1:]], 1)


class OwnForward(nn.MultiheadAttention):
    """Code of one's own in the place of torch's."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x, x, x)[0]


class AttentionOfOnesOwn(Tokens):
    """What a class of one's own computes with the weights is not known."""

    units = {'patch': (12, Reason.ATTENTION), 'head': OUT}

    def make(self) -> None:
        self.attn = OwnForward(12, 3)

    def middle(self, x: Tensor) -> Tensor:
        return self.attn(x)


class FusedHeads(Tokens):
    """ViT of mmpretrain: a fused operator whose scale stays that of the dense heads."""

    heads: ClassVar[type] = partial(OfMMPretrain, 12, 3)
    units = {'patch': (12, None), 'attn.qkv': (4, None), 'head': OUT}
    members = {'attn.qkv': 'attn.qkv[0:36/9]~ |  | attn.proj[0:12/3]~'}

    def make(self) -> None:
        self.attn = self.heads()

    def middle(self, x: Tensor) -> Tensor:
        return x + self.attn(x)


class ScaledHeads(FusedHeads):
    """With a scale of its own it takes another operator."""

    heads = partial(OfMMPretrain, 12, 3, qk_scale=0.3)
    units = FusedHeads.units
