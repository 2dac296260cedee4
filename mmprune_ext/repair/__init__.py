"""What mends a pruned network without training."""

from mmprune_ext.repair.batch_norm import batch_norms, reestimate_batch_norm

__all__ = ['batch_norms', 'reestimate_batch_norm']
