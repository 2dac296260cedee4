"""What mends a pruned network without training."""

from mmprune_ext.repair.batch_norm import batch_norms, reestimate_batch_norm
from mmprune_ext.repair.least_squares import LayerError, RepairReport, repair_least_squares

__all__ = ['LayerError', 'RepairReport', 'batch_norms', 'reestimate_batch_norm', 'repair_least_squares']
