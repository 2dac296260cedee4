"""Compact models: physical slimming, building from a unit file, export."""

from mmprune_ext.compact.compact_model import CompactModel
from mmprune_ext.compact.export import export
from mmprune_ext.units.slimming import slim

__all__ = ['CompactModel', 'export', 'slim']
