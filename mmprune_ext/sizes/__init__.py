"""Sizes that modules keep apart from their layers, or take from their input: set anew when the layers are slimmed."""
from mmprune_ext.sizes.head_width import HeadWidth, JointLayer, takes_width_of_input
from mmprune_ext.sizes.heads import Heads, heads_left, keeps_scale
from mmprune_ext.sizes.multihead import Multihead, OwnWidths, is_followed, renew_encoders
from mmprune_ext.sizes.padded_heads import PaddedHeads
from mmprune_ext.sizes.stored import STORED, renew_sizes
from mmprune_ext.sizes.two_ways import TwoWays

__all__ = ['STORED', 'HeadWidth', 'Heads', 'JointLayer', 'Multihead', 'OwnWidths', 'PaddedHeads', 'TwoWays',
           'heads_left', 'is_followed', 'keeps_scale', 'renew_encoders', 'renew_sizes', 'takes_width_of_input']
