"""What mends a pruned network without training."""

from mmprune_ext.repair.batch_norm import batch_norms, reestimate_batch_norm
from mmprune_ext.repair.least_squares import LayerError, RepairReport, repair_least_squares
from mmprune_ext.repair.mending import Mending, mend

__all__ = ['LayerError', 'Mending', 'RepairReport', 'batch_norms', 'mend', 'reestimate_batch_norm',
           'repair_least_squares']
