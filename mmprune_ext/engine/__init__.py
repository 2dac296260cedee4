"""What lives inside the Runner: setting up a run, starting its processes, hooks."""

from mmprune_ext.engine.drawing import DrawSamplesHook, draw_predictions
from mmprune_ext.engine.fusion_hook import FusionHook
from mmprune_ext.engine.gate_hook import GateHook
from mmprune_ext.engine.hooks import EpochSeedHook, ExportHook, PruningHook
from mmprune_ext.engine.rounds_runner import RoundsRunner
from mmprune_ext.engine.search_runner import SearchRunner
from mmprune_ext.engine.stripe_hook import StripeHook

__all__ = ['DrawSamplesHook', 'EpochSeedHook', 'ExportHook', 'FusionHook', 'GateHook', 'PruningHook', 'RoundsRunner',
           'SearchRunner', 'StripeHook', 'draw_predictions']
