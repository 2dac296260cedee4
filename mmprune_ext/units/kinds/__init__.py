"""Layers, weights and blocks of special kinds; each module registers what it knows when it is imported."""

from mmprune_ext.units.kinds import attention, channel_norms, deployed, positions, recurrent, regions, standardised

__all__ = ['attention', 'channel_norms', 'deployed', 'positions', 'recurrent', 'regions', 'standardised']
