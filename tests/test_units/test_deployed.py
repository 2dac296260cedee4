"""Blocks of a training and a deployed form convert after they were slimmed, and after a reload."""
import copy

import pytest
import torch
from mmengine.registry import MODELS as ROOT_MODELS
from mmpose.models.utils.reparam_layers import RepVGGBlock as PoseRepVGGBlock
from mmpretrain.registry import MODELS
from torch import nn
from torch.nn import functional as F

from mmprune_ext.compact import CompactModel
from mmprune_ext.units import slim, trace_units
from mmprune_ext.units.kinds import deployed
from tests.test_units.reference import assert_close, choose, outputs_of

STAGES = dict(num_blocks=[1, 2, 2, 1], width_factor=[0.25, 0.25, 0.125, 0.0625], se_cfg=None)
WHOLE = dict(**STAGES, group_layer_map=None)


class OwnBlock(nn.Module):
    """Written by a user: other names of the stored widths, and the identity's kernel kept once it was made."""

    def __init__(self, inp: int, oup: int, groups: int = 1) -> None:
        super().__init__()
        self.inp, self.oup, self.groups, self.kernel = inp, oup, groups, 3
        self.wide = nn.Conv2d(inp, oup, 3, padding=1, groups=groups, bias=False)
        self.bn, self.identity = nn.BatchNorm2d(oup), nn.BatchNorm2d(inp) if inp == oup else None

    def forward(self, x):
        if hasattr(self, 'fused'):
            return F.relu(self.fused(x))
        return F.relu(self.bn(self.wide(x)) + (0 if self.identity is None else self.identity(x)))

    def get_equivalent_kernel_bias(self):
        weights, bias = 0, 0
        for norm, kernel in ((self.bn, self.wide and self.wide.weight), (self.identity, None)):
            if norm is None:
                continue
            if kernel is None and not hasattr(self, 'id_tensor'):
                inner = self.inp // self.groups
                self.id_tensor = torch.zeros(self.inp, inner, 3, 3)
                for i in range(self.inp):
                    self.id_tensor[i, i % inner, 1, 1] = 1
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            weights = weights + (self.id_tensor if kernel is None else kernel) * scale.view(-1, 1, 1, 1)
            bias = bias + norm.bias - norm.running_mean * scale
        return weights, bias

    def switch_to_deploy(self):
        weight, bias = self.get_equivalent_kernel_bias()
        fused = nn.Conv2d(self.inp, self.oup, self.kernel, padding=1, groups=self.groups)
        fused.load_state_dict(dict(weight=weight, bias=bias))
        self.fused = fused
        del self.wide, self.bn, self.identity


class OfNorm(OwnBlock):
    """FastViT: a block of channels by themselves that has an identity alone."""

    def __init__(self, inp: int, oup: int, groups: int) -> None:
        super().__init__(inp, oup, groups)
        self.wide = self.bn = None

    def forward(self, x):
        return F.relu(self.fused(x) if hasattr(self, 'fused') else self.identity(x))


class Holder(nn.Module):
    """FastViT: holds such a block, and makes a layer of it by a width of its own."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim, self.norm = dim, OfNorm(dim, dim, dim)

    def forward(self, x):
        return F.relu(self.mixed(x)) if hasattr(self, 'mixed') else self.norm(x)

    def switch_to_deploy(self):
        self.norm.switch_to_deploy()
        self.mixed = nn.Conv2d(self.dim, self.dim, 3, padding=1, groups=self.dim)
        self.mixed.load_state_dict(self.norm.fused.state_dict())
        del self.norm


class SettingsBlock(nn.Module):
    """Keeps the settings of its layer, and makes the other one by them."""

    def __init__(self, inputs: int, outputs: int, groups: int = 1) -> None:
        super().__init__()
        self.settings = dict(in_channels=inputs, out_channels=outputs, kernel_size=3, padding=1, groups=groups)
        self.conv, self.bn = nn.Conv2d(**self.settings, bias=False), nn.BatchNorm2d(outputs)

    def forward(self, x):
        return F.relu(self.merged(x) if hasattr(self, 'merged') else self.bn(self.conv(x)))

    def merge(self):
        scale = self.bn.weight / (self.bn.running_var + self.bn.eps).sqrt()
        self.merged = nn.Conv2d(**self.settings)
        self.merged.load_state_dict(dict(weight=self.conv.weight * scale.view(-1, 1, 1, 1),
                                         bias=self.bn.bias - self.bn.running_mean * scale))
        del self.conv, self.bn

    switch_to_deploy = merge


@MODELS.register_module()
class OfBlocks(nn.Module):
    """Blocks one after the other, and a head."""

    def __init__(self, block: str) -> None:
        super().__init__()
        kind, options = {'pose': (PoseRepVGGBlock, dict(without_branch_norm=False)), 'own': (OwnBlock, {}),
                         'settings': (SettingsBlock, {})}[block]
        inner = kind(24, 24, groups=4, **options)
        self.blocks = nn.Sequential(*(kind(*sizes, **options) for sizes in ((3, 16), (16, 16), (16, 24))), inner)
        if block == 'own':
            self.blocks.append(Holder(24))
        self.head = nn.Conv2d(24, 5, 1)

    def forward(self, x):
        return self.head(self.blocks(x))

    def switch_to_deploy(self):
        for block in self.blocks:
            block.switch_to_deploy()


NETWORKS = {
    'RepVGG': dict(type='mmpretrain.RepVGG', arch=WHOLE),
    'RepVGG of groups': dict(type='mmpretrain.RepVGG', arch=dict(**STAGES, group_layer_map={2: 2, 4: 4})),
    'RepVGG with MTSPPF': dict(type='mmpretrain.RepVGG', add_ppf=True, arch=WHOLE),
    'MobileOne': dict(type='mmpretrain.MobileOne', arch=dict(
        num_blocks=[1, 2, 2, 1], width_factor=[0.25, 0.25, 0.125, 0.0625], num_conv_branches=[2, 1, 2, 1],
        num_se_blocks=[0, 0, 1, 1])),
    'RepLKNet': dict(type='mmpretrain.RepLKNet', arch=dict(large_kernel_sizes=[9, 7, 5, 3], layers=[1, 1, 2, 1],
                                                channels=[16, 24, 32, 64], small_kernel=3, dw_ratio=1)),
    'RIFormer': dict(type='mmpretrain.RIFormer', arch=dict(layers=[1, 1, 2, 1], embed_dims=[16, 24, 32, 64],
                                                mlp_ratios=[2] * 4, layer_scale_init_value=1.0)),
    'RepMLPNet': dict(type='mmpretrain.RepMLPNet', img_size=64, reparam_conv_kernels=(1, 3), arch=dict(
        channels=[16, 32, 64, 128], depths=[1] * 4, sharesets_nums=[1, 4, 16, 128])),
    'mmpose': dict(type='mmpretrain.OfBlocks', block='pose'),
    'own': dict(type='mmpretrain.OfBlocks', block='own'),
    'settings': dict(type='mmpretrain.OfBlocks', block='settings')}


def built(name: str) -> nn.Module:
    """Return a network with drawn batch statistics, in eval mode."""
    model = ROOT_MODELS.build(NETWORKS[name])
    generator = torch.Generator().manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, (nn.BatchNorm2d, nn.GroupNorm)):
            for value in layer.state_dict().values():
                if value.is_floating_point():
                    value.uniform_(0.5, 1.5, generator=generator)
    model.eval()
    return model


@torch.no_grad()
@pytest.mark.parametrize('name', NETWORKS)
def test_converts_after_slimming_and_after_a_reload(name):
    dense = built(name)
    units = trace_units(dense, (64, 64), scope='all')
    choose(units, 1)
    x = torch.randn(2, 3, 64, 64)
    compact = slim(copy.deepcopy(dense), units)
    wanted = outputs_of(compact(x))
    again = CompactModel(NETWORKS[name], units.to_json())
    again.eval()
    again.load_state_dict(compact.state_dict())
    for model in (compact, again):
        model.switch_to_deploy()
        assert_close(outputs_of(model(x)), wanted, 1e-5)
        assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in dense.parameters())


@torch.no_grad()
def test_an_identity_kept_from_before_is_made_anew():
    dense = built('own')
    for block in dense.blocks:
        getattr(block, 'norm', block).get_equivalent_kernel_bias()
    units = trace_units(dense, (8, 8), scope='all')
    choose(units, 1)
    x = torch.randn(2, 3, 8, 8)
    wanted = outputs_of(slim(dense, units)(x))
    dense.switch_to_deploy()
    assert_close(outputs_of(dense(x)), wanted, 1e-5)


def test_other_sizes_stay():
    """A kernel as large as a block is wide, and sizes of a module that has one form only."""
    block = OwnBlock(3, 8)
    block.kernel = 8
    plain = nn.Module()
    plain.out_channels, plain.conv = 8, nn.Conv2d(3, 8, 3)
    model = nn.ModuleList([block, plain])
    update = deployed.stored_sizes(model)
    for layer in (block.wide, plain.conv):
        layer.out_channels = 5
    update()
    assert (block.inp, block.oup, block.kernel, plain.out_channels) == (3, 5, 8, 8)
