"""The published compact models of the four tasks, made from stock configs: exact costs."""
import json
from pathlib import Path

import pytest

from mmprune_ext.analysis import complexity
from mmprune_ext.compact.compact_model import build_architecture
from mmprune_ext.settings import reading
from mmprune_ext.units import slim, trace_units

ROWS = json.loads((Path(__file__).parents[1] / 'data' / 'published_task_models.json').read_text())
# Small images to trace on; a pose estimator's codec fixes its own.
TRACED_ON = {'mmpretrain': (64, 64), 'mmdet': (64, 64), 'mmseg': (64, 64), 'mmpose': (256, 192)}


@pytest.mark.e2e
@pytest.mark.parametrize('row', ROWS, ids=lambda row: row['row'])
def test_published_compact_model(row):
    library = row['config'].split('::')[0]
    pytest.importorskip(library)
    config = reading.read_config(row['config'])
    model = build_architecture(config.model, config.get('data_preprocessor'))
    units = trace_units(model, TRACED_ON[library])
    for name, kept in row['kept'].items():
        # A stage's output is one unit, named after one of the layers that are added.
        unit, = (u for u in units.values() if any(m.module == name for m in u.producers))
        unit.choose(range(kept))
    slim(model, units)
    result = complexity(model, row['input'], flops=False)
    assert result.input_shape == tuple(row['input'])
    assert (result.params, result.macs) == (row['params'], row['macs'])
    assert (result.flops_mm, result.flops_thop) == (row['flops_mm'], row['flops_thop'])
    assert result.proposals == (1000 if library == 'mmdet' else None)
