"""The DCFF configs: published widths, unit files made by the published command, compact models.

The published compact models are built in three ways: from the unit file without tracing, from the export
of the algorithm, and as tools/test.py builds them.
"""
from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmprune_ext.algorithms import DCFF
from mmprune_ext.analysis import complexity
from mmprune_ext.engine import runs
from mmprune_ext.engine.fusion_hook import check_trained
from mmprune_ext.settings import reading
from mmprune_ext.targets.sparsity import parse_sparsity
from mmprune_ext.units import spec
from mmprune_ext.units.checking.decisions import Decisions
from mmprune_ext.units.demo_inputs import eval_pass
from mmprune_ext.units.labels import tensors_in
from mmprune_ext.units.task_samples import data_samples
from mmprune_ext.units.tracing.tracer import Tracer
from mmprune_ext.workflows.pruning import trace_config

ROOT = Path(__file__).resolve().parents[1]
PRUNING = ROOT / 'configs' / 'pruning'
TASK_MODELS = {row['row']: row for row in json.loads((ROOT / 'tests/data/published_task_models.json').read_text())}
LISTS = {row['row']: row for row in json.loads((ROOT / 'tests/data/published_dcff.json').read_text())}
# Folder, run, unit file, and a size to train on for a step, of the four published compact models.
FOUR = {
    'DCFF classification R50': ('mmcls', 'resnet50_8xb32_in1k', 'resnet_cls', (64, 64)),
    'DCFF Faster R-CNN R50-FPN': ('mmdet', 'faster_rcnn_resnet50_8xb4_coco', 'resnet_det', (96, 96)),
    'DCFF PointRend R50-V1c': ('mmseg', 'pointrend_resnet50_8xb2_cityscapes', 'resnet_seg', (64, 128)),
    'DCFF TopDown Heatmap R50': ('mmpose', 'topdown_heatmap_resnet50_coco', 'resnet_pose', (256, 192)),
}
CIFAR = ('vgg16', 'googlenet', 'resnet56', 'resnet110')
VARIANTS = {'s45': '[0.0]+[0.35]*10+[0.3]*6+[0.4]*10+[0.3]*6+[0.1]*4',
            's64': '[0.0]+[0.6]*10+[0.5]*6+[0.5]*10+[0.4]*6+[0.2]*4',
            's66': '[0.0]+([0.7]*7+[0.45]*9)*2+[0.24]*3+[0.0]'}


def config_of(row: str, compact: bool = False) -> Config:
    folder, run, _, _ = FOUR[row]
    library = {'mmcls': 'mmpretrain'}.get(folder, folder)
    pytest.importorskip(library)
    return reading.read_config(str(PRUNING / folder / 'dcff' / f'dcff_{"compact_" if compact else ""}{run}.py'))


def build(config: Config, model: Mapping[str, Any]) -> nn.Module:
    return MODELS.build(dict(model, data_preprocessor=config.get('data_preprocessor')))


@pytest.mark.e2e
@pytest.mark.parametrize('row', FOUR)
def test_unit_file_is_what_the_published_command_writes(row):
    folder, _, name, _ = FOUR[row]
    units = trace_config(config_of(row))
    path = PRUNING / folder / 'dcff' / f'{name}.json'
    assert path.read_text() == spec.dumps(units.to_json(True, True))
    assert path.stat().st_size < 200_000
    published = TASK_MODELS[row]['kept']
    for unit in units.prunable.values():
        layer, = {m.module for m in unit.producers} & published.keys()
        assert unit.keep == published[layer]
    assert len(units.prunable) == len(published)


@pytest.mark.e2e
@pytest.mark.parametrize('row', FOUR)
def test_compact_config_without_tracing(row, monkeypatch):
    def refuse(*_: Any) -> None:
        raise AssertionError('a compact model is built without tracing')
    monkeypatch.setattr(Tracer, 'run', refuse)
    config = config_of(row, compact=True)
    model = build(config, {**config.model, 'init_cfg': None})
    counted = complexity(model, TASK_MODELS[row]['input'], flops=False)
    assert (counted.params, counted.macs) == (TASK_MODELS[row]['params'], TASK_MODELS[row]['macs'])


@pytest.mark.e2e
@pytest.mark.parametrize('row', FOUR)
def test_training_export_and_the_models_of_the_tools(row, tmp_path):
    size = FOUR[row][3]
    config = config_of(row)
    exported = trained_and_exported(config, size)
    assert sum(p.numel() for p in exported.parameters()) == TASK_MODELS[row]['params']

    torch.save({'state_dict': exported.state_dict(), 'meta': {}}, tmp_path / 'compact.pth')
    compact = config_of(row, compact=True)
    plain = build(compact, {**compact.model, 'init_cfg': None})
    assert shapes(plain) == shapes(exported)
    assert complexity(plain, size, flops=False).macs == complexity(exported, size, flops=False).macs

    # As tools/test.py does it.
    compact.work_dir = str(tmp_path)
    assert runs.set_checkpoint(compact, str(tmp_path / 'compact.pth')) is None
    runner = Runner(compact.model, compact.work_dir, cfg=compact, default_scope=compact.default_scope,
                    experiment_name=tmp_path.name)
    tested = runner.model
    assert type(tested) is type(exported)
    state = exported.state_dict()
    assert tested.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in tested.state_dict().items())


@pytest.mark.e2e
def test_unit_file_for_another_number_of_classes():
    """PointRend's point head reads the classes that its first head predicts."""
    config = config_of('DCFF PointRend R50-V1c', compact=True)
    for head in config.model.decode_head:
        head.num_classes = 7
    model = build(config, {**config.model, 'init_cfg': None})
    assert model.decode_head[0].conv_seg.out_channels == 7
    assert model.decode_head[1].fcs[0].conv.in_channels == 256 + 7
    assert model.backbone.layer1[0].conv1.out_channels == 41


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def trained_and_exported(config: Config, size: tuple[int, int]) -> nn.Module:
    """Train for a step with ground truth; return the export after comparing its outputs."""
    torch.manual_seed(0)
    algorithm = build(config, {**config.model, 'mutator': {**config.model.mutator, 'demo_inputs': size}})
    assert isinstance(algorithm, DCFF)
    assert not algorithm._has_weights, 'trained from scratch'
    algorithm.init_weights()
    algorithm.update_fusion(1, 100)
    algorithm.train()
    check_trained(algorithm)
    images = torch.randn(2, 3, *size)
    losses = algorithm(images, data_samples(algorithm, images), mode='loss')
    loss, _ = algorithm.parse_losses(losses)
    loss.backward()
    for path, layer in algorithm.fuse_layers():
        # Every filter learns, those that no row of P belongs to as well.
        assert layer.weight.grad is not None, path
        assert bool(layer.weight.grad.isfinite().all()), path
    torch.optim.SGD(algorithm.parameters(), lr=1e-3).step()
    algorithm.update_fusion(2, 100)

    for module in algorithm.modules():
        if isinstance(module, _BatchNorm):
            module.weight.data.uniform_(0.5, 1.5)
    exported = algorithm.export_model()
    assert not any('Fuse' in type(module).__name__ for module in exported.modules())
    want, got = outputs(algorithm, exported, size)
    assert len(want) == len(got) > 0
    for ours, theirs in zip(got, want):
        scale = theirs.abs().max().clamp_min(1e-6)
        assert float((ours - theirs).abs().max() / scale) < 1e-4
    return exported


def outputs(dense: nn.Module, compact: nn.Module, size: tuple[int, int]) -> tuple[list[Tensor], list[Tensor]]:
    forward, decisions = eval_pass(dense, size), Decisions()
    for model in (dense, compact):
        for module in model.modules():
            module.training = False
    with torch.no_grad():
        with decisions.recorded():
            want = tensors_in(forward(dense))
        with decisions.replayed():
            got = tensors_in(forward(compact))
    real = [i for i, tensor in enumerate(want) if tensor.is_floating_point() and tensor.numel()]
    return [want[i] for i in real], [got[i] for i in real]


@pytest.mark.e2e
@pytest.mark.parametrize('network', CIFAR)
def test_cifar_networks(network):
    pytest.importorskip('mmpretrain')
    config = reading.read_config(str(PRUNING / 'mmcls' / 'dcff' / f'dcff_{network}_cifar10.py'))
    exported = trained_and_exported(copy.deepcopy(config), (32, 32))
    counted = complexity(exported, (32, 32), flops=False)
    if network == 'resnet110':  # no exact count of it: the printed digits
        assert (f'{counted.params / 1e6:.2f}', f'{counted.flops_thop / 1e6:.2f}') == ('0.56', '85.30')
        return
    row = LISTS[f'DCFF repo CIFAR-10 {network}']
    assert (counted.params, counted.macs) == (row['params'], row['macs'])
    assert parse_sparsity(config.model.target_pruning_ratio) == parse_sparsity(row['target'])


@pytest.mark.parametrize('tag', VARIANTS)
def test_variants_of_resnet50(tag):
    """Their widths are those of the published strings (tests/test_mutators/test_sparsity_layouts.py)."""
    pytest.importorskip('mmpretrain')
    config = reading.read_config(str(PRUNING / 'mmcls' / 'dcff' / f'dcff_resnet50_8xb32_in1k_{tag}.py'))
    row = LISTS[f'DCFF repo ImageNet ResNet-50 {VARIANTS[tag]}']
    assert parse_sparsity(config.model.target_pruning_ratio) == parse_sparsity(row['target'])
    removed = 1 - row['flops_thop'] / 4111514624  # of the dense network, counted alike
    assert f'{100 * removed:.0f}' in (tag[1:], )


def test_every_published_list_has_its_config():
    assert len(LISTS) == len(VARIANTS) + len(CIFAR) - 1
