"""ChipNet's gates (arXiv 2102.07156): learned factors of channels that become 0 or 1."""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from mmprune_ext.registry import MODELS
from mmprune_ext.scores.heaviside import GateSchedule, heaviside, logistic


@MODELS.register_module()
class ChannelGate(nn.Module):
    """One learned factor for each channel of a channel unit.

    With `psi`, the only parameter, the gate of a channel is the continuous Heaviside
    `z = 1 - exp(-gamma z~) + z~ exp(-gamma)` of `z~ = 1 / (1 + exp(-beta psi))`
    (:mod:`mmprune_ext.scores.heaviside`). The larger `beta` and `gamma`, the sharper.

    The `least` channels of largest `psi` are open whatever it is, as pruning leaves no unit empty. Without them a
    normalisation behind the next layer would make up for any factor that all gates of a unit share, and they
    would close together at no cost.

    Args:
        num_channels: Channels of the unit.
        least: How many of them stay in any case.

    Attributes:
        psi: `(num_channels,)`, at the start `0.01 * rand`, as published.
        chosen: Bool buffer `(num_channels,)`: the channels that were decided to stay, once they were.
        settled: How far the gates have gone from soft values to these, 0 to 1.
        beta: Of the logistic.
        gamma: Of the Heaviside.
        mask: Bool `(num_channels,)`: the channels that stay, which are then passed on as they are and all
            others as 0; `None` while the gates are soft.

    Raises:
        ValueError: If `num_channels` is below 1, or `least` is not 0 to `num_channels`.
    """

    def __init__(self, num_channels: int, least: int = 0) -> None:
        super().__init__()
        if not 0 <= least <= num_channels or num_channels < 1:
            raise ValueError('ChannelGate: num_channels should be at least 1, and least 0 to num_channels, got '
                             f'{num_channels} and {least}')
        self.least = least
        self.psi = nn.Parameter(0.01 * torch.rand(num_channels))
        self.register_buffer('chosen', torch.ones(num_channels, dtype=torch.bool))
        self.settled = 0.0
        self.beta, self.gamma, _ = GateSchedule().at(0)
        self.mask: Tensor | None = None

    def effective_psi(self) -> Tensor:
        """Return `psi`, infinite for the channels that stay in any case, `(num_channels,)`."""
        if not self.least:
            return self.psi
        return self.psi.index_fill(0, self.psi.detach().topk(self.least).indices, math.inf)

    def values(self) -> Tensor:
        """Return what channels are multiplied by, `(num_channels,)`: gates, as far as they settled, or the mask."""
        return acting_gates([self])

    def forward(self, x: Tensor, dim: int = 1) -> Tensor:
        """Return `x` with its channels multiplied by the gates.

        Args:
            x: Any shape with `num_channels` in dimension `dim`.
            dim: The dimension of the channels.
        """
        shape = [1] * x.dim()
        shape[dim] = -1
        return x * self.values().to(x.dtype).view(shape)

    def extra_repr(self) -> str:
        return f'{len(self.psi)}, least={self.least}, beta={self.beta:.3g}, gamma={self.gamma:.3g}'


def acting_gates(gates: Sequence[ChannelGate], gather: Callable[[list[Tensor], float], Tensor] | None = None) -> Tensor:
    """Return what the channels of several units in a row are multiplied by.

    Args:
        gates: Their gates, all as sharp and as settled.
        gather: Takes a value a channel of each unit, and the value of a channel without a gate, and puts them in the
            order that is wanted; by default they stand in a row.
    """
    gather = gather or (lambda parts, _: parts[0] if len(parts) == 1 else torch.cat(parts))
    first = gates[0]
    if first.mask is not None:
        return gather([gate.mask.to(gate.psi) for gate in gates], 1.0)
    # Of an infinite psi the gate is 1, whatever beta and gamma.
    soft = heaviside(logistic(gather([gate.effective_psi() for gate in gates], math.inf), first.beta), first.gamma)
    if not first.settled:
        return soft
    return soft + first.settled * (gather([gate.chosen.to(soft) for gate in gates], 1.0) - soft)


class ChannelGates(nn.Module):
    """The gates of all prunable units of a model.

    Their state is the `psi` of each unit, `step`, the steps of the schedule done, and, when it was decided, which
    channels stay; everything else follows from these and from how far the search is.

    Args:
        sizes: Channels by unit name, and how many of them stay in any case.
        schedule: How the gates sharpen.

    Attributes:
        step: Integer scalar, a buffer.
        decided: Bool scalar, a buffer: whether it was decided which channels stay.
        settled: How far the gates have gone to what was decided, 0 to 1.
        beta: Of the logistic, at this step.
        gamma: Of the Heaviside.
        steepness: Of the soft counts.
    """

    step: Tensor
    decided: Tensor

    def __init__(self, sizes: Mapping[str, tuple[int, int]], schedule: GateSchedule) -> None:
        super().__init__()
        self.schedule = schedule
        # A name with dots cannot be that of a module.
        self.gates = nn.ModuleDict({name.replace('.', '/'): ChannelGate(*size) for name, size in sizes.items()})
        index = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor([size for size, _ in sizes.values()]))
        self.register_buffer('_unit', index, persistent=False)
        self.register_buffer('step', torch.zeros((), dtype=torch.int64))
        self.register_buffer('decided', torch.zeros((), dtype=torch.bool))
        self.settled = 0.0
        self.register_load_state_dict_post_hook(_follow_loaded_step)
        self.set_step(0)

    def __getitem__(self, name: str) -> ChannelGate:
        """Return the gate of a unit."""
        return self.gates[name.replace('.', '/')]

    def items(self) -> Iterator[tuple[str, ChannelGate]]:
        """Yield the gates with the names of their units."""
        for key, gate in self.gates.items():
            yield key.replace('/', '.'), gate

    def set_step(self, step: int) -> None:
        """Sharpen the gates to what the schedule says after `step` steps."""
        self.beta, self.gamma, self.steepness = self.schedule.at(step)
        self.step.fill_(step)
        for gate in self.gates.values():
            gate.beta, gate.gamma = self.beta, self.gamma

    def decide(self, masks: Mapping[str, Tensor] | None) -> None:
        """Decide which channels stay, by unit name, or leave it open again (`None`)."""
        for name, gate in self.items():
            gate.chosen.copy_(torch.ones_like(gate.chosen) if masks is None else masks[name])
        self.decided.fill_(masks is not None)

    def set_settled(self, settled: float) -> None:
        """Let the gates go so far to what was decided."""
        self.settled = settled
        for gate in self.gates.values():
            gate.settled = settled

    def acting(self) -> Tensor:
        """Return what the channels of all units in a row are multiplied by, `(sum of channels,)`, mask or not."""
        masks = {name: gate.mask for name, gate in self.items()}
        self.harden(None)
        values = acting_gates(list(self.gates.values()))
        for name, gate in self.items():
            gate.mask = masks[name]
        return values

    def psi(self) -> Tensor:
        """Return `psi` of all units in a row, `(sum of channels,)`."""
        return torch.cat([gate.psi for gate in self.gates.values()])

    def relaxed_and_soft(self) -> tuple[Tensor, Tensor]:
        """Return `z~` and the soft gates of all units in a row, each `(sum of channels,)`."""
        relaxed = logistic(torch.cat([gate.effective_psi() for gate in self.gates.values()]), self.beta)
        return relaxed, heaviside(relaxed, self.gamma)

    def per_unit(self, values: Tensor) -> Tensor:
        """Return the sums over each unit's channels of `values` `(sum of channels,)`, as `(units,)`."""
        return values.new_zeros(len(self.gates)).index_add(0, self._unit, values)

    def harden(self, masks: Mapping[str, Tensor] | None) -> None:
        """Set the channels that stay by unit name, or make the gates soft again (`None`)."""
        for name, gate in self.items():
            gate.mask = None if masks is None else masks[name].to(gate.psi.device)


def _follow_loaded_step(gates: ChannelGates, incompatible_keys: object) -> None:
    gates.set_step(int(gates.step))
