"""What lives inside the Runner: setting up a run, starting its processes, hooks."""

from mmprune_ext.engine.drawing import DrawSamplesHook, draw_predictions
from mmprune_ext.engine.fusion_hook import FusionHook
from mmprune_ext.engine.hooks import EpochSeedHook, ExportHook, PruningHook

__all__ = ['DrawSamplesHook', 'EpochSeedHook', 'ExportHook', 'FusionHook', 'PruningHook', 'draw_predictions']
