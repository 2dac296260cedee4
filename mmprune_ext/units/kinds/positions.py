"""Position encodings without weights, which are added to channels that layers make."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from mmprune_ext.sizes.kept_positions import KeptPositions
from mmprune_ext.units.labels import tensors_in
from mmprune_ext.units.layers import RULES, LayerRule
from mmprune_ext.units.reasons import Reason

if TYPE_CHECKING:
    from mmprune_ext.units.tracing.tracer import Tracer


class SinePositionRule(LayerRule):
    """Sine encoding of mmdet: from a mask or the size of a map, twice ``num_feats`` channels."""

    names = frozenset({'SinePositionalEncoding'})

    def applies(self, kind: type[nn.Module]) -> bool:
        return super().applies(kind) and 'num_feats' in inspect.signature(kind.__init__).parameters

    def widths(self, module: nn.Module) -> dict[str, int]:
        present = vars(module).get('forward')
        if isinstance(present, KeptPositions):
            return {'producer': len(present.kept)}
        return {'producer': 2 * module.num_feats}

    def trace(self, tracer: Tracer, module: nn.Module, inputs: list[Tensor], output: Any) -> None:
        maps, width = tensors_in(output), self.widths(module)['producer']
        if len(maps) == 1 and maps[0].dim() == 4 and maps[0].shape[1] == width:
            tracer.produce(module, width, maps[0], 1)  # of its input only the size counts
            return
        tracer.freeze_inputs(inputs, Reason.LAYER, f'{type(module).__name__} {tracer.path_of(module)}')
        for tensor in maps:
            tracer.write(tensor, None)

    def slim(self, module: nn.Module, in_keep: Tensor | None, out_keep: Tensor | None) -> None:
        if out_keep is not None:
            present = vars(module).get('forward')
            before = present.kept if isinstance(present, KeptPositions) else range(2 * module.num_feats)
            module.forward = KeptPositions(module, [before[place] for place in out_keep.tolist()])


RULES.append(SinePositionRule())
