"""Where gates act: the last layers that a unit's channels leave before they are read.

A gate is to multiply a channel once on its way, where a closed gate silences it: after the normalisation that
follows a convolution, on the convolution where there is none, after every normalisation of a stream that several
branches add to and normalise for themselves. The autograd graph of one pass tells which layers these are.
"""
from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmprune_ext.draws import preserved_random_state
from mmprune_ext.ops.channel_gate import ChannelGate
from mmprune_ext.ops.gated_layer import channel_dim, gate_layer, is_gated, is_norm, keep_from_fusing
from mmprune_ext.units import ChannelUnit, UnitSet
from mmprune_ext.units.checking.silencing import excite, silence
from mmprune_ext.units.demo_inputs import DemoInputs, eval_pass, set_training
from mmprune_ext.units.labels import tensors_in
from mmprune_ext.units.layers import rule_for
from mmprune_ext.units.slimming import random_choice


@dataclass(frozen=True)
class GateSite:
    """A layer whose channels are gated.

    Attributes:
        path: Of the layer.
        side: ``'out'``: its outputs are gated, ``'in'``: its inputs, for a layer that reads channels which no
            gate before it silences (a position embedding was added).
        units: Names of the units that its channels on that side belong to.
        source: Place of each channel of the layer among those of ``units`` in a row, their number for channels
            that are not gated, int64 ``(channels,)``.
        scale: Whether outputs are multiplied; else only statistics of a normalisation over them are weighed.
    """

    path: str
    side: str
    units: tuple[str, ...]
    source: Tensor
    scale: bool = True

    def attach(self, model: nn.Module, gates: Mapping[str, ChannelGate]) -> None:
        """Gate the layer of a model, unless it is gated already."""
        layer = model.get_submodule(self.path)
        if not is_gated(layer, self.side):
            gate_layer(layer, [gates[name] for name in self.units], self.source, self.side, self.scale)
            keep_from_fusing(model, self.path)


def find_gate_sites(model: nn.Module, units: UnitSet, demo_inputs: DemoInputs = None) -> list[GateSite]:
    """Return the layers to gate, such that closed gates silence every channel that a layer reads.

    Args:
        model: The dense model; it stays as it was.
        units: Its channel units; those that are prunable get gates.
        demo_inputs: What to run it on (:func:`mmprune_ext.units.trace_units`).
    """
    with preserved_random_state():
        torch.manual_seed(0)
        work = copy.deepcopy(model).cpu().float()
        set_training(work, False)
        forward = eval_pass(work, demo_inputs)
        members = _Members(units, work)
        before = layer_flow(work, forward).before
        scaled = {path for unit in units.prunable.values() for path in _last_layers(unit, members, before)}
        sites = [members.site(path, 'out', path in scaled) for path in members.outputs
                 if path in scaled or is_norm(members.modules[path])]
        loud = _layers_that_hear(work, forward, units, members, sites)
        return sites + [members.site(path, 'in') for path in loud]


class _Members:
    """The layers that the channels of prunable units pass through."""

    def __init__(self, units: UnitSet, model: nn.Module) -> None:
        self.modules = dict(model.named_modules())
        self.outputs: dict[str, list[tuple[ChannelUnit, np.ndarray]]] = {}
        self.inputs: dict[str, list[tuple[ChannelUnit, np.ndarray]]] = {}
        for unit in units.prunable.values():
            for table, members in ((self.outputs, [*unit.producers, *unit.followers]),
                                   (self.inputs, unit.consumers)):
                for member in members:
                    if member.dim is None:
                        table.setdefault(member.module, []).append((unit, member.positions(unit.num_channels)))

    def site(self, path: str, side: str, scale: bool = True) -> GateSite:
        """Return the site of a layer."""
        table, roles = (self.inputs, ('consumer',)) if side == 'in' else (self.outputs, ('producer', 'follower'))
        found = table[path]
        widths = rule_for(self.modules[path]).widths(self.modules[path])
        size = next(widths[role] for role in roles if role in widths)
        names = tuple(dict.fromkeys(unit.name for unit, _ in found))
        sizes = {unit.name: unit.num_channels for unit, _ in found}
        first = dict(zip(names, np.cumsum([0, *(sizes[name] for name in names)])))
        source = np.full(size, sum(sizes.values()))
        for unit, positions in found:
            source[positions] = first[unit.name] + np.arange(unit.num_channels)[:, None]
        return GateSite(path, side, names, torch.from_numpy(source), scale)


def _last_layers(unit: ChannelUnit, members: _Members, before: Mapping[str, set[str]]) -> set[str]:
    """Return the layers that the unit's channels come from when they are read."""
    own = {member.module for member in [*unit.producers, *unit.followers] if member.dim is None}
    after: dict[str, set[str]] = {path: set() for path in own}
    for path in own:
        for earlier in before.get(path, set()) & own:
            after[earlier].add(path)

    def stateful(paths: Iterable[str]) -> set[str]:
        """Return the layers; behind those that pass a zero on as it is, the ones before."""
        found, seen, waiting = set(), set(), list(paths)
        while waiting:
            path = waiting.pop()
            layer = members.modules[path]
            if path in seen:  # a layer that is called twice may stand before itself
                continue
            seen.add(path)
            if isinstance(layer, nn.PReLU) or not any(True for _ in layer.parameters()) and rule_for(
                    layer).widths(layer).keys() == {'follower'}:
                waiting.extend(before.get(path, set()) & own)
            else:
                found.add(path)
        return found

    found = stateful(path for member in unit.consumers for path in before.get(member.module, set()) & own)
    for path in own:
        reached = _reachable(path, after)
        if not reached & found:
            # Nothing that is a layer reads it, as where two activations are multiplied.
            found.update(stateful(end for end in reached if not after[end]))
    return found


def _reachable(start: str, after: Mapping[str, set[str]]) -> set[str]:
    seen, waiting = {start}, [start]
    while waiting:
        for path in after[waiting.pop()] - seen:
            seen.add(path)
            waiting.append(path)
    return seen


@dataclass(frozen=True)
class LayerFlow:
    """How values go from layer to layer in one pass.

    Attributes:
        before: For each layer, the layers whose outputs reach it through no other layer.
        added: The layers whose outputs are added to something, as they are or through functions and layers of one
            input.
    """

    before: Mapping[str, set[str]]
    added: set[str]


def layer_flow(model: nn.Module, forward: Callable[[nn.Module], Any]) -> LayerFlow:
    """Follow a pass by the autograd graph.

    Args:
        model: A copy of a model, in eval mode; its parameters are set to need gradients.
        forward: The pass.
    """
    made: list[tuple[Any, str]] = []  # nodes of the autograd graph, and the layer whose output each computed
    read: dict[str, set[Any]] = {}
    handles = []

    def watch(path: str, module: nn.Module) -> None:
        def enter(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            read.setdefault(path, set()).update(_nodes([args, kwargs]))

        def leave(_: nn.Module, args: tuple, output: Any) -> None:
            made.extend((node, path) for node in _nodes(output))
        handles.extend((module.register_forward_pre_hook(enter, with_kwargs=True),
                        module.register_forward_hook(leave)))

    for path, module in model.named_modules():
        if rule_for(module) is not None:
            watch(path, module)
    _follow_by_autograd(model)
    with torch.enable_grad():
        ends = _nodes(forward(model))
    for handle in handles:
        handle.remove()
    layers, readers = dict(made), _readers(ends)
    kept = {path for node, path in made if not _is_added(node, readers)}
    return LayerFlow({path: _made_by(nodes, layers) for path, nodes in read.items()},
                     {path for _, path in made} - kept)


def _nodes(values: Any) -> list[Any]:
    return [tensor.grad_fn for tensor in tensors_in(values) if tensor.grad_fn is not None]


def _readers(ends: Iterable[Any]) -> dict[Any, list[Any]]:
    """Return the nodes of an autograd graph that read each node's values."""
    readers: dict[Any, list[Any]] = {}
    waiting, seen = list(ends), set(ends)
    while waiting:
        node = waiting.pop()
        for earlier in {following for following, _ in node.next_functions if following is not None}:
            readers.setdefault(earlier, []).append(node)
            if earlier not in seen:
                seen.add(earlier)
                waiting.append(earlier)
    return readers


def _is_added(node: Any, readers: Mapping[Any, list[Any]]) -> bool:
    while True:
        following = readers.get(node, [])
        if len(following) != 1:
            return False
        node = following[0]
        # Leaves are parameters: a scale of the branch, the weights of a layer.
        values = [source for source, _ in node.next_functions
                  if source is not None and not type(source).__name__.startswith('AccumulateGrad')]
        if len(values) > 1:
            return type(node).__name__.startswith('Add')


def _made_by(nodes: Iterable[Any], made: Mapping[Any, str]) -> set[str]:
    """Return the first layers that a walk back along the autograd graph meets on every way."""
    waiting, seen, found = list(nodes), set(nodes), set()
    while waiting:
        node = waiting.pop()
        if node in made:
            found.add(made[node])
            continue
        earlier = {following for following, _ in node.next_functions if following is not None} - seen
        seen |= earlier
        waiting.extend(earlier)
    return found


def _follow_by_autograd(model: nn.Module) -> None:
    """Let autograd record all that a model does, frozen stages and checkpointed blocks too."""
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    for module in model.modules():
        if getattr(module, 'with_cp', False):
            module.with_cp = False


def _layers_that_hear(model: nn.Module, forward: Callable[[nn.Module], Any], units: UnitSet, members: _Members,
                      sites: Iterable[GateSite]) -> list[str]:
    """Return the layers that still read something of channels whose gates are closed at random."""
    for handle in excite(model):  # values that are zero by initialisation would hide it
        handle.remove()
    trial = units.copy()
    random_choice(list(trial.prunable.values()), np.random.default_rng(0))
    gates = {name: ChannelGate(unit.num_channels) for name, unit in trial.prunable.items()}
    for name, unit in trial.prunable.items():
        gates[name].mask = torch.zeros(unit.num_channels, dtype=torch.bool)
        gates[name].mask[unit.indices] = True
    for site in sites:
        site.attach(model, gates)
    loud: dict[str, None] = {}

    def listen(path: str, module: nn.Module) -> Any:
        removed = torch.cat([torch.from_numpy(positions)[~gates[unit.name].mask].flatten()
                             for unit, positions in members.inputs[path]])

        def hook(_: nn.Module, args: tuple) -> None:
            # Beside the values of a packed sequence stand its sizes.
            values = [x for x in tensors_in(args[:1]) if x.is_floating_point()]
            if any(bool(x.index_select(channel_dim(module, x), removed).any()) for x in values):
                loud[path] = None
        return module.register_forward_pre_hook(hook)

    handles = [listen(path, members.modules[path]) for path in members.inputs]
    with torch.no_grad():
        forward(model)
    for handle in handles:
        handle.remove()
    return list(loud)


def weights_that_hear(model: nn.Module, units: UnitSet, demo_inputs: DemoInputs = None) -> dict[str, str]:
    """Return the weights that change with channels that they read, though these are silenced where they are made.

    Code may divide a parameter that it takes for a weight by its norm, over what a silent channel would be multiplied
    with too. Slimming takes that out of the norm, a closed gate does not.

    Args:
        model: The dense model; it stays as it was.
        units: Its channel units.
        demo_inputs: What to run it on (:func:`mmprune_ext.units.trace_units`).

    Returns:
        By name of a prunable unit, the path of such a parameter.
    """
    own = {member.module for unit in units.values() for member in unit.producers if member.dim is not None}
    read = {name: [member for member in unit.followers if member.dim is not None and member.module in own]
            for name, unit in units.prunable.items()}
    found: dict[str, str] = {}
    if not any(read.values()):
        return found
    with preserved_random_state(), torch.no_grad():
        work = copy.deepcopy(model).cpu().float()
        set_training(work, False)
        forward = eval_pass(work, demo_inputs)
        for handle in excite(work):
            handle.remove()

        def outputs_without(unit: ChannelUnit) -> list[Tensor]:
            torch.manual_seed(0)
            return tensors_in(forward(silence(copy.deepcopy(work), units.with_units([unit]))))

        for name, members in read.items():
            for member in members:
                unit = units.copy()[name]
                random_choice([unit], np.random.default_rng(0))
                gone = outputs_without(unit)
                unit.followers = [other for other in unit.followers if other != member]
                if not all(map(_alike, gone, outputs_without(unit))):
                    found.setdefault(name, member.module)
    return found


def _alike(first: Tensor, second: Tensor) -> bool:
    scale = float(first.abs().max()) if first.numel() else 0.0
    return torch.allclose(first, second, rtol=1e-4, atol=1e-4 * scale)
