"""Distillation: teachers that stand beside a model while it is trained."""

from mmprune_ext.distillation.distilled import Distilled

__all__ = ['Distilled']
