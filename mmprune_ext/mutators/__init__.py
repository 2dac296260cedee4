"""Mutators: one a pruning method, each scoring the channels of a model's units."""

from mmprune_ext.mutators.base import ChannelMutator
from mmprune_ext.mutators.chip_mutator import CHIPMutator
from mmprune_ext.mutators.chipnet_mutator import ChipNetMutator
from mmprune_ext.mutators.dcff_mutator import DCFFMutator
from mmprune_ext.mutators.fisher_mutator import FisherMutator
from mmprune_ext.mutators.l1_mutator import L1Mutator
from mmprune_ext.mutators.obs_mutator import OBSMutator
from mmprune_ext.mutators.stripe_mutator import StripeMutator
from mmprune_ext.targets.target import Budget

__all__ = ['Budget', 'CHIPMutator', 'ChannelMutator', 'ChipNetMutator', 'DCFFMutator', 'FisherMutator', 'L1Mutator',
           'OBSMutator', 'StripeMutator']
