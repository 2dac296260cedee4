"""Channel units: which channels of a model can only be kept or removed together.

:func:`trace_units` finds them in any model by running it once; :class:`UnitSet` holds, saves, loads
and checks them.
"""

from mmprune_ext.units import kinds
from mmprune_ext.units.parameters.fingerprint import fingerprint, weights_digest
from mmprune_ext.units.reasons import Reason
from mmprune_ext.units.slimming import slim
from mmprune_ext.units.tracing.trace import trace_units
from mmprune_ext.units.unit import ChannelUnit, InitArgs, Member
from mmprune_ext.units.unit_set import UnitSet

__all__ = ['ChannelUnit', 'InitArgs', 'Member', 'Reason', 'UnitSet', 'fingerprint', 'kinds', 'slim', 'trace_units',
           'weights_digest']
