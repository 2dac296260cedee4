"""Importance scores of channels: pure functions on tensors; larger is more important."""

from mmprune_ext.scores.l1 import l1_norm

__all__ = ['l1_norm']
