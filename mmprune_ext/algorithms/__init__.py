"""Algorithms: one a pruning method, the models that the Runner trains."""

from mmprune_ext.algorithms.base import OneShotAlgorithm, PruneAlgorithm
from mmprune_ext.algorithms.chip import CHIP
from mmprune_ext.algorithms.chipnet import ChipNet
from mmprune_ext.algorithms.dcff import DCFF
from mmprune_ext.algorithms.fisher import Fisher
from mmprune_ext.algorithms.l1_norm import L1Norm
from mmprune_ext.algorithms.obs import OBS
from mmprune_ext.algorithms.stripe_wise import StripeWise

__all__ = ['CHIP', 'ChipNet', 'DCFF', 'Fisher', 'L1Norm', 'OBS', 'OneShotAlgorithm', 'PruneAlgorithm', 'StripeWise']
