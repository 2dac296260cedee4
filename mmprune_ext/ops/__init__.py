"""Layers that pruning puts into a network, or that networks to be pruned need."""
from .channel_gate import ChannelGate, ChannelGates
from .fuse_conv2d import FuseConv2d, FusionPart
from .shortcut_block import ShortcutBlock
from .skeleton_conv2d import SkeletonConv2d
from .stripe_conv2d import StripeConv2d
from .zero_pad_shortcut import ZeroPadShortcut

__all__ = ['ChannelGate', 'ChannelGates', 'FuseConv2d', 'FusionPart', 'ShortcutBlock', 'SkeletonConv2d', 'StripeConv2d',
           'ZeroPadShortcut']
