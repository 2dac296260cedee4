"""Recurrent layers: they lose inputs when what feeds them loses channels; their own width stays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from mmprune_ext.units.labels import tensors_in
from mmprune_ext.units.layers import RULES, LayerRule, select_parameter
from mmprune_ext.units.reasons import Reason

if TYPE_CHECKING:
    from mmprune_ext.units.tracing.tracer import Tracer


class RecurrentRule(LayerRule):
    """LSTM, GRU and plain recurrent layers, in both directions, of several levels, and their cells."""

    types = (nn.RNNBase, nn.RNNCellBase)

    def widths(self, module: nn.Module) -> dict[str, int]:
        directions = 2 if getattr(module, 'bidirectional', False) else 1
        given = getattr(module, 'proj_size', 0) or module.hidden_size
        return {'producer': given * directions, 'consumer': module.input_size}

    def trace(self, tracer: Tracer, module: nn.Module, inputs: list[Tensor], output: Any) -> None:
        x, *states = inputs
        why = f'{tracer.path_of(module)} reads its outputs in its next step'
        tracer.freeze_inputs(states, Reason.LAYER, why)
        tracer.consume(module, tracer.channel_labels(x, x.dim() - 1, Reason.SPACE))
        given = tensors_in(output)[0]
        own = tracer.produce(module, self.widths(module)['producer'], given, given.dim() - 1)
        tracer.space.freeze(own, (Reason.LAYER, why))

    def slim(self, module: nn.Module, in_keep: Tensor | None, out_keep: Tensor | None) -> None:
        if in_keep is None:
            return
        for name in ('weight_ih', 'weight_ih_l0', 'weight_ih_l0_reverse'):
            select_parameter(module, name, 1, in_keep)
        module.input_size = len(in_keep)
        if isinstance(module, nn.RNNBase):  # which lists its weights for cuDNN
            module._init_flat_weights()


RULES.append(RecurrentRule())
