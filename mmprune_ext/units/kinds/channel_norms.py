"""Layer normalisation over the channels of maps, of classes that are no ``nn.LayerNorm``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from mmprune_ext.ops.gated_layer import CHANNEL_NORMS, channel_dim
from mmprune_ext.units.layers import RULES, LayerNormRule
from mmprune_ext.units.reasons import Reason

if TYPE_CHECKING:
    from mmprune_ext.units.tracing.tracer import Tracer


class ChannelNormRule(LayerNormRule):
    """HorNet's normalisation: ``data_format`` says whether the channels lie first or last."""

    types = ()
    names = CHANNEL_NORMS

    def trace(self, tracer: Tracer, module: nn.Module, inputs: list[Tensor], output: Any) -> None:
        dim = output.dim() + channel_dim(module, output)
        tracer.follow(module, tracer.channel_labels(inputs[0], dim, Reason.SPACE), output, dim)


RULES.append(ChannelNormRule())
