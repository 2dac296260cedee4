"""What a user can get wrong when a model is deployed: one message, exit code 2, nothing written."""
from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from mmprune_ext.deploy import exporting
from tests.test_tools.test_bad_inputs import Bad, Files, assert_refused

BESSEL = """\
import torch
from mmengine.registry import MODELS
from torch import nn


@MODELS.register_module(force=True)
class Bessel(nn.Module):
    def __init__(self, data_preprocessor=None):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images):
        return torch.special.bessel_j0(images * self.scale)
"""


@pytest.fixture
def files(dense_config_file, dense_checkpoint, pruned, pruning_run, tmp_path) -> Files:
    return Files(dense_config_file, dense_checkpoint, pruned, pruning_run, tmp_path)


def deploy(*further: object, config=lambda f: f.pruned / 'compact_config.py', weights=lambda f: []):
    return lambda f: [config(f), *weights(f), '-o', f.out, '--backend', 'torch-export', *further]


def dense(text: str = '', *further: object, checkpoint=lambda f: f.checkpoint):
    """Deploy the dense model with its config changed by the lines of `text`."""
    return lambda f: [f.child('c.py', text), checkpoint(f), '-o', f.out, '--backend', 'torch-export', *further]


def bessel(files: Files) -> list[object]:
    """A model of the user's own with an operator that ONNX lacks."""
    files.write('bessel.py', BESSEL)
    config = files.write('c.py', "custom_imports = dict(imports=['bessel'])\ndefault_scope = 'mmengine'\n"
                                 "model = dict(type='Bessel')\n")
    weights = files.save('bessel.pth', {'state_dict': {'scale': torch.ones(1)}})
    return [config, weights, '-o', files.out, '--shape', '8', '8']


NO_SIZE = ("for split in ('train', 'val', 'test'):\n    pass\n"
           "train_dataloader = dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')]))")
CASES = [
    Bad('no config', 'deploy', deploy(config=lambda f: 'none.py'), ('none.py', 'no such file')),
    Bad('unknown backend', 'deploy', lambda f: [f.config, '-o', f.out, '--backend', 'tensorrt'],
        ('tensorrt', 'onnxruntime', 'openvino', 'torch-export')),
    Bad('wrong dynamic', 'deploy', deploy('--dynamic', 'width'), ('--dynamic', 'width', 'batch')),
    Bad('no weights', 'deploy', lambda f: [f.config, '-o', f.out], ('no weights to deploy', 'give a checkpoint')),
    Bad('missing checkpoint', 'deploy', deploy(weights=lambda f: ['none.pth']), ('none.pth', 'no such file')),
    Bad('truncated checkpoint', 'deploy',
        deploy(weights=lambda f: [f.write('cut.pth', f.checkpoint.read_bytes()[:2000])]),
        ('cut.pth', 'it is truncated')),
    Bad('weights of another model', 'deploy',
        dense('model = dict(backbone=dict(base_channels=16), head=dict(in_channels=64))'),
        ('epoch_3.pth', 'does not fit', 'backbone.conv1.weight')),
    Bad('dense weights for a run', 'deploy', lambda f: [f.run / 'run.py', f.checkpoint, '-o', f.out],
        ('epoch_3.pth', 'not of a pruning run')),
    Bad('no unit file', 'deploy', deploy('--cfg-options', 'model.units=none.json'), ('none.json', )),
    Bad('no size', 'deploy', dense(NO_SIZE), ('does not tell the size', '--shape H W')),
    Bad('too small', 'deploy', deploy('--shape', '0', '32'), ('--shape', 'at least 1')),
    Bad('output below a file', 'deploy',
        lambda f: [f.pruned / 'compact_config.py', '-o', f.write('file', 'x') + '/out', '--backend', 'torch-export'],
        ('output folder', )),
    Bad('no test data', 'deploy', dense('test_dataloader = None\ntest_evaluator = None\ntest_cfg = None', '--metric'),
        ('lacks test_dataloader', '--metric')),
    Bad('data that are not there', 'deploy',
        dense("test_dataloader = dict(dataset=dict(data_root='none'))", '--metric'),
        ('test_dataloader', 'none', 'does not exist')),
    Bad('a model that takes more than images', 'deploy',
        dense("demo_inputs = dict(type='math.sqrt')"), ('demo_inputs', 'a batch of images')),
    Bad('an operator that ONNX lacks', 'deploy', bessel, ('bessel_j0', '--backend torch-export')),
]


@pytest.mark.parametrize('bad', CASES, ids=lambda bad: bad.id)
def test_bad_input(files, bad, monkeypatch, capsys):
    monkeypatch.syspath_prepend(files.folder)
    monkeypatch.setattr('sys.dont_write_bytecode', True)
    assert_refused(bad, files, monkeypatch, capsys)


@pytest.mark.parametrize('backend', ['onnxruntime', 'openvino'])
def test_a_backend_that_is_not_installed(backend, files, monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(exporting.importlib.util, 'find_spec', lambda name: None if name == backend else found(name))
    bad = Bad(backend, 'deploy', lambda f: [f.config, '-o', f.out, '--backend', backend],
              (f'--backend {backend}', 'not installed', f'pip install {backend}'))
    assert_refused(bad, files, monkeypatch, capsys)
    assert not Path(files.out).exists()
