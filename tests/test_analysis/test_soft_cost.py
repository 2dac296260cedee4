"""Soft costs against plain loops over weights, and, at whole numbers, against the slimmed model."""
from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from mmprune_ext.analysis import CostModel, SoftCost, complexity
from mmprune_ext.compact.compact_model import build_architecture
from mmprune_ext.errors import PruningError
from mmprune_ext.settings import reading
from mmprune_ext.units import UnitSet, slim, trace_units
from tests.test_units.toy_nets import TOYS, ToyNet

KINDS = ('macs', 'params', 'channels', 'volume')
# Every kind of layer and of sharing: chains, sums, concatenations, groups, followers, flattening, deformable
# convolutions with and without bias, layers called several times, parameters of no layer.
NETS = ('Chain', 'BiasWithoutNorm', 'Residual', 'ProjectedBlocks', 'DenseConcat', 'NestedConcat', 'GroupedConv',
        'GroupedChain', 'GroupedOverConcat', 'Depthwise', 'DepthwiseMultiplier', 'Transposed', 'TransposedGrouped',
        'TransposedDepthwise', 'FlattenLinear', 'ChannelsLastFlatten', 'Conv1dNet', 'Conv3dNet', 'SqueezeExciteLinear',
        'TokensWithEmbedding', 'LayerScale', 'SharedOverPyramid', 'CalledTwice', 'OptionA', 'DeformablePack',
        'ModulatedPack', 'DeformGroups', 'DeformGroupsAndGroups')


# ---------------------------------------------------------------- the definition


class Definition:
    """Costs by loops: each weight, and each output position, counts as much as its channels are there.

    Args:
        model: The dense model.
        units: Its units.
        counts: How many channels of each unit stay. ``k`` of ``C`` channels stay: each of them is there to
            ``k / C``.
        sample: A batch of one.
    """

    def __init__(self, model: nn.Module, units: UnitSet, counts: dict[str, float], sample: Tensor) -> None:
        self.model, self.units, self.counts = model, units, counts
        self.there: dict[tuple[str, str, int], float] = {}
        for name, unit in units.items():
            sides = [('out', m) for m in (*unit.producers, *unit.followers)] + [('in', m) for m in unit.consumers]
            for side, member in sides:
                for position in member.positions(unit.num_channels).ravel().tolist():
                    self.there[member.module, side, position] = counts[name] / unit.num_channels
        # Positions in space of what a layer reads and gives out, summed over its calls.
        self.read: dict[str, int] = {}
        self.given: dict[str, int] = {}
        handles = [layer.register_forward_hook(self._look(path, layer)) for path, layer in self.layers()]
        with torch.no_grad():
            model(sample)
        for handle in handles:
            handle.remove()

    def layers(self) -> list[tuple[str, nn.Module]]:
        """Return all convolution and linear layers: those that have a weight of several dimensions."""
        return [(path, m) for path, m in self.model.named_modules()
                if isinstance(getattr(m, 'weight', None), Tensor) and m.weight.dim() > 1]

    def _look(self, path: str, layer: nn.Module) -> Callable[..., None]:
        ins, outs, _ = sizes_of(layer)

        def look(module, args, output):
            self.read[path] = self.read.get(path, 0) + args[0].numel() // ins
            self.given[path] = self.given.get(path, 0) + output.numel() // outs
        return look

    def at(self, path: str, side: str, position: int) -> float:
        return self.there.get((path, side, position), 1.0)

    def weight(self, path: str, layer: nn.Module) -> float:
        """Return how much of a layer's weight is there: a loop over its pairs of positions."""
        ins, outs, groups = sizes_of(layer)
        total = 0.0
        for row, column in itertools.product(*map(range, layer.weight.shape[:2])):
            if isinstance(layer, _ConvTransposeNd):  # stored as inputs x outputs of the group
                source, target = row, row // (ins // groups) * (outs // groups) + column
            else:
                source, target = row // (outs // groups) * (ins // groups) + column, row
            total += self.at(path, 'in', source) * self.at(path, 'out', target) * layer.weight[row, column].numel()
        return total

    def macs(self) -> float:
        total = 0.0
        for path, layer in self.layers():
            uses = self.read if isinstance(layer, _ConvTransposeNd) else self.given
            total += self.weight(path, layer) * uses[path]
        return total

    def params(self) -> float:
        total = sum(self.weight(path, layer) for path, layer in self.layers())
        weights = {id(layer.weight) for _, layer in self.layers()}
        free = {m.module: m.dim for unit in self.units.values() for m in unit.followers if m.dim is not None}
        for name, parameter in self.model.named_parameters():
            if id(parameter) in weights:
                continue
            owner, dim = name.rpartition('.')[0], 0
            if name in free:
                owner, dim = name, free[name]
            for position in range(parameter.shape[dim]):
                total += self.at(owner, 'out', position) * parameter.select(dim, position).numel()
        return total

    def channels(self) -> float:
        return sum(self.counts[name] for name in self.units.prunable)

    def volume(self) -> float:
        return sum(self.at(path, 'out', position) * self.given[path]
                   for path, layer in self.layers() for position in range(sizes_of(layer)[1]))


def sizes_of(layer: nn.Module) -> tuple[int, int, int]:
    """Return the inputs, outputs and groups of a layer, from its weight."""
    groups = getattr(layer, 'groups', 1)
    first, second = layer.weight.shape[:2]
    return (first, second * groups, groups) if isinstance(layer, _ConvTransposeNd) else (second * groups, first, groups)


def cost_model(model: nn.Module, units: UnitSet, sample: Tensor | tuple[int, ...]) -> CostModel:
    dense = complexity(model, sample, flops=False)
    return CostModel(units, dense.per_layer, model, dense_outputs=dense.per_layer_outputs)


def traced(name: str) -> tuple[nn.Module, UnitSet, Tensor]:
    toy: type[ToyNet] = TOYS[name]
    model, sample = toy.build(), toy.example(batch=1)
    units = trace_units(model, sample)
    assert units.prunable
    return model, units, sample


@pytest.mark.parametrize('name', NETS)
def test_equals_loops_over_the_weights(name):
    model, units, sample = traced(name)
    costs = cost_model(model, units, sample)
    random = np.random.default_rng(0)
    whole = {name: float(unit.num_channels) for name, unit in units.items()}
    soft = {name: unit.num_channels * random.uniform(0.1, 1) for name, unit in units.prunable.items()}
    for counts in (whole, {**whole, **soft}):
        definition = Definition(model, units, counts, sample)
        vector = torch.tensor([counts[name] for name in costs.names], dtype=torch.float64, requires_grad=True)
        for kind in KINDS:
            cost = SoftCost(costs, kind)
            assert cost.total(vector).item() == pytest.approx(getattr(definition, kind)(), rel=1e-12)
            assert cost(vector).item() == pytest.approx(getattr(definition, kind)() / cost.dense, rel=1e-12)
            assert torch.autograd.gradcheck(cost, (vector, ))
            if counts is whole:
                assert cost(vector).item() == 1 and cost.total(vector).item() == cost.dense


# ---------------------------------------------------------------- whole models, exactly

LIBRARIES = {
    'ResNet-50': ('mmpretrain::resnet/resnet50_8xb32_in1k.py', (32, 32)),
    'MobileNetV2': ('mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py', (32, 32)),
    'ShuffleNetV2': ('mmpretrain::shufflenet_v2/shufflenet-v2-1x_16xb64_in1k.py', (32, 32)),
    'ResNeXt-50': ('mmpretrain::resnext/resnext50-32x4d_8xb32_in1k.py', (32, 32)),
    'DenseNet-121': ('mmpretrain::densenet/densenet121_4xb256_in1k.py', (32, 32)),
    'VGG-16': ('mmpretrain::vgg/vgg16_8xb32_in1k.py', (224, 224)),
    'HRNet-W18': ('mmpretrain::hrnet/hrnet-w18_4xb32_in1k.py', (32, 32)),
    'ConvNeXt-T': ('mmpretrain::convnext/convnext-tiny_32xb128_in1k.py', (32, 32)),
    'FasterRCNN': ('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', (64, 64)),
    'FasterRCNN-DCN': ('mmdet::dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py', (128, 128)),
    'RTMDet-tiny': ('mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py', (64, 64)),
    'PointRend': ('mmseg::point_rend/pointrend_r50_4xb2-80k_cityscapes-512x1024.py', (64, 64)),
    'RTMPose-tiny': ('mmpose::body_2d_keypoint/rtmpose/coco/rtmpose-t_8xb256-420e_coco-256x192.py', (256, 192)),
}


SLOW = ('VGG-16', 'HRNet-W18', 'FasterRCNN-DCN')


@pytest.mark.parametrize('name', [pytest.param(name, marks=pytest.mark.e2e if name in SLOW else ())
                                  for name in LIBRARIES])
def test_whole_numbers_give_the_slimmed_model(name):
    path, size = LIBRARIES[name]
    pytest.importorskip(path.split('::')[0])
    config = reading.read_config(path)
    model = build_architecture(config.model, config.get('data_preprocessor'))
    units = trace_units(model, size)
    dense = complexity(model, size, flops=False)
    costs = CostModel(units, dense.per_layer, model, dense_outputs=dense.per_layer_outputs)
    soft = {kind: SoftCost(costs, kind) for kind in KINDS}
    whole = torch.tensor([unit.num_channels for unit in units.values()], dtype=torch.float64)
    for kind in ('params', 'macs', 'volume'):
        assert (soft[kind].total(whole).item(), soft[kind](whole).item()) == (getattr(dense, kind), 1)
    for seed in range(2):
        random = np.random.default_rng(seed)
        for unit in units.prunable.values():
            keep = random.integers(1, unit.num_channels + 1)
            unit.choose(random.permutation(unit.num_channels)[:keep].tolist())
        compact = complexity(slim(copy.deepcopy(model), units), size, flops=False)
        counts = torch.tensor([unit.keep for unit in units.values()], dtype=torch.float64)
        for kind in ('params', 'macs', 'volume'):
            assert soft[kind].total(counts).item() == getattr(compact, kind) < getattr(dense, kind)
            assert soft[kind](counts).item() == getattr(compact, kind) / getattr(dense, kind)
        assert soft['channels'].total(counts).item() == sum(unit.keep for unit in units.prunable.values())


# ---------------------------------------------------------------- types, copies, errors


@pytest.fixture(scope='module')
def costs() -> CostModel:
    return cost_model(*traced('ProjectedBlocks'))


def soft_counts(costs: CostModel, dtype: torch.dtype) -> Tensor:
    return (torch.from_numpy(costs.sizes) * 0.7).to(dtype).requires_grad_()


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_less_precise_numbers(costs, kind, dtype):
    """What they lose is in the numbers of channels; the cost is computed in float32."""
    cost, counts = SoftCost(costs, kind), soft_counts(costs, dtype)
    exact = counts.detach().double().requires_grad_()
    share, expected = cost(counts), cost(exact)
    assert share.dtype == torch.float32 and share.item() == pytest.approx(expected.item(), rel=1e-6)
    share.backward(), expected.backward()
    assert counts.grad.dtype == dtype
    assert torch.allclose(counts.grad.double(), exact.grad, rtol=2 * torch.finfo(dtype).eps, atol=0)


def test_autocast_does_not_round(costs):
    cost, counts = SoftCost(costs, 'macs'), soft_counts(costs, torch.float32)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        inside = cost(counts)
    assert inside.dtype == torch.float32 and torch.equal(inside, cost(counts))


@pytest.mark.parametrize('copied', [copy.deepcopy, lambda cost: pickle.loads(pickle.dumps(cost))],
                         ids=['deepcopy', 'pickle'])
def test_copies(costs, copied):
    cost, counts = SoftCost(costs, 'params'), soft_counts(costs, torch.float64)
    before = cost(counts)
    other = copied(cost)
    assert torch.equal(other(counts), before)
    assert (other.kind, other.names, other.dense) == ('params', costs.names, costs.dense_params)


def test_first_used_in_inference(costs):
    """As in a validation before training: the coefficients can be trained with afterwards."""
    cost, counts = SoftCost(costs, 'macs'), soft_counts(costs, torch.float32)
    with torch.inference_mode():
        cost(counts)
    cost(counts).backward()
    assert (counts.grad > 0).all()


def test_order_and_channels_that_cannot_go(costs):
    """The gradient of a unit is at its place, and what cannot be pruned is in no number of channels."""
    model, units, _ = traced('ProjectedBlocks')
    counts = soft_counts(costs, torch.float64)
    SoftCost(costs, 'channels').total(counts).backward()
    assert counts.grad.tolist() == [float(unit.prunable) for unit in units.values()]
    assert costs.names == list(units)


def test_errors(costs):
    model, units, sample = traced('Chain')
    with pytest.raises(PruningError, match="one of macs, params, channels, volume, but got 'flops'"):
        SoftCost(costs, 'flops')
    with pytest.raises(PruningError, match='volume needs the output values of each layer'):
        SoftCost(CostModel(units, units.costs, model), 'volume')
    with pytest.raises(PruningError, match='the dense model .* has no macs, of which no share can be taken'):
        SoftCost(CostModel(units, units.costs, model, 'bn1'), 'macs')
    cost = SoftCost(CostModel(units, units.costs, model), 'macs')
    for counts in (torch.ones(2), torch.ones(3, 1), torch.ones(3, dtype=torch.int64)):
        with pytest.raises(PruningError, match=r'counts should be a floating-point tensor \(3,\), one number a channel '
                           r'unit, but got torch\.'):
            cost(counts)
