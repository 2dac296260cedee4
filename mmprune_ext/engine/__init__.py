"""What needs the Runner: starting processes, hooks and loops."""

from mmprune_ext.engine.batch_norm import reestimate_batch_norm
from mmprune_ext.engine.drawing import DrawSamplesHook, draw_predictions
from mmprune_ext.engine.fusion_hook import FusionHook
from mmprune_ext.engine.hooks import EpochSeedHook, ExportHook, PruningHook

__all__ = ['DrawSamplesHook', 'EpochSeedHook', 'ExportHook', 'FusionHook', 'PruningHook', 'draw_predictions',
           'reestimate_batch_norm']
