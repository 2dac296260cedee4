"""Tools share the units that one of them has traced, give up in time, and trace anew where they are told to."""
from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from mmprune_ext.units.tracing import trace
from tests.in_process import run_tool


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The traces that were made and not read, with a cache of the test's own."""
    found: list[str] = []
    really = trace._trace
    for name, module in list(sys.modules.items()):  # code that other tests have written, after which nothing is kept
        if str(getattr(module, '__file__', None)).startswith(str(tmp_path_factory.getbasetemp())):
            monkeypatch.delitem(sys.modules, name)

    def counted(model: Any, *rest: Any) -> Any:
        found.append(type(model).__name__)
        return really(model, *rest)
    monkeypatch.setattr(trace, '_trace', counted)
    monkeypatch.setenv('MMPRUNE_CACHE', str(tmp_path / 'cache'))
    return found


def test_one_trace_for_all_tools(dense_config_file, dense_checkpoint, tmp_path, traces):
    run_tool('get_channel_units', dense_config_file, '-c', '-o', tmp_path / 'units.json')
    run_tool('score', dense_config_file, dense_checkpoint, '--algorithm', 'l1', '-o', tmp_path / 'scores.json')
    for ratio in (0.25, 0.5):
        run_tool('prune', dense_config_file, dense_checkpoint, '--algorithm', 'l1', '--ratio', ratio,
                 '--bn-batches', 0, '-o', tmp_path / f'out{ratio}')
    assert len(traces) == 1
    run_tool('prune', dense_config_file, dense_checkpoint, '--algorithm', 'l1', '--ratio', 0.5, '--bn-batches', 0,
             '-o', tmp_path / 'anew', '--no-cache')
    assert len(traces) == 2
    first, second = (json.loads((tmp_path / name / 'units.json').read_text()) for name in ('out0.5', 'anew'))
    assert first == second


def test_no_time(dense_config_file, tmp_path, traces, capsys):
    with pytest.raises(SystemExit) as ended:
        run_tool('get_channel_units', dense_config_file, '-o', tmp_path / 'units.json', '--timeout', 0.001)
    text = capsys.readouterr().err
    assert (ended.value.code, text.count('error: '), text.count('\n')) == (2, 1, 1)
    assert 'tracing ImageClassifier' in text and '0.001 s (--timeout)' in text
    assert not (tmp_path / 'units.json').exists()
