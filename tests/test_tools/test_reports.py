"""What the report of an export tells on request: latency, metrics, a hook that counted."""
import hashlib
import json
from importlib import metadata
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
    assert 'Latency in ms of a batch of 3: ' in out and 'accuracy/top1: dense 93.5, compact 91.25' in out


def test_summary_and_provenance(export, pruning_run, capsys):
    """What is printed can be read at a glance; what is needed to make it again stands in the report."""
    folder = export()
    report, text = json.loads((folder / 'report.json').read_text()), (folder / 'report.txt').read_text()
    lines = capsys.readouterr().out.splitlines()[-10:]
    first = next(place for place, line in enumerate(lines) if line.startswith('L1Norm, target_pruning_ratio=0.4: '))
    assert 'prunable units lose channels, in backbone' in lines[first]
    dense, compact = report['dense'], report['compact']
    share = compact['macs'] / dense['macs']
    assert lines[first + 1].startswith(f'MACs: whole model {dense["macs"]:,} to {compact["macs"]:,} ({share:.1%}); ')
    assert lines[first + 2].startswith(f'parameters: whole model {dense["params"]:,} to {compact["params"]:,} (')
    assert lines[first + 3] == f'{folder / "compact_config.py"}, with compact.pth, report.json, report.txt, ' \
                               'units.json, widths.png'
    assert not any('unit' in line and 'not prunable' in line for line in lines)
    source, checkpoint = report['provenance'], pruning_run / 'epoch_1.pth'
    assert source['command'].startswith(f'export_compact.py {pruning_run / "run.py"} {checkpoint} -o ')
    assert source['digest'] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert (source['method'], source['settings']['target_pruning_ratio']) == ('L1Norm', 0.4)
    assert source['versions']['torch'] == metadata.version('torch')
    assert source['machine'] and source['date'].endswith('UTC') and source['config'] == str(pruning_run / 'run.py')
    assert f'  digest: {source["digest"]}\n' in text and '  method: L1Norm\n' in text


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


def test_an_earlier_result_is_replaced_when_asked(export, capsys):
    """All of it, also what is not written anew; files of other origin stay."""
    folder = export()
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name in ('stripes.png', 'deploy.json', 'notes.txt'):
        (folder / name).write_text('earlier')
    (folder / 'units.json').write_text('earlier')
    capsys.readouterr()
    with pytest.raises(SystemExit):
        export()
    message = capsys.readouterr().err
    assert 'an earlier result (compact.pth, compact_config.py, deploy.json, report.json and 4 more) and other ' \
           'files (notes.txt)' in message and '--overwrite' in message
    assert (folder / 'units.json').read_text() == 'earlier'
    export('--overwrite')
    assert {path.name for path in folder.iterdir()} == {*first, 'notes.txt'}
    assert (folder / 'units.json').read_bytes() == first['units.json']
