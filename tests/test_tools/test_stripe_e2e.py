"""Stripe-wise pruning through the tools: trained, exported in either form, tested, tuned; what is wrong."""
from __future__ import annotations

import json
import math
import subprocess
import sys
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config

from mmprune_ext.ops import StripeConv2d
from mmprune_ext.registry import MODELS
from mmprune_ext.settings import reading
from mmprune_ext.workflows.pruning import export_run
from tests.in_process import run_tool

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _plain_dumps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Configs are formatted with every dump, which takes longer than these runs."""
    monkeypatch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **_: (text, True))


@pytest.fixture(scope='module')
def run_config(tiny_config) -> Callable[..., Config]:
    """Return a function that makes the config of a run in which layers lose stripes at different paces."""
    def make(options: Mapping[str, Any] | None = None) -> Config:
        config = tiny_config({'train_cfg.max_epochs': 4, 'train_cfg.val_interval': 4})
        config.model = dict(type='mmprune_ext.StripeWise', architecture=config.model, sr=0.12)
        config.optim_wrapper.paramwise_cfg = dict(custom_keys={
            'layer1': dict(lr_mult=0.5), 'layer3.0.conv1': dict(lr_mult=0.8)})
        config.merge_from_dict(dict(options or {}))
        config.experiment_name = uuid.uuid4().hex
        return config
    return make


@pytest.fixture(scope='module')
def run(run_config, tmp_path_factory) -> Path:
    """A folder with the config of a run, its checkpoints, and stripes that are dead in some; read only."""
    folder = tmp_path_factory.mktemp('stripes')
    run_config().dump(folder / 'run.py')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **_: (text, True))
        run_tool('train', folder / 'run.py', '--work-dir', folder / 'work')
    # Some filters more, so that channels and stripes are gone, whatever the few iterations came to.
    checkpoint = torch.load(folder / 'work' / 'epoch_4.pth', weights_only=False)
    generator = torch.Generator().manual_seed(0)
    for name, value in checkpoint['state_dict'].items():
        if name.endswith('skeleton'):
            value[torch.rand(value.shape, generator=generator) < 0.4] = 0
            value[torch.rand(len(value), generator=generator) < 0.2] = 0
            value[0, 0, 0] = 0.5
    torch.save(checkpoint, folder / 'trained.pth')
    return folder


def export(run: Path, folder: Path, *arguments: object) -> dict[str, Any]:
    run_tool('export_compact', run / 'run.py', run / 'trained.pth', '-o', folder, *arguments)
    return json.loads((folder / 'units.json').read_text())['stripes']


def measured(folder: Path, *arguments: object) -> dict[str, float]:
    run_tool('test', *arguments, '--work-dir', folder, '--json', folder / 'metrics.json')
    return json.loads((folder / 'metrics.json').read_text())


@pytest.mark.e2e
def test_exported_in_either_form(run, tmp_path):
    """As chosen, recorded, and rebuilt; both measure what the run does."""
    wanted = measured(tmp_path, run / 'run.py', run / 'trained.pth')
    for form in ('dense', 'stripes'):
        stripes = export(run, tmp_path / form, '--stripe-forms', form)
        assert {layer['form'] for layer in stripes.values()} == {form}
        compact = reading.read_config(str(tmp_path / form / 'compact_config.py'))
        model = MODELS.build({**compact.model, 'data_preprocessor': compact.data_preprocessor})
        assert {layer.form for layer in model.modules() if isinstance(layer, StripeConv2d)} == {form}
        assert measured(tmp_path, tmp_path / form / 'compact_config.py') == pytest.approx(wanted, abs=1e-3)


@pytest.mark.e2e
def test_forms_are_measured(run, tmp_path, capsys):
    """The report has both times, and what is tuned further keeps the forms."""
    stripes = export(run, tmp_path / 'out', '--batch-size', '2')
    report = json.loads((tmp_path / 'out' / 'report.json').read_text())
    times = {path: layer['times'] for path, layer in report['stripes'].items() if layer['times']}
    assert times and all(pair['dense_ms'] > 0 and pair['stripes_ms'] > 0 for pair in times.values())
    assert all(stripes[path]['form'] == pair['form'] for path, pair in times.items())
    text = (tmp_path / 'out' / 'report.txt').read_text()
    assert 'Stripes' in text and 'indices, one a stripe' in text
    assert (tmp_path / 'out' / 'stripes.png').read_bytes().startswith(b'\x89PNG')
    run_tool('train', tmp_path / 'out' / 'compact_config.py', '--work-dir', tmp_path / 'tuned', '--cfg-options',
             'train_cfg.max_epochs=1', f'experiment_name={uuid.uuid4().hex}')
    run_tool('export_compact', tmp_path / 'out' / 'compact_config.py', tmp_path / 'tuned' / 'epoch_1.pth', '-o',
             tmp_path / 'again')
    assert json.loads((tmp_path / 'again' / 'units.json').read_text())['stripes'] == stripes


@pytest.mark.e2e
def test_export_needs_no_checkpoint_that_a_resumed_run_began_with(run, tmp_path):
    """Such a run has its path in the config, and may have removed the file when newer ones were written."""
    config = reading.read_config(str(run / 'run.py'))
    config.load_from = config.model.units = str(tmp_path / 'epoch_1.pth')
    written = export_run(config, str(run / 'trained.pth'), tmp_path / 'compact')
    assert written.checkpoint.is_file()


@pytest.mark.e2e
def test_benchmark_of_a_trained_network(run, tmp_path):
    stripes = export(run, tmp_path, '--stripe-forms', 'dense').values()
    done = subprocess.run([sys.executable, str(ROOT / 'benchmarks' / 'stripe.py'), '--quick', '--compact',
                           str(tmp_path / 'compact_config.py')], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
    row = next(line for line in done.stdout.splitlines() if 'PyTorch' in line)
    _, left, _, *ratios, _ = row.split()
    kept = sum(bits.bit_count() for layer in stripes for bits in layer['keep'])
    assert left == f'{kept / sum(len(layer["keep"]) * math.prod(layer["kernel_size"]) for layer in stripes):.0%}'
    assert len(ratios) == 5 and all(float(ratio) > 0 for ratio in ratios)


@pytest.mark.e2e
def test_new_batch_statistics(run, tmp_path):
    """On request; the weights are the run's."""
    for name, batches in (('old', 0), ('new', 2)):
        export(run, tmp_path / name, '--stripe-forms', 'dense', '--bn-batches', batches)
    old, new = (torch.load(tmp_path / name / 'compact.pth')['state_dict'] for name in ('old', 'new'))
    other = {key.rpartition('.')[2] for key in old if not torch.equal(old[key], new[key])}
    assert other <= {'running_mean', 'running_var', 'num_batches_tracked'} and 'running_mean' in other


@pytest.mark.e2e
def test_stripes_of_a_run_prune_a_dense_model(run, dense_config_file, dense_checkpoint, tmp_path):
    """prune.py --units takes over channels and stripes."""
    stripes = export(run, tmp_path / 'out', '--stripe-forms', 'dense')
    run_tool('prune', dense_config_file, dense_checkpoint, '--units', tmp_path / 'out' / 'units.json', '-o',
             tmp_path / 'pruned', '--bn-batches', '2')
    assert json.loads((tmp_path / 'pruned' / 'units.json').read_text())['stripes'] == stripes
    found = torch.load(tmp_path / 'pruned' / 'compact.pth')['state_dict']
    wanted = torch.load(tmp_path / 'out' / 'compact.pth')['state_dict']
    assert {key: value.shape for key, value in found.items()} == {key: value.shape for key, value in wanted.items()}


@pytest.mark.e2e
def test_a_compact_model_is_pruned_again(run, tmp_path):
    """By L1: stripes of the first round stay, relative to the dense model, and the joined file rebuilds it."""
    stripes = export(run, tmp_path / 'out', '--stripe-forms', 'stripes')
    run_tool('prune', tmp_path / 'out' / 'compact_config.py', tmp_path / 'out' / 'compact.pth', '--algorithm', 'l1',
             '--channels', '0.7', '-o', tmp_path / 'second', '--bn-batches', '2')
    content = json.loads((tmp_path / 'second' / 'units.json').read_text())
    assert content['stripes'] == stripes
    first = json.loads((tmp_path / 'out' / 'units.json').read_text())['units']
    assert sum(unit['keep'] for unit in content['units'].values()) < sum(unit['keep'] for unit in first.values())
    assert measured(tmp_path, tmp_path / 'second' / 'compact_config.py')


# ---------------------------------------------------------------- what is wrong


BAD = {
    'negative threshold': (['model.threshold=-0.1'], 'threshold should be a number of at least 0'),
    'threshold of all': (['model.threshold=1'], 'below 1, where all stripes start'),
    'negative sparsity': (['model.sr=-1e-5'], 'sr should be a number of at least 0'),
    'nothing to train': (['model.sr=0', 'model.freeze_weights=True'], 'set sr to a positive number'),
    'skeletons that are frozen': (['optim_wrapper.paramwise_cfg.custom_keys.skeleton.lr_mult=0'],
                                  'custom_keys.skeleton: lr_mult is 0'),
    'nothing dies': (['model.sr=0', 'model.threshold=0'], 'no stripe would ever die'),
    'no kernel': (["model.mutator.exclude=['*conv*']"], 'no convolution with a kernel above 1x1'),
    'exclude nothing': (['model.mutator.exclude=stem'], 'no channel unit matches "stem"'),
    'unknown form': (['model.forms=fast'], 'forms should be one of dense, stripes'),
    'no such weights': (['model.checkpoint=missing.pth'], 'checkpoint missing.pth: no such file'),
    'unknown setting': (['model.sparsity=0.5'], 'StripeWise has no setting "sparsity"'),
}


def error_of(tool: str, capsys: pytest.CaptureFixture, *arguments: object) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as raised:
        run_tool(tool, *arguments)
    assert raised.value.code == 2
    message, = [line for line in capsys.readouterr().err.splitlines() if 'error:' in line]
    return message


@pytest.mark.parametrize('name', BAD)
def test_bad_input(name, run_config, tmp_path, capsys):
    options, message = BAD[name]
    run_config().dump(tmp_path / 'run.py')
    before = sorted(tmp_path.iterdir())
    assert message in error_of('train', capsys, tmp_path / 'run.py', '--work-dir', tmp_path / 'work', '--cfg-options',
                               *options)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.e2e
@pytest.mark.parametrize(('change', 'message'), [
    (dict(kernel_size=[1, 1], keep=[1] * 8), 'its kernel is 1x1 there, 3x3 in the model'),
    (dict(keep=[1] * 9), 'it has 9 filters there, 8 in the model'), (dict(form='fast'), 'form should be one of')],
    ids=['kernel', 'filters', 'form'])
def test_compact_unit_file_of_another_model(run, tmp_path, capsys, change, message):
    export(run, tmp_path / 'out', '--stripe-forms', 'dense')
    path = tmp_path / 'out' / 'units.json'
    content = json.loads(path.read_text())
    content['stripes']['backbone.layer1.0.conv1'].update(change)
    path.write_text(json.dumps(content))
    error = error_of('test', capsys, tmp_path / 'out' / 'compact_config.py', '--work-dir', tmp_path / 'work')
    assert message in error and 'units.json' in error and 'backbone.layer1.0.conv1' in error


@pytest.mark.e2e
def test_weights_of_other_stripes(run, tmp_path, capsys):
    export(run, tmp_path / 'out', '--stripe-forms', 'dense')
    path = tmp_path / 'out' / 'units.json'
    content = json.loads(path.read_text())
    content['stripes']['backbone.layer1.0.conv1']['keep'][0] ^= 2
    path.write_text(json.dumps(content))
    error = error_of('test', capsys, tmp_path / 'out' / 'compact_config.py', '--work-dir', tmp_path / 'work')
    assert 'backbone.layer1.0.conv1.weight has shape' in error


def test_unknown_forms_on_the_command_line(run_config, tmp_path, capsys):
    assert "invalid choice: 'fast'" in error_of('export_compact', capsys, 'run.py', 'run.pth', '-o', tmp_path / 'out',
                                                '--stripe-forms', 'fast')
