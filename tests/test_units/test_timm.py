"""timm's networks, by themselves and as backbones of mmpretrain: slimmed equals silenced."""

from __future__ import annotations

import pytest
import timm
import torch
from mmengine.config import Config
from timm.layers import Attention
from timm.models.cait import ClassAttn
from timm.models.cspnet import CspModelCfg, CspNet, CspStagesCfg, CspStemCfg
from timm.models.levit import Levit
from timm.models.maxxvit import AttentionCl
from timm.models.pvt_v2 import Attention as PVTAttention
from timm.models.res2net import Bottle2neck
from timm.models.resnet import ResNet
from torch import nn

from mmprune_ext.units import Reason, UnitSet, slim, trace_units
from mmprune_ext.workflows.pruning import prune_model, trace_config
from tests.test_units.reference import assert_close, choose, outputs_of, silenced
from tests.test_units.toy_base import randomise

# timm's own small networks: the arguments that it needs, and the channels of all that can be pruned, by hand.
NETWORKS = {
    # Stem of 16, 16 and 32 (which is the first stage, too), stages of 48, 4 * 48 and 96; inside 32, 48, two of 48, 96.
    'test_resnet': ({}, 16 + 16 + 32 + 48 + 4 * 48 + 96 + 32 + 48 + 48 + 48 + 96),
    # Stem of 24, stages of 16 to 64, four times a block's input inside, a quarter of that squeezed, 256 at the end.
    'test_efficientnet': ({}, 24 + 16 + 24 + 32 + 48 + 64 + 4 * (16 + 24 + 32 + 48) + 8 + 12 + 256),
    # Four stages, and four times their width inside each of 1, 2, 4, 2 blocks.
    'test_convnext': ({}, 24 + 32 + 48 + 64 + 4 * (24 + 2 * 32 + 4 * 48 + 2 * 64)),
    # The embedding, and three times its width inside each of 6 blocks, beside heads of attention.
    'test_vit': ({'img_size': 64}, 64 + 6 * 3 * 64)}


def assert_slimmed_equals_silenced(model: nn.Module, units: UnitSet) -> None:
    """Assert this of random channels, and that of the other units only outputs and attention stay whole."""
    assert {unit.reason for unit in units.values()} <= {None, Reason.OUTPUT, Reason.ATTENTION}
    choose(units, 1, fewest=2)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        want = silenced(model, units)(x)
        assert_close([slim(model, units)(x)], [want], 1e-4)


@pytest.mark.parametrize('name', NETWORKS)
def test_slimmed_equals_silenced(name):
    torch.manual_seed(0)
    arguments, channels = NETWORKS[name]
    model = timm.create_model(name, num_classes=5, **arguments).eval()
    randomise(model)
    units = trace_units(model, (64, 64))
    assert sum(unit.num_channels for unit in units.prunable.values() if '.attn.' not in unit.name) == channels
    assert_slimmed_equals_silenced(model, units)


class WithAttention(nn.Module):
    """MaxViT's attention, whose heads of 4 channels are stored."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.attn, self.head = nn.Conv2d(3, 12, 4, 4), AttentionCl(12, 12, 4), nn.Linear(12, 5)

    def forward(self, x):
        x = self.patch(x).permute(0, 2, 3, 1)
        return self.head(x + self.attn(x))


class OfTokens(nn.Module):
    """Attention of 3 heads of 4 channels, on 8 x 8 places."""

    def __init__(self, attention: nn.Module, *args: object) -> None:
        super().__init__()
        self.patch, self.attn, self.head = nn.Conv2d(3, 12, 8, 8), attention, nn.Linear(12, 5)
        self.args = args

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        return self.head(x + self.attn(x, *self.args))


def cross_stages() -> nn.Module:
    stages = CspStagesCfg(depth=(1,), out_chs=(16,), stride=(2,), expand_ratio=(1.,), bottle_ratio=(0.5,),
                          block_ratio=(0.5,), down_growth=True, block_type='dark')
    return CspNet(CspModelCfg(stem=CspStemCfg(out_chs=8, kernel_size=3, pool=''), stages=stages), num_classes=5)


# Parts that keep sizes of their own: a network of them, and a unit that needs these set anew, with its channels.
PARTS = {
    'Attention': (lambda: OfTokens(Attention(12, 3)), 'attn.qkv', 4),
    'Attention of CaiT': (lambda: OfTokens(ClassAttn(12, 3)), 'attn.q', 4),
    'Attention of PVT': (lambda: OfTokens(PVTAttention(12, 3), (8, 8)), 'attn.q', 4),
    'Attention of PVT on fewer places': (lambda: OfTokens(PVTAttention(12, 3, sr_ratio=2), (8, 8)), 'attn.q', 4),
    'Attention with a gate': (lambda: OfTokens(Attention(12, 3, qk_norm=True, gated=True, norm_layer=nn.LayerNorm)),
                              'attn.gate', 4),
    'AttentionCl': (WithAttention, 'patch', 12),
    'CrossStage': (cross_stages, 'stages.0.conv_exp.conv', 8),
    'Levit': (lambda: Levit(64, embed_dim=(16, 24, 32), key_dim=4, depth=(1, 1, 1), num_heads=(2, 3, 4), num_classes=5),
              'stages.0.blocks.0.attn.qkv.linear', 4),
    'Res2Net': (lambda: ResNet(Bottle2neck, (1, 1, 1, 1), base_width=32, cardinality=1, channels=(8, 8, 8, 8),
                               num_classes=5, block_args=dict(scale=4)), 'layer1.0.conv1', 4)}


@pytest.mark.parametrize('name', PARTS)
def test_sizes_of_parts(name):
    torch.manual_seed(0)
    build, unit, channels = PARTS[name]
    model = build().eval()
    randomise(model)
    units = trace_units(model, (64, 64))
    assert units[unit].prunable, units[unit].why()
    assert units[unit].num_channels == channels
    assert_slimmed_equals_silenced(model, units)


def test_attention_stays_fused_where_its_heads_stay():
    torch.manual_seed(0)
    model = OfTokens(Attention(12, 3)).eval()
    units = trace_units(model, (64, 64))
    units['patch'].choose(range(7))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        want = silenced(model, units)(x)
        assert_close([slim(model, units)(x)], [want], 1e-5)
    assert model.attn.fused_attn and model.attn.scale == 4 ** -0.5


def test_heads_that_lose_channels_keep_their_scale():
    model = OfTokens(Attention(12, 3)).eval()
    units = trace_units(model, (64, 64))
    units['attn.qkv'].choose([0, 3])
    slim(model, units)
    assert not model.attn.fused_attn
    assert (model.attn.scale, model.attn.head_dim, model.attn.attn_dim) == (4 ** -0.5, 2, 6)


def test_the_size_of_a_network_is_what_it_states():
    model = timm.create_model('test_vit', img_size=48, dynamic_img_size=False, depth=1)
    assert 'blocks.0.mlp.fc1' in trace_units(model).prunable
    units = trace_units(timm.create_model('test_resnet'))
    assert units.costs['fc'] == 96 * 1000 and units.costs['conv1.0'] == 80 * 80 * 3 * 9 * 16  # of 160 x 160


# As backbones: arguments, width, channels of all that can be pruned, a layer and what is left of it at half.
BACKBONES = {
    'test_resnet': ({}, 96, NETWORKS['test_resnet'][1], 'layer1.0.conv1', 16),
    # The embedding, a head, the hidden layer.
    'vit_tiny_patch16_224': (dict(img_size=64, depth=1), 192, 192 + 64 + 4 * 192, 'blocks.0.mlp.fc1', 384)}


@pytest.mark.usefixtures('mmpretrain_scope')
@pytest.mark.parametrize('name', BACKBONES)
def test_backbone_of_mmpretrain(name, tmp_path):
    import mmpretrain.models  # noqa: F401  registers the parts
    from mmengine.registry import MODELS

    from mmprune_ext.compact import CompactModel
    arguments, width, channels, layer, left = BACKBONES[name]
    config = Config(dict(default_scope='mmpretrain', demo_inputs=(64, 64), model=dict(
        type='ImageClassifier', backbone=dict(type='TIMMBackbone', model_name=name, **arguments),
        neck=dict(type='GlobalAveragePooling') if name == 'test_resnet' else None,
        head=dict(type='LinearClsHead', num_classes=5, in_channels=width, loss=dict(type='CrossEntropyLoss')))))
    units = trace_config(config)
    assert sum(unit.num_channels for unit in units.prunable.values()) == channels
    assert all(name.startswith('backbone.timm_model.') for name in units.prunable)
    torch.manual_seed(0)
    dense = MODELS.build(config.model).eval()
    torch.save({'state_dict': dense.state_dict()}, tmp_path / 'dense.pth')
    prune_model(config, str(tmp_path / 'dense.pth'), tmp_path / 'out', 'l1', {}, ratios=0.5, bn_batches=0)
    pruned = UnitSet.load(tmp_path / 'out' / 'units.json')
    compact = CompactModel(config.model, pruned, init_cfg=dict(
        type='Pretrained', checkpoint=str(tmp_path / 'out' / 'compact.pth')))
    compact.init_weights()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert_close(outputs_of(compact.eval()(x)), outputs_of(silenced(dense, pruned)(x)), 1e-4)
    slimmed = compact.backbone.timm_model.get_submodule(layer)
    assert len(slimmed.weight) == left
