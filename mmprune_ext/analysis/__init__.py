"""What a model costs: parameters, multiply-accumulates, latency, and reports of them."""

from mmprune_ext.analysis.complexity import Complexity, complexity
from mmprune_ext.analysis.cost_model import CostModel
from mmprune_ext.analysis.latency import Latency, LatencyComparison, compare_latency, latency
from mmprune_ext.analysis.report import Report
from mmprune_ext.analysis.soft_cost import SoftCost
from mmprune_ext.analysis.tables import units_table

__all__ = ['Complexity', 'CostModel', 'Latency', 'LatencyComparison', 'Report', 'SoftCost', 'compare_latency',
           'complexity', 'latency', 'units_table']
