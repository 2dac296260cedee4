"""One toy net per topology, by name."""

from tests.test_units import (
    toy_attention,
    toy_code,
    toy_decisions,
    toy_deform,
    toy_drawn,
    toy_flow,
    toy_functional,
    toy_layers,
    toy_norms,
    toy_own,
    toy_products,
    toy_reach,
    toy_recurrent,
    toy_regions,
    toy_sizes,
    toy_traps,
    toy_views,
)
from tests.test_units.toy_base import TOYS, ToyNet, member_text, text_of

__all__ = ['TOYS', 'ToyNet', 'member_text', 'text_of', 'toy_attention', 'toy_code', 'toy_decisions', 'toy_deform',
           'toy_drawn', 'toy_flow', 'toy_functional', 'toy_layers', 'toy_norms', 'toy_own', 'toy_products', 'toy_reach',
           'toy_recurrent', 'toy_regions', 'toy_sizes', 'toy_traps', 'toy_views']
