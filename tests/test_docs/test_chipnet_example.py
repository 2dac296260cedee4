"""The example of docs/chipnet.md runs as it is written there, on fewer images, and leaves what the page names."""
from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from tests.in_process import run_tool
from tests.runs import state
from tests.test_docs.commands import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
FEW = ('--cfg-options', 'train_dataloader.dataset.indices=128', 'val_dataloader.dataset.indices=64')


def example() -> list[list[str]]:
    """Return the commands of the section, in words."""
    text = (ROOT / 'docs' / 'chipnet.md').read_text()
    section, = re.findall(r'^## An example in minutes\n(.*?)^## ', text, re.MULTILINE | re.DOTALL)
    block = re.search(r'^```bash\n(.*?)^```', section, re.MULTILINE | re.DOTALL)[1]
    return [shlex.split(line, comments=True) for line in block.splitlines()]


def test_example(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('MMPRUNE_DATA', raising=False)
    # Configs are formatted with every dump, which takes longer than these runs.
    monkeypatch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **_: (text, True))
    data, *tools = example()
    assert data[:2] == ['python', '-c']
    exec(data[2], {})
    for _, tool, *arguments in tools:
        arguments = [str(ROOT / word) if word.startswith('configs/') else word for word in arguments]
        run_tool(Path(tool).stem, *arguments, *(FEW if tool == 'tools/train.py' else ()))

    work = tmp_path / 'work_dirs' / 'chipnet_digits'
    named = ('epoch_5.pth', 'units.json', 'search/epoch_20.pth', 'search/units.json', 'search/gates.png',
             'search/gates.json', 'search/compact/compact.pth', 'search/compact/compact_config.py')
    assert [name for name in named if not (work / name).is_file()] == []
    # What the search has are the dense shapes and the gates; what is exported are plain layers, fewer channels.
    best, = (work / 'search').glob('best_accuracy_top1_epoch_*.pth')
    searched, compact = state(best), state(work / 'compact' / 'compact.pth')
    dense = state(tmp_path / 'work_dirs' / 'digits' / 'epoch_10.pth')
    assert {name: searched[name].shape for name in dense} == {name: value.shape for name, value in dense.items()}
    assert any(name.startswith('channel_gates.') for name in searched)
    assert compact.keys() == dense.keys()
    report = json.loads((work / 'compact' / 'report.json').read_text())
    assert 0.45 < report['compact']['macs'] / report['dense']['macs'] <= 0.5
    # The best of the search is exported like its end, within the same budget.
    config = ROOT / 'configs/pruning/mmcls/chipnet/chipnet_resnet20_digits.py'
    run_tool('export_compact', config, best, '-o', tmp_path / 'best')
    report = json.loads((tmp_path / 'best' / 'report.json').read_text())
    assert 0.45 < report['compact']['macs'] / report['dense']['macs'] <= 0.5
