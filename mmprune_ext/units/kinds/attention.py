"""``nn.MultiheadAttention``: its input, its heads and its output lose channels independently.

Its weights are members of units as parameters, each with its dimension; ``out_proj`` is a linear layer as any other.
Queries and keys of all heads have one width, values another. Or it is whole heads that go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from mmprune_ext.sizes.multihead import is_followed, projections
from mmprune_ext.units.labels import tensors_in
from mmprune_ext.units.layers import RULES, LayerRule
from mmprune_ext.units.parameters.computed import remedy
from mmprune_ext.units.reasons import Reason

if TYPE_CHECKING:
    from mmprune_ext.units.tracing.tracer import Tracer


_WEIGHTS = ('in_proj_weight', 'q_proj_weight', 'k_proj_weight', 'v_proj_weight', 'in_proj_bias')


class MultiheadRule(LayerRule):
    """Attention of several heads, of one joint weight or of one each for queries, keys and values."""

    types = (nn.MultiheadAttention,)

    def widths(self, module: nn.Module) -> dict[str, int]:
        return {}

    def parts(self, module: nn.Module) -> tuple[str, ...]:
        return ('out_proj',) if is_followed(module) else ()

    def trace(self, tracer: Tracer, module: nn.Module, inputs: list[Tensor], output: Any) -> None:
        path = tracer.path_of(module)
        computed = remedy(module, path, _WEIGHTS)
        if computed:
            return tracer.freeze_inputs(inputs, Reason.WEIGHT, computed)
        if not is_followed(module):
            return tracer.freeze_inputs(inputs, Reason.ATTENTION, f'{type(module).__name__} {path}')
        tracer.freeze_inputs(inputs[3:], Reason.ATTENTION, f'mask of {path}')
        made = self._made(tracer, module, path)
        for x, (name, _, count) in zip(inputs, projections(module)):
            # A value without labels, such as a first query of zeros, has the width of the others.
            labels = tracer.channel_labels(x, x.dim() - 1, Reason.SPACE)
            _meet(tracer, _joined(path, name), 1, labels)
            tracer.count(module, x.numel() * count)
        given, *weights = tensors_in(output)
        part = module.out_proj
        tracer.consume(part, made[2])
        tracer.produce(part, part.out_features, given, given.dim() - 1)
        tracer.count(part, given.numel() * part.in_features)
        tracer.functional.add(tracer.path_of(part))
        for tensor in weights:
            tracer.write(tensor, None)

    def _made(self, tracer: Tracer, module: nn.MultiheadAttention, path: str) -> list[np.ndarray]:
        """Return the labels of all queries, keys and values, new ones at first."""
        parts, records = projections(module), tracer.records
        for name, _, _ in parts:
            if (_joined(path, name), 'producer', 0) not in records:
                records[_joined(path, name), 'producer', 0] = tracer.space.new(len(getattr(module, name)))
        made = [records[_joined(path, name), 'producer', 0][first:first + count] for name, first, count in parts]
        queries, keys, values = (labels.reshape(module.num_heads, -1) for labels in made)
        tracer.space.tie(queries, keys)
        if tracer.whole_heads:
            tracer.space.tie(queries[:, :1], values[:, :1])
        for labels in (queries, values):
            tracer.space.tie(labels, labels[:, :1] if tracer.whole_heads else labels[:1])
        if module.in_proj_bias is not None:
            _meet(tracer, _joined(path, 'in_proj_bias'), 0, np.concatenate(made))
        if module.bias_k is not None:
            _meet(tracer, _joined(path, 'bias_k'), 2, made[1])
            _meet(tracer, _joined(path, 'bias_v'), 2, made[2])
        return made


def is_of_attention(model: nn.Module, path: str) -> bool:
    """Whether a parameter is a weight or bias of such a layer: it is read with the layer's inputs, and makes heads."""
    return isinstance(model.get_submodule(path.rpartition('.')[0]), nn.MultiheadAttention)


def _joined(path: str, name: str) -> str:
    return f'{path}.{name}' if path else name


def _meet(tracer: Tracer, path: str, dim: int, labels: np.ndarray) -> None:
    """Tie a dimension of a parameter with labels; places that had none so far get these."""
    known = tracer.records.setdefault((path, 'parameter', dim), labels.copy())
    tracer.space.tie(known, labels)
    np.copyto(known, labels, where=known == 0)


RULES.append(MultiheadRule())
