"""Drawing predictions while testing: every library's own hook, and the samples that it sees."""
from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, init_default_scope

from mmprune_ext.engine.drawing import DrawSamplesHook, draw_predictions
from mmprune_ext.errors import ConfigError


@HOOKS.register_module()
class RecordingHook(Hook):
    """Writes down what it is given."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.calls.append((batch_idx, data_batch, outputs))


LIBRARIES = [
    ('mmpretrain', 'VisualizationHook', {'enable': True, 'out_dir': 'F', 'interval': 1}),
    ('mmdet', 'DetVisualizationHook', {'draw': True, 'test_out_dir': 'F', 'interval': 1}),
    ('mmseg', 'SegVisualizationHook', {'draw': True, 'interval': 1}),
    ('mmpose', 'PoseVisualizationHook', {'enable': True, 'out_dir': 'F', 'interval': 1}),
]


@pytest.mark.parametrize(('library', 'kind', 'expected'), LIBRARIES)
def test_switches_of_the_libraries(library, kind, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    init_default_scope(library)
    config = Config({'default_hooks': {'visualization': {'type': kind, 'kept': 0.7}},
                     'visualizer': {'type': 'Visualizer'}})
    draw_predictions(config, 'drawn')
    folder = str(tmp_path / 'drawn')
    expected = {key: folder if value == 'F' else value for key, value in expected.items()}
    assert config.default_hooks.visualization == {'type': kind, 'kept': 0.7, **expected}
    assert config.visualizer.get('save_dir') == (folder if library == 'mmseg' else None)


@pytest.mark.parametrize(('content', 'says'), [
    ({}, 'VisualizationHook'),
    ({'default_hooks': {'visualization': {'type': 'VisualizationHook'}}}, 'visualizer'),
    ({'default_hooks': {'visualization': {'type': 'IterTimerHook'}}, 'visualizer': {'type': 'Visualizer'}},
     'IterTimerHook is no hook that draws'),
    ({'default_hooks': {'visualization': {'type': 'NoSuchHook'}}, 'visualizer': {'type': 'Visualizer'}},
     'NoSuchHook is no hook that draws'),
])
def test_config_that_cannot_draw(content, says, tmp_path):
    init_default_scope('mmpretrain')
    with pytest.raises(ConfigError, match=says):
        draw_predictions(Config(content), tmp_path)


def test_number_wraps_the_hook(tmp_path):
    init_default_scope('mmdet')
    config = Config({'default_hooks': {'visualization': {'type': 'DetVisualizationHook'}},
                     'visualizer': {'type': 'DetLocalVisualizer'}})
    draw_predictions(config, tmp_path, 3)
    hook = config.default_hooks.visualization
    assert (hook.type, hook.number) == ('mmprune_ext.DrawSamplesHook', 3)
    assert hook.hook.draw and hook.hook.test_out_dir == str(tmp_path)


@pytest.mark.parametrize(('number', 'expected'), [(1, [0]), (3, [0, 3, 6]), (10, list(range(10))),
                                                  (25, list(range(10)))])
def test_samples_are_spread_over_the_set(number, expected):
    """Ten samples in batches of four: those chosen arrive alone, with their own input."""
    init_default_scope('mmengine')
    hook = DrawSamplesHook({'type': 'RecordingHook'}, number)
    runner = SimpleNamespace(test_dataloader=SimpleNamespace(sampler=range(10)))
    for _ in range(2):  # a second test draws the same
        hook.hook.calls.clear()
        hook.before_test_epoch(runner)
        for batch, start in enumerate((0, 4, 8)):
            samples = list(range(start, min(start + 4, 10)))
            inputs = torch.tensor(samples)
            hook.after_test_iter(runner, batch, {'inputs': inputs, 'data_samples': samples}, samples)
        assert [(index, outputs) for index, _, outputs in hook.hook.calls] == [(i, [i]) for i in expected]
        for index, batch, _ in hook.hook.calls:
            assert batch['inputs'].tolist() == [index] and batch['data_samples'] == [index]
