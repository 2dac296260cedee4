"""Importance scores of channels: pure functions on tensors; larger is more important."""

from mmprune_ext.scores.channel_independence import (
    channel_independence,
    channel_independence_from_gram,
)
from mmprune_ext.scores.l1 import l1_norm

__all__ = ['channel_independence', 'channel_independence_from_gram', 'l1_norm']
