"""Predictions drawn while a model is tested, by the task library's own hook and visualizer."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmprune_ext.errors import ConfigError
from mmprune_ext.registry import HOOKS


@HOOKS.register_module()
class DrawSamplesHook(Hook):
    """Let a hook that draws predictions see some samples of a test, spread evenly over all.

    The libraries' hooks draw every sample, or by position in a batch; drawing takes longer than
    predicting, and the first samples of a classification set are all of one class.

    Args:
        hook: Config of the hook that draws.
        number: Samples that it gets to see, in each process of a distributed test.
    """

    def __init__(self, hook: Mapping[str, Any], number: int) -> None:
        self.hook: Hook = HOOKS.build(dict(hook))
        self.number = number
        self._seen = 0
        self._wanted: set[int] = set()

    def before_test_epoch(self, runner: Runner) -> None:
        """Choose the positions of the samples to draw."""
        total = len(runner.test_dataloader.sampler)
        self._seen = 0
        self._wanted = {total * i // self.number for i in range(self.number)}

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None,
                        outputs: Sequence[Any] | None = None) -> None:
        """Hand over the chosen samples of the batch, each as a batch of one."""
        for i, sample in enumerate(outputs or ()):
            if self._seen in self._wanted:
                batch = {key: value[i:i + 1] for key, value in data_batch.items()}
                self.hook.after_test_iter(runner, self._seen, batch, [sample])
            self._seen += 1


def draw_predictions(config: Config, folder: str | Path, number: int | None = None) -> None:
    """Set up a config so that testing it draws the predictions into a folder.

    The visualization hook that the config names keeps its settings (score thresholds). The
    libraries call the same things by different names, told apart by the hook's signature: a switch
    ``enable`` or ``draw``, a folder ``out_dir`` or ``test_out_dir``. mmseg's hook has no folder:
    what it draws goes to the visualizer's backend, below ``vis_data/vis_image`` of the folder.

    Args:
        config: Config of the test, changed in place.
        folder: Where pictures go.
        number: Draw so many samples, spread evenly; all by default.

    Raises:
        ConfigError: If the config names no such hook or no visualizer.
    """
    hook = (config.get('default_hooks') or {}).get('visualization')
    if hook is None or config.get('visualizer') is None:
        raise ConfigError(
            'the config names no hook and visualizer to draw predictions by; set both, for '
            'mmpretrain --cfg-options default_hooks.visualization.type=VisualizationHook '
            'visualizer.type=UniversalVisualizer')
    with HOOKS.switch_scope_and_registry(None) as registry:
        kind = registry.get(hook.type) if isinstance(hook.type, str) else hook.type
    options = inspect.signature(kind).parameters if kind is not None else {}
    switch = next((name for name in ('enable', 'draw') if name in options), None)
    if switch is None:
        raise ConfigError(f'default_hooks.visualization: {hook.type} is no hook that draws '
                          'predictions, or is of a library that is not installed')
    # mmdet and mmpose would put a relative path below a folder of the run, once more every batch.
    folder = str(Path(folder).absolute())
    hook.update({switch: True, 'interval': 1})
    target = next((name for name in ('out_dir', 'test_out_dir') if name in options), None)
    if target is not None:
        hook[target] = folder
    else:
        config.visualizer.save_dir = folder
    if number is not None:
        config.default_hooks.visualization = dict(type='mmprune_ext.DrawSamplesHook', hook=hook,
                                                  number=number)
