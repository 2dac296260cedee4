"""The mutator of stripe-wise pruning: which convolutions get a skeleton, and what its zeros mean for the model."""
from __future__ import annotations

import copy
import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from mmprune_ext.draws import preserved_random_state
from mmprune_ext.errors import PruningError, TargetError
from mmprune_ext.mutators.base import ChannelMutator
from mmprune_ext.ops import SkeletonConv2d, StripeConv2d, ZeroPadShortcut
from mmprune_ext.ops.gated_layer import is_norm
from mmprune_ext.ops.in_place import has_hooks, is_plain_conv, turn_into
from mmprune_ext.registry import MODELS
from mmprune_ext.units import ChannelUnit, UnitSet
from mmprune_ext.units.dead_channels import DeadChannels, Marks
from mmprune_ext.units.demo_inputs import eval_pass, set_training
from mmprune_ext.units.stripes import LayerStripes
from mmprune_ext.units.tracing.gate_sites import GateSite, LayerFlow, find_gate_sites, layer_flow
from mmprune_ext.units.tracing.trace import in_scope, scope_prefixes


@dataclass(frozen=True)
class _Zeros:
    """Places of a parameter that are zero where something is dead."""

    path: str
    name: str
    dim: int
    places: Tensor

    def write(self, model: nn.Module) -> None:
        values = getattr(model.get_submodule(self.path), self.name, None)
        if values is not None:
            values.data.index_fill_(self.dim, self.places.to(values.device), 0)


@MODELS.register_module()
class StripeMutator(ChannelMutator):
    """Put a Filter Skeleton on the convolutions of a model, and tell what leaves with its dead stripes.

    The arguments are those of :class:`ChannelMutator`. ``exclude`` names convolutions that keep all their stripes; as
    a unit bears the name of its first one, it keeps its channels then. ``divisor`` and ``min_channels`` keep dead
    channels, where too few are left.

    Attributes:
        layers: Paths of the convolutions that have a skeleton, in order of the model.
        left_alone: Why each of the other convolutions in the scope has none, by path.
    """

    learns_widths = True
    silences = True
    layers: list[str]
    left_alone: dict[str, str]
    _sites: dict[str, list[tuple[GateSite, Tensor]]]
    _flow: LayerFlow
    _dead: DeadChannels
    _known: tuple[bytes, list[_Zeros]] | None

    # ------------------------------------------------------------ layers

    def prepare(self, model: nn.Module, units: UnitSet | None = None) -> UnitSet:
        """Find the units of a dense model, or take known ones, and the convolutions that get a skeleton.

        Units that cannot be pruned may lose stripes, but no channels.

        Raises:
            PruningError: If no convolution in the scope has a kernel above 1x1, a pattern of ``exclude`` matches
                nothing, or known units do not fit the model.
        """
        if units is None:
            self._units = self.trace(model)
        else:
            super().prepare(model, units)
        self._choose_layers(model)
        return self.units

    def _exclude(self, model: nn.Module, units: UnitSet) -> None:
        convs = [path for path, layer in model.named_modules() if isinstance(layer, _ConvNd)]
        units.exclude([pattern for pattern in self.exclude
                       if units.match(pattern) or not fnmatch.filter(convs, pattern)])

    def _choose_layers(self, model: nn.Module) -> None:
        prefixes = scope_prefixes(model, self.scope)
        made = {member.module for unit in self.units.values() for member in unit.producers}
        self.layers, self.left_alone = [], {}
        for path, layer in model.named_modules():
            is_conv = isinstance(layer, (_ConvNd, StripeConv2d)) or 'DeformConv' in type(layer).__name__
            if not (is_conv and in_scope(path, prefixes)):
                continue
            why = _unfit(layer)
            if any(fnmatch.fnmatch(path, pattern) for pattern in self.exclude):
                why = 'it is excluded by the configuration'
            elif not why and path not in made:
                why = 'it does not run on the demo inputs'
            if why:
                self.left_alone[path] = why
            else:
                self.layers.append(path)
        if not any(max(model.get_submodule(path).kernel_size) > 1 for path in self.layers):
            reasons = sorted({f'{path}: {why}' for path, why in self.left_alone.items()})
            raise PruningError('stripe-wise pruning: no convolution with a kernel above 1x1 can lose stripes in '
                               f'scope {self.scope!r}' + (f' ({"; ".join(reasons[:3])})' if reasons else ''))

    @property
    def has_skeletons(self) -> bool:
        """Whether the model has its skeletons."""
        return hasattr(self, '_known')

    def skeletonize(self, model: nn.Module) -> None:
        """Put skeletons on the convolutions of a dense model, in place."""
        self._find_sites(model)
        for path in self.layers:
            layer = model.get_submodule(path)
            turn_into(layer, SkeletonConv2d.from_conv(layer))
        self._known = None

    def skeletons(self, model: nn.Module) -> list[tuple[str, SkeletonConv2d]]:
        """Return the layers of a model that have a skeleton, with their paths."""
        return [(path, model.get_submodule(path)) for path in self.layers]

    # ------------------------------------------------------------ what dies with stripes

    def _find_sites(self, model: nn.Module) -> None:
        """Find the layers that have to be told that a channel is dead, so that no other hears of it."""
        with preserved_random_state():
            work = copy.deepcopy(model).cpu().float()
            set_training(work, False)
            self._flow = layer_flow(work, eval_pass(work, self.demo_inputs))
        sites = find_gate_sites(model, self.units, self.demo_inputs) if self.units.prunable else []
        modules = dict(model.named_modules())
        silenced: dict[str, list[tuple[GateSite, Tensor]]] = {name: [] for name in self.units.prunable}
        free = {name for name, unit in self.units.prunable.items() if not _is_normed(unit, modules)}
        for site in sites:
            first = 0
            for name in site.units:
                end = first + self.units[name].num_channels
                source = torch.where((site.source >= first) & (site.source < end), site.source - first, -1)
                first = end
                if isinstance(modules[site.path], ZeroPadShortcut):
                    continue  # passes dead channels on as they are
                silenced[name].append((site, source))
                if not _can_be_silenced(modules[site.path], site.side):
                    free.discard(name)
        self._sites = {name: silenced[name] for name in self.units.prunable if name in free}
        self._dead = DeadChannels(self.units, model, self.layers, self._sites)

    def settle(self, model: nn.Module) -> None:
        """Silence, in place, what the dead stripes of a model leave without use.

        Scale and shift of the normalisation after a dead channel are set to 0, as published; so are the stripes of
        convolutions that read dead channels alone, and of those that nothing but dead ones reads, and the shift of
        the normalisation at the end of a residual branch that is dead.
        """
        filters = {path: ~layer.alive().flatten(1).any(1) for path, layer in self.skeletons(model)}
        if not filters:
            return
        pattern = torch.cat(list(filters.values())).cpu().numpy().tobytes()
        if self._known is None or self._known[0] != pattern:
            self._known = pattern, self._zeros({path: marks.cpu().numpy() for path, marks in filters.items()})
        for zeros in self._known[1]:
            zeros.write(model)

    def follow(self, copied: nn.Module, model: nn.Module) -> None:
        """Let the stripes that are dead in a model be dead in a copy whose weights are averages."""
        for path, layer in self.skeletons(model):
            copied.get_submodule(path).skeleton.data.mul_(layer.alive())
        self.settle(copied)

    def _zeros(self, filters: Marks) -> list[_Zeros]:
        channels, dead = self._dead.spread(filters)
        found = []
        for path, marks in dead.items():
            if marks.any() and (marks != filters[path]).any():
                found.append(_Zeros(path, 'skeleton', 0, torch.from_numpy(np.flatnonzero(marks))))
        for name, marks in channels.items():
            gone = torch.from_numpy(np.append(marks, False))  # the last stands for places of other units
            for site, source in self._sites[name]:
                places = gone[source].nonzero().flatten()
                if len(places) and site.side == 'in':
                    found.append(_Zeros(site.path, 'weight', 1, places))
                elif len(places):
                    found += [_Zeros(site.path, key, 0, places) for key in ('weight', 'bias')]
        for path, marks in dead.items():
            if marks.all() and path in self._flow.added:
                found += self._end_of_branch(path, torch.arange(len(marks)))
        return found

    def _end_of_branch(self, path: str, places: Tensor) -> list[_Zeros]:
        """Return the shifts that a dead convolution would leave of the branch that it ends."""
        found = [_Zeros(path, 'bias', 0, places)]
        for unit in self.units.values():
            if not any(member.module == path for member in unit.producers):
                continue
            for member in unit.followers:
                if member.dim is None and self._flow.before.get(member.module) == {path}:
                    found += [_Zeros(member.module, key, 0, places) for key in ('weight', 'bias')]
        return found

    # ------------------------------------------------------------ what is exported

    def choose(self, model: nn.Module, ratios: Any = None, budget: Any = None,
               scores: Mapping[str, Tensor] | None = None) -> UnitSet:
        """Choose what is left of a model with skeletons: channels, and stripes of the filters that stay.

        A channel leaves when all its filters are dead and no layer hears of it any more (:meth:`settle`), so that
        what is left computes the same.

        Args:
            model: The model with skeletons.
            ratios: Not taken: how much stays is learned.
            budget: Not taken.
            scores: Not taken.

        Raises:
            TargetError: If a target is given.
        """
        if ratios is not None or budget is not None:
            raise TargetError('StripeWise: what stays is learned; sr and threshold say how much, give no other target')
        alive = {path: layer.alive().cpu().numpy() for path, layer in self.skeletons(model)}
        filters = {path: ~marks.any((1, 2)) for path, marks in alive.items()}
        silent = {name: self._silent(model, name, filters) for name in self._sites}
        channels, dead = self._dead.spread(filters, silent)
        for name, marks in channels.items():
            unit = self.units[name]
            unit.choose(_kept(unit, marks))
        self.units.stripes = {path: LayerStripes(marks & ~dead[path][:, None, None]) for path, marks in alive.items()
                              if not marks.all() or dead[path].any()}
        return self.units

    def _silent(self, model: nn.Module, name: str, filters: Marks) -> np.ndarray:
        """Return the channels of a unit that no layer would hear of if their filters were dead."""
        silent = torch.ones(self.units[name].num_channels, dtype=torch.bool)
        for site, source in self._sites[name]:
            layer = model.get_submodule(site.path)
            known = source >= 0
            places, channels = known.nonzero().flatten(), source[known]
            if site.side == 'in':
                quiet = ~layer.weight.detach().transpose(0, 1).flatten(1).any(1)
            else:
                quiet = self._quiet(model, layer, site.path, filters)
            loud = ~quiet.cpu()[places]
            silent[channels[loud]] = False
        return silent.numpy()

    def _quiet(self, model: nn.Module, layer: nn.Module, path: str, filters: Marks) -> Tensor:
        """Return the outputs of a layer that are zero if the filters before it are dead, bool ``(channels,)``."""
        no_shift = layer.weight.new_ones(len(layer.weight), dtype=torch.bool) if layer.bias is None else layer.bias == 0
        if path in filters:
            return no_shift
        quiet = no_shift & ~layer.weight.detach().reshape(len(layer.weight), -1).any(1)
        before = self._flow.before.get(path, {''})
        if isinstance(layer, _BatchNorm) and before <= set(filters) and not any(
                model.get_submodule(conv).bias is not None for conv in before):
            # Zeros stay zeros without a shift, if the batch statistics are those of zeros.
            quiet |= no_shift & (layer.running_mean == 0 if layer.track_running_stats else no_shift)
        return quiet


def _kept(unit: ChannelUnit, dead: np.ndarray) -> list[int] | None:
    """Return the channels that stay, with as many dead ones as the unit's rounding asks for; ``None`` for all."""
    alive = np.flatnonzero(~dead)
    divisor, least = unit.init_args.divisor, max(unit.init_args.min_channels, 1)
    count = min(max(-(-max(len(alive), least) // divisor) * divisor, least), unit.num_channels)
    if count == unit.num_channels:
        return None
    return sorted([*alive.tolist(), *np.flatnonzero(dead)[:count - len(alive)].tolist()])


def _is_normed(unit: ChannelUnit, modules: Mapping[str, nn.Module]) -> bool:
    """Whether statistics over the unit's channels would change without the dead ones."""
    return any(is_norm(modules.get(member.module)) for member in [*unit.producers, *unit.followers])


def _can_be_silenced(layer: nn.Module, side: str) -> bool:
    """Whether zeros in the parameters of a layer silence single channels."""
    if side == 'in':
        return isinstance(layer, nn.Linear) or isinstance(layer, nn.Conv2d) and layer.groups == 1
    return isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, _BatchNorm)) and layer.weight is not None


def _unfit(layer: nn.Module) -> str:
    """Return what keeps a convolution from having a skeleton, empty if nothing does."""
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        return 'a depthwise convolution' if layer.groups == layer.in_channels else 'a grouped convolution'
    if isinstance(layer, StripeConv2d):
        return 'it has lost stripes in an earlier round'
    if not is_plain_conv(layer):
        return f'a {type(layer).__name__}, which computes something else than a plain 2-D convolution'
    if has_hooks(layer):
        return 'it has forward hooks, which would be lost'
    return ''
