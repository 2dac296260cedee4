"""Deploying the model of a config: what is written, and what of it is checked."""
from __future__ import annotations

import json
import runpy

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from mmprune_ext.compact.checkpoint import read_checkpoint
from mmprune_ext.errors import CheckpointError, PruningError
from mmprune_ext.workflows import deployed_metric, deploying
from mmprune_ext.workflows.deploying import Form, deploy, model_of


@pytest.fixture(autouse=True)
def _scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


def shapes(path) -> list[tuple[int, ...]]:
    import onnx
    return sorted(tuple(tensor.dims) for tensor in onnx.load(str(path)).graph.initializer if len(tensor.dims) > 1)


def test_a_compact_model_in_onnx_runtime(pruned, tmp_path):
    """The file holds the compact widths and no others, and says by itself what goes in and comes out."""
    import onnxruntime
    found = deploy(Config.fromfile(pruned / 'compact_config.py'), None, tmp_path / 'out',
                   Form('onnxruntime', dynamic=('batch', 'size')), samples=0)
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {'model.onnx', 'deploy.json', 'decoding.py'}
    assert [path.name for path in tmp_path.iterdir()] == ['out']
    weights = read_checkpoint(pruned / 'compact.pth')['state_dict']
    wanted = sorted(tuple(value.shape) for value in weights.values() if value.dim() > 1)
    assert shapes(tmp_path / 'out' / 'model.onnx') == wanted
    assert json.loads((tmp_path / 'out' / 'deploy.json').read_text()) == found
    assert found['input']['shape'] == ['batch', 3, 'height', 'width'] and found['input']['size'] == [32, 32]
    assert found['classes'] == [str(digit) for digit in range(10)]
    assert {tuple(check['shape']) for check in found['check']['outputs']} == {
        (number, 3, *size) for number in (1, 3) for size in ((32, 32), (64, 96))}
    metric = found['check']['metric']
    assert metric['samples'] == 60 and metric['metrics']['accuracy/top1']['torch'] > 0
    session = onnxruntime.InferenceSession(tmp_path / 'out' / 'model.onnx')
    assert session.get_inputs()[0].shape == ['batch', 3, 'height', 'width']
    # The copy beside the model is the module.
    decoding = runpy.run_path(str(tmp_path / 'out' / 'decoding.py'))
    values, place = decoding['prepare'](np.zeros((32, 32, 3), np.uint8), decoding['read'](tmp_path / 'out'))
    label = decoding['decode'](session.run(None, {'images': values}), found, [place])[0]['label']
    model, _ = model_of(Config.fromfile(pruned / 'compact_config.py'), None)
    with torch.no_grad():
        data = model.data_preprocessor({'inputs': torch.zeros(1, 3, 32, 32, dtype=torch.uint8)})
        assert label == model(data['inputs'], mode='tensor').argmax().item()


def test_the_size_follows_the_parameters(pruned, dense_config_file, dense_checkpoint, tmp_path):
    """Within 3 % of the dense file, leaving the graph aside, which is of the same nodes."""
    files = {}
    for name, config, checkpoint in (('dense', dense_config_file, str(dense_checkpoint)),
                                     ('compact', pruned / 'compact_config.py', None)):
        found = deploy(Config.fromfile(config), checkpoint, tmp_path / name, Form('onnxruntime'))
        files[name] = found['check']['size']
    share = {key: files['compact'][key] / files['dense'][key] for key in ('file_bytes', 'weight_bytes')}
    assert share['weight_bytes'] < 0.7
    graph = files['dense']['file_bytes'] - files['dense']['weight_bytes']
    assert graph < 12_000
    assert share['file_bytes'] == pytest.approx(share['weight_bytes'], abs=0.03 + graph / files['dense']['file_bytes'])


def test_a_pruning_run_is_its_compact_model(pruning_run, tmp_path):
    found = deploy(Config.fromfile(pruning_run / 'run.py'), str(pruning_run / 'epoch_1.pth'), tmp_path / 'out',
                   Form('torch-export', batch_size=2))
    assert found['file'] == 'model.pt2' and found['input']['shape'] == [2, 3, 32, 32]
    widths = read_checkpoint(pruning_run / 'epoch_1.pth')['run_units']
    program = torch.export.load(tmp_path / 'out' / 'model.pt2')
    stored = {name.removeprefix('model.'): len(value) for name, value in program.state_dict.items()
              if value.dim()}
    assert any(unit.keep < unit.num_channels for unit in widths.values())
    for unit in widths.values():
        assert stored[f'{unit.name}.weight'] == (unit.keep or unit.num_channels)


def test_a_fixed_batch_measures_the_metric_too(pruned, tmp_path):
    """60 samples through a model of 7 at a time: the last ones are repeated, and not counted."""
    found = deploy(Config.fromfile(pruned / 'compact_config.py'), None, tmp_path / 'out',
                   Form('torch-export', batch_size=7), samples=10)
    assert found['check']['metric']['samples'] == 10


@pytest.mark.parametrize('part', ['outputs', 'metric'])
def test_a_model_that_differs_is_not_written(part, dense_config_file, dense_checkpoint, tmp_path, monkeypatch):
    """A runtime whose answers are wrong, or whose decoding is."""
    config = Config.fromfile(dense_config_file)
    if part == 'outputs':
        monkeypatch.setattr(deploying, 'open_runtime', lambda backend, folder: lambda images: [
            np.zeros((len(images), 10), np.float32)])
    else:
        monkeypatch.setitem(deployed_metric._FILLERS, 'classification', lambda model, sample, found: (
            sample.set_pred_score(torch.eye(10)[int(sample.gt_label)])))
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'deploy.json').write_text('older')
    with pytest.raises(PruningError, match='nothing was written'):
        deploy(config, str(dense_checkpoint), tmp_path / 'out', Form('torch-export'), samples=0)
    assert [path.name for path in tmp_path.rglob('*')] == ['out', 'deploy.json']
    assert (tmp_path / 'out' / 'deploy.json').read_text() == 'older'


def test_weights_have_to_be_there(tiny_config):
    with pytest.raises(CheckpointError, match='no weights to deploy: give a checkpoint'):
        model_of(tiny_config(), None)


def test_an_interrupted_write_leaves_what_was_there(pruned, tmp_path, monkeypatch):
    monkeypatch.setattr(deploying, 'write_program', lambda program, path: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        deploy(Config.fromfile(pruned / 'compact_config.py'), None, tmp_path / 'out', Form('torch-export'))
    assert list(tmp_path.iterdir()) == []


def test_a_compact_model_in_openvino(pruned, tmp_path):
    import openvino
    found = deploy(Config.fromfile(pruned / 'compact_config.py'), None, tmp_path / 'out',
                   Form('openvino', dynamic=('batch', 'size')), samples=0)
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {
        'model.xml', 'model.bin', 'deploy.json', 'decoding.py'}
    assert len(found['check']['outputs']) == 4 and found['check']['metric']['samples'] == 60
    constants = [tuple(node.shape) for node in openvino.Core().read_model(tmp_path / 'out' / 'model.xml').get_ops()
                 if node.get_type_name() == 'Constant']
    weights = read_checkpoint(pruned / 'compact.pth')['state_dict']
    wanted = {tuple(value.shape) for value in weights.values() if value.dim() > 1}
    assert wanted <= set(constants) and {shape for shape in constants if len(shape) == 4 and shape[1] > 1} <= wanted
