"""Convolutions that standardise each filter over all that it reads: they lose outputs, and keep their inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from mmprune_ext.units.layers import RULES, ConvRule
from mmprune_ext.units.reasons import Reason

if TYPE_CHECKING:
    from mmprune_ext.units.tracing.tracer import Tracer


class StandardisedConvRule(ConvRule):
    """Weight standardisation of mmcv (``ConvWS2d``, ``ConvAWS2d``) and timm.

    Mean and variance of a filter run over its inputs: without some of these, all of its weights would be others.
    Source: Qiao et al., "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization"
    (arXiv 1903.10520).
    """

    types = ()
    names = frozenset({'ConvWS2d', 'ConvAWS2d', 'StdConv2d', 'StdConv2dSame', 'ScaledStdConv2d', 'ScaledStdConv2dSame'})

    def applies(self, kind: type[nn.Module]) -> bool:
        return kind.__name__ in self.names and issubclass(kind, nn.Conv2d)

    def trace(self, tracer: Tracer, module: nn.Module, inputs: list[Tensor], output: Any) -> None:
        super().trace(tracer, module, inputs, output)
        tracer.freeze_inputs(inputs, Reason.WEIGHT, f'{tracer.path_of(module)} standardises its weight over its inputs')


# Before the rule of plain convolutions, whose classes these derive from.
RULES.insert(0, StandardisedConvRule())
