"""What needs the Runner: starting processes, hooks and loops."""

from mmprune_ext.engine.batch_norm import reestimate_batch_norm
from mmprune_ext.engine.hooks import EpochSeedHook, PruningHook

__all__ = ['EpochSeedHook', 'PruningHook', 'reestimate_batch_norm']
