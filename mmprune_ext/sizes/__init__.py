"""Sizes that modules keep apart from their layers, or take from their input: set anew when the layers are slimmed."""
from mmprune_ext.sizes.head_width import HeadWidth, JointLayer, takes_width_of_input
from mmprune_ext.sizes.stored import STORED, renew_sizes

__all__ = ['STORED', 'HeadWidth', 'JointLayer', 'renew_sizes', 'takes_width_of_input']
