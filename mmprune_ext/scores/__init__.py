"""Importance scores of channels: pure functions on tensors; larger is more important."""

from mmprune_ext.scores.brain_surgeon import brain_surgeon
from mmprune_ext.scores.channel_independence import channel_independence
from mmprune_ext.scores.filter_fusion import (
    fusion_importance,
    fusion_matrix,
    fusion_temperature,
    similarity,
)
from mmprune_ext.scores.fisher import gate_gradient
from mmprune_ext.scores.l1 import l1_norm

__all__ = ['brain_surgeon', 'channel_independence', 'fusion_importance', 'fusion_matrix', 'fusion_temperature',
           'gate_gradient', 'l1_norm', 'similarity']
