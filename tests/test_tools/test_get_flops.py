"""tools/get_flops.py: its numbers and its errors."""
import json
from pathlib import Path
from typing import Any

import pytest

from mmprune_ext.compact.compact_model import build_architecture
from mmprune_ext.settings import reading
from mmprune_ext.units import trace_units
from tests.in_process import run_tool

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
def run(capsys):
    """Return a function that runs the tool and gives its exit code, output and errors."""
    def call(*arguments: object) -> tuple[int, str, str]:
        try:
            run_tool('get_flops', *arguments)
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
    content = json.loads((tmp_path / 'new' / 'flops.json').read_text())
    record = content['dense']
    assert (content['compact'], content['latency'], content['removed']) == (None, None, {})
    assert (record['macs'], record['backbone_macs']) == (backbone + 640, backbone)
    assert record['params'] == record['backbone_params'] + 650
    assert f'{backbone:,}' in out and f'{record["params"]:,}' in out
    assert 'Cost of one sample of 3 x 32 x 32' in out and 'multiply-accumulates' in out
    assert record['per_layer']['head.fc'] == 640


def test_options_change_the_model(run, config):
    _, out, _ = run(config, '--shape', 3, 32, 32, '--cfg-options',
                    'model.backbone.stem_channels=4', 'model.backbone.base_channels=4',
                    'model.head.in_channels=32')
    assert f'{resnet18_macs(4, 32):,}' in out


PRUNING = CONFIG.replace('model = dict(', 'architecture = dict(') + """
model = dict(type='mmprune_ext.L1Norm', architecture=architecture, **TARGET)
demo_inputs = (32, 32)
"""
# Ratios by unit, and a budget that half of all the widths meets.
HALVED = 'target_pruning_ratio=0.5'


def pruning_config(folder: Path, target: str, algorithm: str = 'L1Norm') -> Path:
    file = folder / 'pruning.py'
    file.write_text(PRUNING.replace('TARGET', f'dict({target})').replace('L1Norm', algorithm))
    return file


def counts(run, file: Path, *arguments: object) -> dict[str, Any]:
    """Return what the tool writes, and its text as ``'text'``."""
    out = file.parent / 'costs.json'
    code, text, error = run(file, '--json', out, *arguments)
    assert code == 0, error
    return {**json.loads(out.read_text()), 'text': text}


@pytest.mark.parametrize('algorithm', ['L1Norm', 'DCFF'])
def test_pruning_config_counts_dense_and_compact(run, tmp_path, algorithm):
    content = counts(run, pruning_config(tmp_path, HALVED, algorithm))
    # All units of this network are prunable, so that half of each is a network of half the width.
    assert content['dense']['backbone_macs'] == resnet18_macs(8, 32)
    assert content['compact']['backbone_macs'] == resnet18_macs(4, 32)
    assert content['removed']['backbone_macs'] == pytest.approx(
        1 - resnet18_macs(4, 32) / resnet18_macs(8, 32))
    row, = (line for line in content['text'].splitlines() if 'MACs, backbone' in line)
    assert row.split()[2:4] == [f'{resnet18_macs(8, 32):,}', f'{resnet18_macs(4, 32):,}']


def test_uniform_budget_is_counted_on_the_given_size(run, tmp_path):
    for size in (32, 64):
        content = counts(run, pruning_config(tmp_path, "budget=dict(flops=0.5, scope='backbone')"),
                         '--shape', size, size)
        assert content['compact']['input_shape'] == [3, size, size]
        assert 0.45 <= 1 - content['removed']['backbone_macs'] <= 0.5


def test_widths_that_follow_from_scores_are_not_guessed(run, tmp_path):
    file = pruning_config(tmp_path, "budget=dict(flops=0.5, spread='global')")
    content = counts(run, file)
    assert content['compact'] is None and "spread 'global'" in content['compact_missing']
    assert 'Only the dense model is counted: its widths follow from scores' in content['text']


@pytest.mark.parametrize('budget', ['dict(flops=0.5)', 'dict(flops=0.5, params=0.4, weights=dict(params=2.0))'])
def test_widths_that_are_learned_are_not_guessed(run, tmp_path, budget):
    content = counts(run, pruning_config(tmp_path, f'budget={budget}', 'ChipNet'))
    assert content['compact'] is None and content['dense']['macs'] > 0
    assert content['compact_missing'].startswith('its widths are learned in a search')


def test_known_units_are_taken(run, tmp_path):
    units = trace_units(build_architecture(reading.read_config(str(pruning_config(
        tmp_path, HALVED))).model.architecture), (32, 32))
    for unit in units.prunable.values():
        unit.choose(range(unit.num_channels // 4))
    units.save(tmp_path / 'units.json')
    # The units come before a target, as in a run that is resumed.
    file = pruning_config(tmp_path, f"{HALVED}, units='{tmp_path / 'units.json'}'")
    assert counts(run, file)['compact']['backbone_macs'] == resnet18_macs(2, 32)
    compact = tmp_path / 'compact.py'
    compact.write_text(PRUNING.replace('mmprune_ext.L1Norm', 'mmprune_ext.CompactModel').replace(
        'TARGET', f"dict(units='{tmp_path / 'units.json'}', "
                  "init_cfg=dict(type='Pretrained', checkpoint='none.pth'))"))
    content = counts(run, compact)
    assert content['compact']['backbone_macs'] == resnet18_macs(2, 32)
    assert content['dense']['backbone_macs'] == resnet18_macs(8, 32)


def test_latency_is_measured_on_request(run, config, tmp_path):
    content = counts(run, config, '--shape', 32, 32, '--latency', '--batch-size', 2)
    assert content['latency']['batch_size'] == 2 and content['latency']['median_ms'] > 0
    assert 'Latency in ms of a batch of 2' in content['text']
    content = counts(run, pruning_config(tmp_path, HALVED), '--latency')
    assert content['latency']['dense']['batch_size'] == 1 and content['latency']['speedup'] > 0
    assert 'in turn; dense takes' in content['text']


@pytest.mark.e2e
@pytest.mark.parametrize(('path', 'options', 'proposals'), [
    ('mmpretrain::resnet/resnet18_8xb32_in1k.py', [], None),
    ('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', ['model.test_cfg.rpn.max_per_img=50'], 50),
    ('mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py', [], None),
    ('mmpose::body_2d_keypoint/topdown_heatmap/coco/td-hm_res50_8xb64-210e_coco-256x192.py', [], None)])
def test_stock_configs(run, tmp_path, path, options, proposals):
    pytest.importorskip(path.split('::')[0])
    size = (256, 192) if 'mmpose' in path else (64, 96)
    out = tmp_path / 'costs.json'
    code, _, error = run(path, '--shape', *size, '--json', out,
                         *(['--cfg-options', *options] if options else []))
    assert code == 0, error
    record = json.loads(out.read_text())['dense']
    assert (record['input_shape'], record['proposals']) == ([3, *size], proposals)
    assert record['flops'] > record['backbone_macs'] > 0 and record['flops_missing'] == ''
    assert record['flops_mm'] > record['macs']


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
    assert (code, out) == (2, '') and 'cannot be written to' in error
