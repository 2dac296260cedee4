"""What the report of an export tells on request: latency, metrics, a hook that counted."""
import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import FUNCTIONS

from tests.in_process import run_tool


@pytest.fixture
def export(pruning_run, tmp_path):
    """Return a function that exports the pruning run with further arguments, and gives the folder."""
    def call(*arguments: str, config: str | None = None) -> Path:
        run_tool('export_compact', config or pruning_run / 'run.py', pruning_run / 'epoch_1.pth',
                 '-o', tmp_path / 'out', *arguments)
        return tmp_path / 'out'
    return call


def test_latency_and_metrics(export, tmp_path, capsys):
    for stage, top1 in (('dense', 93.5), ('compact', 91.25)):
        (tmp_path / f'{stage}.json').write_text(json.dumps({'accuracy/top1': top1}))
    report = json.loads((export(
        '--latency', '--batch-size', '3', '--metrics', f'dense={tmp_path / "dense.json"}',
        f'compact={tmp_path / "compact.json"}') / 'report.json').read_text())
    assert report['metrics'] == {'dense': {'accuracy/top1': 93.5}, 'compact': {'accuracy/top1': 91.25}}
    assert report['latency']['dense']['batch_size'] == report['latency']['compact']['batch_size'] == 3
    assert report['latency']['dense']['input_shape'] == report['dense']['input_shape']
    out = capsys.readouterr().out
    assert 'Latency in ms of a batch of 3' in out and 'accuracy/top1' in out


def test_neither_by_default(export):
    report = json.loads((export() / 'report.json').read_text())
    assert report['latency'] is None and report['metrics'] == {}


def test_a_hook_of_the_mutator_counts_and_stays_in_the_compact_config(export, pruning_run, tmp_path):
    calls = []
    config = tmp_path / 'hooked.py'
    config.write_text(f"_base_ = [{str(pruning_run / 'run.py')!r}]\nmodel = dict(mutator=dict(demo_inputs=dict("
                      "_delete_=True, type='report_demo', side=16)))\n")

    @FUNCTIONS.register_module(name='report_demo')
    def demo(model, side):
        calls.append(side)
        return model(torch.ones(1, 3, side, side))

    try:
        folder = export(config=str(config))
    finally:
        FUNCTIONS.module_dict.pop('report_demo')
    assert set(calls) == {16}
    assert json.loads((folder / 'report.json').read_text())['dense']['input_shape'] is None
    compact = Config.fromfile(folder / 'compact_config.py')
    assert compact.demo_inputs == dict(type='report_demo', side=16)
