"""The cost model against the slimmed model: exact, always."""
import copy
import functools
import time

import numpy as np
import pytest
import torch
from mmcv.ops import DeformConv2dPack, ModulatedDeformConv2dPack
from torch import nn

from mmprune_ext.analysis import Complexity, CostModel, complexity
from mmprune_ext.errors import PruningError, UnitFileError
from mmprune_ext.units import UnitSet, slim, trace_units
from mmprune_ext.units.slimming import random_choice


class Flattened(nn.Module):
    """One channel is 16 inputs of the linear layer; biases, PReLU, BN without affine."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6, affine=False)
        self.slope = nn.PReLU(6)
        self.fc1 = nn.Linear(6 * 16, 10)
        self.fc2 = nn.Linear(10, 4)

    def forward(self, x):
        return self.fc2(self.fc1(self.slope(self.norm(self.conv(x))).flatten(1)).relu())


class Multiplied(nn.Module):
    """A depthwise convolution with three outputs a channel, and grouped convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 24, 3, padding=1, groups=8)
        self.norm = nn.BatchNorm2d(24)
        self.grouped = nn.Conv2d(24, 12, 3, stride=2, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(12, 6, 2, stride=2)
        self.last = nn.Conv2d(6, 2, 1)

    def forward(self, x):
        x = self.norm(self.depthwise(self.conv1(x)))
        return self.last(self.up(self.grouped(x)))


class Residual(nn.Module):
    """A layer within one unit, called twice; a parameter and a buffer of no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.block = nn.Conv2d(8, 8, 3, padding=1)
        self.scale = nn.Parameter(torch.ones(1, 8, 1, 1))
        self.register_buffer('shift', torch.ones(1, 8, 1, 1))
        self.unit_norm = nn.GroupNorm(1, 8)
        self.head = nn.Conv2d(8, 2, 1)
        self.spare = nn.Parameter(torch.ones(5))

    def forward(self, x):
        x = self.stem(x)
        x = x + self.scale * self.block(x + self.shift)
        x = x + self.block(self.unit_norm(x))
        return self.head(x)


class Deformed(nn.Module):
    """Deformable convolutions with offset convolutions, which keep their outputs; the second has no bias."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.deformed = ModulatedDeformConv2dPack(8, 6, 3, padding=1, deform_groups=2)
        self.plain = DeformConv2dPack(6, 5, 3, padding=1)
        self.head = nn.Conv2d(5, 2, 1)

    def forward(self, x):
        return self.head(self.plain(self.deformed(self.stem(x))))


class Attended(nn.Module):
    """A joint weight for queries, keys and values, and one for each of them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.keys = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 6, 1)
        self.joint = nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True)
        self.apart = nn.MultiheadAttention(8, 2, kdim=6, vdim=6, bias=False, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x, keys = (conv(x).flatten(2).transpose(1, 2) for conv in (self.conv, self.keys))
        x = x + self.joint(x, x, x)[0]
        return self.head(self.apart(x, keys, keys, need_weights=False)[0])


TOYS = {toy.__name__: toy for toy in (Flattened, Multiplied, Residual, Deformed, Attended)}
ZOO = {'ResNet-18': (dict(depth=18), 512), 'MobileNetV2': ({}, 1280),
       'DenseNet-121': (dict(arch='121'), 1024), 'ResNeXt-50': (dict(depth=50), 2048),
       'ShuffleNetV2': ({}, 1024)}


def zoo_model(name: str) -> nn.Module:
    pytest.importorskip('mmpretrain.models')
    from mmpretrain.registry import MODELS
    options, width = ZOO[name]
    return MODELS.build(dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(type=f'mmpretrain.{name.split("-")[0]}', **options),
        neck=dict(type='mmpretrain.GlobalAveragePooling'),
        head=dict(type='mmpretrain.LinearClsHead', num_classes=10, in_channels=width)))


@functools.cache
def traced_zoo(name: str) -> tuple[nn.Module, UnitSet]:
    """Return a model and its units; neither is to be changed."""
    model = zoo_model(name)
    return model, trace_units(model, (32, 32))


def at_random(units: UnitSet, seed: int) -> dict[str, int]:
    random_choice(list(units.prunable.values()), np.random.default_rng(seed))
    return {name: unit.keep for name, unit in units.items()}


def check_exact(model: nn.Module, units: UnitSet, size: tuple[int, int], seeds: range) -> None:
    dense = complexity(model, size, flops=False)
    assert units.costs == dense.per_layer
    whole = CostModel(units, dense.per_layer, model, dense_outputs=dense.per_layer_outputs)
    assert (whole.dense_params, whole.dense_macs, whole.dense_volume) == (dense.params, dense.macs, dense.volume)
    assert (whole.params({}), whole.macs({}), whole.volume({})) == (dense.params, dense.macs, dense.volume)
    part = 'backbone' if hasattr(model, 'backbone') else ''
    backbone = CostModel(units, dense.per_layer, model, part, dense.per_layer_outputs)
    assert backbone.dense_params == dense.backbone_params
    assert backbone.dense_macs == dense.backbone_macs
    assert backbone.dense_volume == volume_of(dense, part)
    for seed in seeds:
        keeps = at_random(units, seed)
        compact = complexity(slim(copy.deepcopy(model), units), size, flops=False)
        assert compact.params < dense.params and compact.macs < dense.macs
        assert (whole.params(keeps), whole.macs(keeps)) == (compact.params, compact.macs)
        assert whole.volume(keeps) == compact.volume < dense.volume
        assert backbone.params(keeps) == compact.backbone_params
        assert backbone.macs(keeps) == compact.backbone_macs
        assert backbone.volume(keeps) == volume_of(compact, part)
        assert whole.channels(keeps) == sum(u.keep for u in units.prunable.values())
        check_savings(whole, units, keeps)


def volume_of(counted: Complexity, part: str) -> int:
    return sum(count for path, count in counted.per_layer_outputs.items() if path.startswith(part))


def check_savings(costs: CostModel, units: UnitSet, keeps: dict[str, int]) -> None:
    for kind, cost in (('macs', costs.macs), ('params', costs.params),
                       ('channels', costs.channels), ('volume', costs.volume)):
        savings = dict(zip(costs.names, costs.savings(keeps, kind)))
        for name in units.prunable:
            fewer = {**keeps, name: keeps[name] - 1}
            assert savings[name] == cost(keeps) - cost(fewer), (name, kind)
            assert costs.saving(name, keeps, kind) == savings[name]


@pytest.mark.parametrize('name', TOYS)
def test_toys(name):
    model = TOYS[name]()
    units = trace_units(model, (4, 4))
    assert units.prunable
    check_exact(model, units, (4, 4), range(5))


@pytest.mark.parametrize('name', ZOO)
def test_zoo(name):
    model, units = traced_zoo(name)
    check_exact(model, units.copy(), (32, 32), range(2))


def test_flatten_by_hand():
    """Every number counted on paper."""
    model = Flattened()
    units = trace_units(model, (4, 4))
    costs = CostModel(units, units.costs, model, dense_outputs={'conv': 96, 'fc1': 10, 'fc2': 4})
    assert costs.names == ['conv', 'fc1', 'fc2']
    assert costs.sizes.tolist() == [6, 10, 4]
    assert costs.dense_channels == 16
    assert costs.macs({'conv': 2, 'fc1': 7}) == 16 * 27 * 2 + (16 * 2) * 7 + 7 * 4
    assert costs.params({'conv': 2, 'fc1': 7}) == 28 * 2 + 2 + (32 + 1) * 7 + (7 + 1) * 4
    # One of the two channels: its filter, 16 columns of fc1.
    assert costs.saving('conv', {'conv': 2, 'fc1': 7}) == 16 * 27 + 16 * 7
    assert costs.saving('conv', {'conv': 2, 'fc1': 7}, 'params') == 28 + 1 + 16 * 7
    assert costs.channels({'conv': 2, 'fc1': 7}) == 9  # fc2 is not prunable
    assert (costs.dense_volume, costs.volume({'conv': 2, 'fc1': 7})) == (96 + 10 + 4, 16 * 2 + 7 + 4)
    assert costs.savings({}, 'volume').tolist() == [16, 1, 1]


def test_terms_by_hand():
    """What a budget is made of: a product for each layer, and what a channel costs by itself."""
    model = Multiplied()
    units = trace_units(model, (4, 4))
    costs = CostModel(units, units.costs, model)
    # Of the grouped convolutions a channel is one of each group.
    assert dict(zip(costs.names, costs.sizes)) == {'conv1': 4, 'grouped': 6, 'up': 6, 'last': 2}
    params = costs.terms('params')
    # Filters and biases of conv1, depthwise (3 outputs a channel), with its normalisation; twice, for the groups.
    assert params.linear.tolist() == [2 * (1 + 3 + 6), 2, 1, 1]
    # conv1, depthwise, grouped, up, last
    assert params.weights.tolist() == [9, 9, 9, 4, 1] and params.groups.tolist() == [1, 8, 2, 1, 1]
    assert params.in_fixed.tolist() == [3, 8, 0, 0, 0] and params.out_fixed.tolist() == [0] * 5
    assert params.in_use.tolist() == [[0] * 4, [0] * 4, [6, 0, 0, 0], [0, 2, 0, 0], [0, 0, 1, 0]]
    assert params.out_use.tolist() == [[2, 0, 0, 0], [6, 0, 0, 0], [0, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert params.constant == 0 and params.dense == sum(p.numel() for p in model.parameters())
    # 16 positions, of the grouped convolution 4; a transposed convolution multiplies at its inputs.
    assert costs.terms('macs').weights.tolist() == [16 * 9, 16 * 9, 4 * 9, 4 * 4, 16]
    assert not costs.terms('macs').linear.any()
    assert len(costs.terms('channels').weights) == 0 and costs.terms('channels').linear.tolist() == [1, 1, 1, 0]


def test_vectors_and_mappings_agree():
    model = Flattened()
    units = trace_units(model, (4, 4))
    costs = CostModel(units, units.costs, model)
    vector = costs.vector({'fc1': 3})
    assert vector.tolist() == [6, 3, 4]
    assert costs.macs(vector) == costs.macs({'fc1': 3})
    assert type(costs.macs(vector)) is int and type(costs.params(vector)) is int


def test_units_from_a_file_serve_as_well(tmp_path):
    model = Multiplied()
    units = trace_units(model, (4, 4))
    units.save(tmp_path / 'units.json')
    macs = complexity(model, (4, 4), flops=False).per_layer
    loaded = CostModel(UnitSet.load(tmp_path / 'units.json'), macs, model)
    keeps = at_random(units, 0)
    assert loaded.macs(keeps) == CostModel(units, macs, model).macs(keeps)


def test_model_is_not_changed():
    model = Residual().train()
    units = trace_units(model, (4, 4))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    CostModel(units, units.costs, model).macs({'stem': 3})
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert model.stem.out_channels == 8 and model.training


@pytest.mark.parametrize(('keeps', 'message'), [
    ({'nope': 1}, 'unknown channel unit "nope"'),
    ({'conv': 7}, 'unit "conv" has 6 channels, and 7 cannot be kept'),
    ({'conv': -1}, 'unit "conv" has 6 channels, and -1 cannot be kept'),
    (np.array([1, 2]), 'got 2 kept numbers for 3 channel units')])
def test_wrong_kept_numbers(keeps, message):
    model = Flattened()
    units = trace_units(model, (4, 4))
    costs = CostModel(units, units.costs, model)
    with pytest.raises(PruningError, match=message):
        costs.macs(keeps)


def test_wrong_arguments():
    model = Flattened()
    units = trace_units(model, (4, 4))
    costs = CostModel(units, units.costs, model)
    with pytest.raises(PruningError, match="one of macs, params, channels, volume, but got 'flops'"):
        costs.savings({}, 'flops')
    assert costs.dense_volume is None
    for ask in (costs.volume, lambda keeps: costs.savings(keeps, 'volume'), lambda keeps: costs.terms('volume')):
        with pytest.raises(PruningError, match=r'give dense_outputs=complexity\(model, ...\).per_layer_outputs'):
            ask({})
    with pytest.raises(PruningError, match='unknown channel unit "nope"'):
        costs.saving('nope', {})
    with pytest.raises(PruningError, match='Flattened has no submodule "backbone"'):
        CostModel(units, units.costs, model, 'backbone')
    with pytest.raises(UnitFileError):
        CostModel(units, units.costs, Residual())


def test_a_step_of_a_search_takes_less_than_a_millisecond():
    model, units = traced_zoo('ResNeXt-50')
    costs = CostModel(units, units.costs, model)
    vector = costs.vector({})
    times = []
    for _ in range(20):
        start = time.perf_counter()
        costs.savings(vector)
        costs.macs(vector)
        times.append(time.perf_counter() - start)
    assert min(times) < 1e-3
