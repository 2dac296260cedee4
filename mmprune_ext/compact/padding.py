"""Widths that a machine likes: zero channels up to a multiple, which change no output."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils._pytree import tree_flatten

from mmprune_ext.analysis.preserve import untouched
from mmprune_ext.errors import PruningError
from mmprune_ext.ops import ZeroPadShortcut
from mmprune_ext.units import ChannelUnit, UnitSet, slim
from mmprune_ext.units.demo_inputs import DemoInputs, eval_pass, set_training
from mmprune_ext.units.layers import replace_parameter

TOLERANCE = 1e-5
# What each of its channels goes through alone, or that only reads and makes them.
_BY_CHANNEL = (_BatchNorm, _InstanceNorm, nn.PReLU, nn.Linear, ZeroPadShortcut)


@dataclass(frozen=True)
class Padding:
    """What padding has added.

    Attributes:
        multiple: Of which the widths are.
        channels: Zero channels of each unit that got some, by its name.
        left: Why others of no such width are as they were, by name.
        difference: Largest difference of an output, as a share of its largest value.
    """

    multiple: int
    channels: Mapping[str, int]
    left: Mapping[str, str]
    difference: float

    def lines(self) -> list[str]:
        """Return what the report says of it."""
        return [f'{sum(self.channels.values())} zero channels in {len(self.channels)} units, for widths that are '
                f'multiples of {self.multiple}; costs and kept numbers count them',
                f'largest difference of an output: {self.difference:.1e} of its largest value',
                *(f'left as it was: {name} ({reason})' for name, reason in self.left.items())]


def pad_widths(model: nn.Module, units: UnitSet, dense: nn.Module, multiple: int,
               demo_inputs: DemoInputs = None) -> tuple[nn.Module, UnitSet, Padding]:
    """Return a compact model of wider units that computes the same.

    The places of channels that were removed hold zeros: as weights, biases and statistics. What comes from them is
    read with zeros, whatever it is. A unit has at most the channels of the dense model.

    Args:
        model: The compact model, in eval mode.
        units: Its channel units, relative to the dense model.
        dense: The dense model, whose weights do not matter; it stays as it is.
        multiple: Of which the numbers of channels are to be.
        demo_inputs: What to compare the outputs on.

    Raises:
        PruningError: If the outputs are not the same, or the model has lost stripes.
    """
    if units.stripes or units.shortcuts:
        raise PruningError('--pad-to: the model has lost stripes or blocks, between which there are no widths to pad; '
                           'leave it out')
    wider, channels, left = _wider(units, dict(dense.named_modules()), multiple)
    places = slim(_with_places(copy.deepcopy(dense)), units).state_dict()
    padded = copy.deepcopy(dense)
    own = model.state_dict()
    for name, value in padded.state_dict().items():
        if not isinstance(value, Tensor):
            continue
        if name not in own or own[name].shape != places[name].shape:
            raise PruningError(f'--pad-to: "{name}" of the compact model is not what its units leave of the dense one')
        value.zero_().view(-1)[places[name].long().flatten()] = own[name].flatten().to(value)
    padded = slim(padded, wider).to(next(model.parameters()).device)
    difference = _difference(model, padded, demo_inputs)
    if not difference <= TOLERANCE:
        raise PruningError(f'--pad-to: zero channels would change the outputs by {difference:.1e} of their largest '
                           'value: something in the model computes over its channels; leave it out')
    set_training(padded, model.training)
    return padded, wider, Padding(multiple, channels, left, difference)


def _wider(units: UnitSet, modules: Mapping[str, nn.Module],
           multiple: int) -> tuple[UnitSet, dict[str, int], dict[str, str]]:
    """Return units with more channels, how many each got, and why others got none."""
    wider, channels, left = units.copy(), {}, {}
    for name, unit in wider.items():
        if unit.keep % multiple == 0 or unit.keep == unit.num_channels:
            continue
        reason = _obstacle(unit, modules)
        if reason:
            left[name] = reason
            continue
        removed = sorted(set(range(unit.num_channels)) - set(unit.indices))
        channels[name] = min(-unit.keep % multiple, len(removed))
        unit.choose([*unit.indices, *removed[:channels[name]]])
    return wider, channels, left


def _obstacle(unit: ChannelUnit, modules: Mapping[str, nn.Module]) -> str:
    """Return which layer of a unit would see that there are more channels, empty if none does."""
    for member in (*unit.producers, *unit.consumers, *unit.followers):
        layer = modules.get(member.module)
        if member.dim is not None or isinstance(layer, _BY_CHANNEL):
            continue
        groups = layer.groups if isinstance(layer, _ConvNd) else None
        if groups is not None and (groups == 1 or groups == layer.in_channels == layer.out_channels):
            continue
        return f'{member.module} is a {type(layer).__name__}{f" of {groups} groups" if groups else ""}'
    return ''


def _with_places(model: nn.Module) -> nn.Module:
    """Give every parameter and buffer, in place, its places as values: what slimming leaves of them stays."""
    for module in model.modules():
        for name, value in [*module._parameters.items(), *module._buffers.items()]:
            if value is not None:
                # Exact in double precision.
                places = torch.arange(value.numel(), dtype=torch.float64).view(value.shape)
                replace_parameter(module, name, places)
    return model


def _difference(model: nn.Module, padded: nn.Module, demo_inputs: DemoInputs) -> float:
    forward = eval_pass(model, demo_inputs)
    with untouched(model, padded), torch.no_grad():
        pairs = zip(*(tree_flatten(forward(one))[0] for one in (model, padded)))
        return max((float((first - second).abs().max() / first.abs().max().clamp_min(1e-12))
                    for first, second in pairs if isinstance(first, Tensor) and first.is_floating_point()
                    and first.numel()), default=0.)
