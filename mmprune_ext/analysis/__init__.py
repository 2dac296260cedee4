"""What a model costs: parameters, multiply-accumulates, latency, and reports of them."""

from mmprune_ext.analysis.complexity import Complexity, complexity
from mmprune_ext.analysis.latency import Latency, LatencyComparison, compare_latency, latency

__all__ = ['Complexity', 'Latency', 'LatencyComparison', 'compare_latency', 'complexity',
           'latency']
