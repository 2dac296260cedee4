"""Layers that pruning puts into a network, or that networks to be pruned need."""
from .zero_pad_shortcut import ZeroPadShortcut

__all__ = ['ZeroPadShortcut']
