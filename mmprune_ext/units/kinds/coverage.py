"""Which parameters of a traced model lie in no channel unit, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mmprune_ext.units.labels import channel_dim
from mmprune_ext.units.layers import rule_for
from mmprune_ext.units.unit import ChannelUnit

if TYPE_CHECKING:
    from mmprune_ext.units.tracing.tracer import Tracer


@dataclass(frozen=True)
class Coverage:
    """What the units of a model cover of its parameters.

    Attributes:
        total: Values of all parameters.
        beside: By name of a parameter that no unit covers, its values and why; without a reason that is empty.
    """

    total: int = 0
    beside: dict[str, tuple[int, str]] = field(default_factory=dict)

    @property
    def unexplained(self) -> float:
        """The share of the parameters that no unit and no reason covers."""
        return sum(count for count, why in self.beside.values() if not why) / max(self.total, 1)

    def lines(self) -> list[str]:
        """Return it as text: shares, then a line for each reason."""
        outside = sum(count for count, _ in self.beside.values())
        share = outside / max(self.total, 1)
        found = [f'{self.total} parameters: {1 - share:.1%} in units, {share:.1%} beside them, '
                 f'{self.unexplained:.1%} without a reason']
        for why in sorted({why for _, why in self.beside.values()}):
            names = [name for name, (_, reason) in self.beside.items() if reason == why]
            count = sum(self.beside[name][0] for name in names)
            more = f' and {len(names) - 3} more' if len(names) > 3 else ''
            found.append(f'  {count}: {", ".join(names[:3])}{more}: {why or "no reason known"}')
        return found


def coverage_of(tracer: Tracer, units: Iterable[ChannelUnit]) -> Coverage:
    """Return what the units of a traced model cover of its parameters."""
    known = {member.module for unit in units for member in unit.members}
    frozen, beside, total = tracer.space.frozen(), {}, 0
    for name, parameter in tracer.model.named_parameters():
        total += parameter.numel()
        above = [name.rsplit('.', count)[0] for count in range(1, name.count('.') + 1)]
        if name in known or known.intersection(above):
            continue
        layer = next((path for path in reversed(above) if path in tracer.layers), None)
        if layer is not None:
            why = _of_layer(tracer, layer)
        elif parameter.numel() == 1:
            why = 'one value for all channels'
        else:
            why = tracer.own_weights.refused.get(name) or _of_parameter(tracer, name, frozen)
        beside[name] = parameter.numel(), why
    return Coverage(total, beside)


def _of_layer(tracer: Tracer, path: str) -> str:
    layer = tracer.layers[path]
    if path in tracer.unreached():
        return 'no pass of the demo inputs reaches this layer'
    if path in tracer.own_weights.of_layers:
        return 'code computes with its weight itself, in a way that is not followed'
    if not rule_for(layer).widths(layer):
        return f'the inside of {type(layer).__name__} is not followed'
    if all(parameter.numel() == 1 for parameter in layer.parameters()):
        return 'one value for all channels'
    return 'what this layer works on are no channels that a layer makes'


def _of_parameter(tracer: Tracer, name: str, frozen: dict[int, object]) -> str:
    records = [labels for (path, _, _), labels in tracer.records.items() if path == name]
    if not records:
        shape = tracer.model.get_parameter(name).shape
        return ('none of its dimensions are channels' if channel_dim(shape) is None
                else 'no pass of the demo inputs uses it')
    for labels in records:
        why = next((frozen[root] for root in tracer.space.roots(labels).tolist() if root in frozen), None)
        if why is not None:
            return f'{why[0].value} ({why[1]})' if why[1] else why[0].value
    return 'it meets no channels that a layer makes'
