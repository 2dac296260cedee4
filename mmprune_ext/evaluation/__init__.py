"""The config's own metrics on validation samples, of one model and of several forms of it at once."""

from mmprune_ext.evaluation.metering import Meter
from mmprune_ext.evaluation.validation import KeptBatches, Validation

__all__ = ['KeptBatches', 'Meter', 'Validation']
