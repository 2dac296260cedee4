"""Targets: how many channels of each unit stay, by ratio, by sparsity string or under a budget."""

from mmprune_ext.targets.budget import RESOURCES, Keeps
from mmprune_ext.targets.gate_budget import GateBudget
from mmprune_ext.targets.sensitivity import Curve, Point, Sensitivity
from mmprune_ext.targets.target import Budget, RatioTarget, keeps_from_budget, keeps_from_ratios

__all__ = ['RESOURCES', 'Budget', 'Curve', 'GateBudget', 'Keeps', 'Point', 'RatioTarget', 'Sensitivity',
           'keeps_from_budget', 'keeps_from_ratios']
