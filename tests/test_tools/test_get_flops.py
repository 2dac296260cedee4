"""tools/get_flops.py: its numbers and its errors."""
import importlib.util
import json
import logging
import sys
from pathlib import Path

import pytest

pytest.importorskip('mmpretrain.models')

CONFIG = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet_CIFAR', depth=18, stem_channels=8, base_channels=8),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=64))
"""


@pytest.fixture
def run(monkeypatch, capsys):
    """Return a function that runs the tool and gives its exit code, output and errors."""
    path = Path(__file__).resolve().parents[2] / 'tools' / 'get_flops.py'
    spec = importlib.util.spec_from_file_location('get_flops', path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, 'argv', ['get_flops.py', *map(str, arguments)])
        # mmengine's logger may hold the stream of an earlier test, which is closed by now.
        monkeypatch.setattr(logging, 'raiseExceptions', False)
        try:
            tool.main()
        except SystemExit as end:
            return end.code, *capsys.readouterr()
        return 0, *capsys.readouterr()
    return call


@pytest.fixture
def config(tmp_path):
    file = tmp_path / 'config.py'
    file.write_text(CONFIG)
    return file


def resnet18_macs(width: int, size: int) -> int:
    """MACs of the backbone, by its definition: a 3x3 stem and four stages of two blocks."""
    macs = size ** 2 * 27 * width
    source = width
    for stage in range(4):
        target, area = width * 2 ** stage, (size // 2 ** stage) ** 2
        macs += area * (9 * source * target + 3 * 9 * target * target)
        macs += area * source * target if stage else 0
        source = target
    return macs


def test_prints_and_writes_the_numbers(run, config, tmp_path):
    code, out, _ = run(config, '--shape', 32, 32, '--json', tmp_path / 'new' / 'flops.json')
    assert code == 0
    backbone = resnet18_macs(8, 32)
    record = json.loads((tmp_path / 'new' / 'flops.json').read_text())
    assert (record['macs'], record['backbone_macs']) == (backbone + 640, backbone)
    assert record['params'] == record['backbone_params'] + 650
    assert f'{backbone:,}' in out and f'{record["params"]:,}' in out
    assert 'One sample of 3 x 32 x 32' in out and 'multiply-accumulates' in out
    assert record['per_layer']['head.fc'] == 640


def test_options_change_the_model(run, config):
    _, out, _ = run(config, '--shape', 3, 32, 32, '--cfg-options',
                    'model.backbone.stem_channels=4', 'model.backbone.base_channels=4',
                    'model.head.in_channels=32')
    assert f'{resnet18_macs(4, 32):,}' in out


BROKEN = {
    'missing': (None, 'no such file'),
    'syntax': ('model = dict(', 'cannot be read'),
    'no model': ('a = 1', 'has no "model" section'),
    'model without type': ('model = dict(depth=3)', 'its model has no "type"'),
    'unknown type': ("model = dict(type='NoSuchModel')", 'NoSuchModel'),
    'import': ("custom_imports = dict(imports=['no_such_module'])", 'no_such_module'),
    'argument': (CONFIG.replace('depth=18', 'depth=17'), 'invalid depth 17'),
    'widths': (CONFIG.replace('in_channels=64', 'in_channels=9'), 'does not run on an input'),
}


@pytest.mark.parametrize('case', BROKEN)
def test_user_errors_are_one_line_and_exit_code_2(run, tmp_path, case):
    text, message = BROKEN[case]
    file = tmp_path / 'config.py'
    if text is not None:
        file.write_text(text)
    code, out, error = run(file, '--shape', 32, 32, '--json', tmp_path / 'out.json')
    error_lines = [line for line in error.splitlines() if line.startswith('error: ')]
    assert (code, out, len(error_lines)) == (2, '', 1)
    assert message in error_lines[0] and 'Traceback' not in error
    assert not (tmp_path / 'out.json').exists()


@pytest.mark.parametrize('shape', [(0, 32), (3, 32, 32, 32), (1, 32, 32)])
def test_wrong_shapes(run, config, shape):
    code, out, error = run(config, '--shape', *shape)
    assert (code, out) == (2, '')
    assert 'input_shape should be' in error or 'does not run on an input of shape' in error


def test_folder_that_cannot_be_written(run, config, tmp_path):
    (tmp_path / 'file').write_text('')
    code, out, error = run(config, '--shape', 32, 32, '--json', tmp_path / 'file' / 'x.json')
    assert (code, out) == (2, '') and 'cannot write' in error
