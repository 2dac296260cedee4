"""All channel units of a model, with their file."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from mmprune_ext.errors import PruningError, UnitFileError
from mmprune_ext.nearest import did_you_mean
from mmprune_ext.units import spec
from mmprune_ext.units.reasons import Reason
from mmprune_ext.units.stripes import LayerStripes, Shortcut, check_records, read_records
from mmprune_ext.units.unit import ChannelUnit, InitArgs

if TYPE_CHECKING:
    from mmprune_ext.units.kinds.coverage import Coverage


class UnitSet(Mapping[str, ChannelUnit]):
    """The channel units of one model: an ordered mapping from unit name to :class:`ChannelUnit`.

    Args:
        units: Units in execution order.
        architecture: Fingerprint of the dense model (:func:`mmprune_ext.units.fingerprint`).
        costs: Multiply-accumulates of each convolution and linear layer of the dense model for one
            sample of ``input_shape``, as counted while tracing; empty for units from a file.
        stripes: What stays of the filters of convolutions that have lost stripes, by path.
        shortcuts: Blocks that are only their shortcuts any more, by path.
        functional: Paths of layers whose weight the code uses itself, beside or without calling them, as seen while
            tracing; empty for units from a file.

    Attributes:
        coverage: Which parameters of the model they cover, as seen while tracing; ``None`` for units from a file.
    """

    def __init__(self, units: Sequence[ChannelUnit], architecture: str = '',
                 costs: Mapping[str, int] | None = None,
                 stripes: Mapping[str, LayerStripes] | None = None,
                 shortcuts: Mapping[str, Shortcut] | None = None, functional: Collection[str] = ()) -> None:
        self._units = {unit.name: unit for unit in units}
        if len(self._units) != len(units):
            raise ValueError('two channel units have the same name')
        self.architecture = architecture
        self.costs = dict(costs or {})
        self.stripes = dict(stripes or {})
        self.shortcuts = dict(shortcuts or {})
        self.functional = frozenset(functional)
        self.coverage: Coverage | None = None

    def __getitem__(self, name: str) -> ChannelUnit:
        return self._units[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._units)

    def __len__(self) -> int:
        return len(self._units)

    def __repr__(self) -> str:
        return f'UnitSet({len(self)} units, {len(self.prunable)} prunable)'

    @property
    def prunable(self) -> dict[str, ChannelUnit]:
        """The units whose channels may be removed, by name."""
        return {name: unit for name, unit in self._units.items() if unit.prunable}

    @property
    def has_choices(self) -> bool:
        """Whether it was chosen which channels stay, or how many, or which stripes and blocks."""
        return (any(unit.indices is not None for unit in self._units.values())
                or bool(self.stripes) or bool(self.shortcuts))

    def require_prunable(self) -> dict[str, ChannelUnit]:
        """Return :attr:`prunable`, or raise a PruningError that lists the reasons if it is empty."""
        if self.prunable:
            return self.prunable
        reasons = sorted({unit.why() for unit in self._units.values()})
        raise PruningError('no channel unit of the model can be pruned:\n  ' + '\n  '.join(
            reasons or ['the model has no convolution or linear layer']))

    def match(self, patterns: str | Sequence[str]) -> list[str]:
        """Return the names that match a shell-style pattern, or any of several."""
        wanted = [patterns] if isinstance(patterns, str) else list(patterns)
        return [name for name in self if any(fnmatch.fnmatch(name, p) for p in wanted)]

    def exclude(self, patterns: str | Sequence[str]) -> None:
        """Mark the units whose names match as not prunable.

        Raises:
            PruningError: If a pattern matches no unit.
        """
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            names = self.match(pattern)
            if not names:
                raise PruningError(f'exclude: no channel unit matches "{pattern}"{did_you_mean(pattern, self)} '
                                   '(tools/get_channel_units.py lists the names)')
            for name in names:
                self[name].forbid(Reason.EXCLUDED, pattern)

    def set_init_args(self, divisor: int = 1, min_channels: int = 1, round_up: bool = False) -> None:
        """Set the rounding of every unit."""
        args = InitArgs(divisor, min_channels, round_up)
        for unit in self._units.values():
            unit.init_args = args

    def copy(self) -> UnitSet:
        """Return an independent copy: choices made on it leave this set as it is."""
        units = [replace(unit, indices=None if unit.indices is None else list(unit.indices))
                 for unit in self._units.values()]
        return self.with_units(units)

    def with_units(self, units: Sequence[ChannelUnit]) -> UnitSet:
        """Return a set of other units, with all else of this one."""
        return UnitSet(units, self.architecture, self.costs, self.stripes, self.shortcuts, self.functional)

    def to_json(self, channels: bool = True, init_args: bool = True) -> dict[str, Any]:
        """Return the content of a channel-unit file (:mod:`mmprune_ext.units.spec`)."""
        content = spec.to_dict(self, self.architecture, channels, init_args)
        for key, records in (('stripes', self.stripes), ('shortcuts', self.shortcuts)):
            if records:
                content[key] = {path: record.to_dict() for path, record in records.items()}
        return content

    def save(self, path: str | Path, channels: bool = True, init_args: bool = True) -> None:
        """Write a channel-unit file; the file appears whole or not at all."""
        spec.write(self.to_json(channels, init_args), path)

    @classmethod
    def load(cls, path: str | Path) -> UnitSet:
        """Read a channel-unit file.

        Raises:
            UnitFileError: If the file is missing, is not JSON, or its content is malformed.
        """
        return cls.from_dict(spec.load_json(path), str(path))

    @classmethod
    def from_dict(cls, content: Any, source: str) -> UnitSet:
        """Build the units from the content of a file, of this project's or of mmrazor's form.

        Args:
            content: What JSON holds.
            source: Where it comes from, for errors.

        Raises:
            UnitFileError: If the content is malformed.
        """
        units, architecture = spec.from_dict(content, source)
        if not architecture:  # of mmrazor's form, in which every key is a unit
            return cls(units)
        return cls(units, architecture, stripes=read_records(content, 'stripes', LayerStripes, source),
                   shortcuts=read_records(content, 'shortcuts', Shortcut, source))

    def check(self, model: nn.Module, source: str = 'the channel units', beside: Mapping[str, int | None] | None = None,
              ) -> None:
        """Check that every member of every unit exists in a dense ``model`` with these widths.

        Args:
            model: The dense model.
            source: Where the units come from, for messages.
            beside: Paths of layers that they need not describe, each with the outputs it has in the model that they
                were written for.

        Raises:
            UnitFileError: Naming ``source``, the unit and the layer that do not fit.
        """
        spec.check(self, self.architecture, model, source, beside)
        check_records(self.stripes, self.shortcuts, model, source)

    def describes(self, model: nn.Module) -> bool:
        """Whether these are the units of this very model, head and all; its weights do not matter.

        A file without a fingerprint, of mmrazor's form, is taken at its word if it fits.
        """
        try:
            self.check(model)
        except UnitFileError:
            return False
        return self.architecture in ('', spec.fingerprint(model))

    def require_choice(self, source: str) -> list[ChannelUnit]:
        """Return the units that lose channels.

        Args:
            source: Where the units come from, for messages.

        Raises:
            UnitFileError: If there are none, or it is not known which of its channels a unit keeps.
        """
        pruned = [unit for unit in self._units.values() if unit.keep < unit.num_channels]
        if not (pruned or self.stripes or self.shortcuts):
            raise UnitFileError(f'{source}: prunes nothing, each of its {len(self)} units keeps all its channels; '
                                'give the units.json of a pruned model, or a checkpoint of a run that has chosen')
        for unit in pruned:
            if unit.by_number:
                raise UnitFileError(
                    f'{source}: unit "{unit.name}" keeps {unit.keep} of {unit.num_channels} channels, but no '
                    '"indices" say which; a file of numbers is a target: tools/prune.py --ratio, or '
                    'target_pruning_ratio in a config')
        return pruned

    def take_choices(self, other: UnitSet, source: str) -> None:
        """Keep the very channels, stripes and blocks that the units of another model keep.

        They are taken over by a unit's name and its number of channels: one network on two data sets, with
        outputs for another number of classes, or under the head of another task. Units that are whole there,
        or not there at all, are whole here.

        Args:
            other: The units of the other model, with choices.
            source: Where they come from, for messages.

        Raises:
            UnitFileError: If a unit that is pruned there is not here, has another number of channels, or
                cannot be pruned; or as of :meth:`require_choice`. The choices here are then as before.
        """
        chosen = {unit.name: unit.indices for unit in other.require_choice(source)}
        for name in chosen:
            if name not in self:
                raise self.unknown(name, source)
            own, count = self[name], other[name].num_channels
            if own.num_channels != count:
                raise UnitFileError(f'{source}: unit "{name}" has {count} channels, in the model it has '
                                    f'{own.num_channels}; was it written for another network?')
            if not own.prunable:
                hint = '; --scope, or scope of the mutator, widens that' if own.reason is Reason.OUT_OF_SCOPE else ''
                raise UnitFileError(f'{source}: unit "{name}" cannot be pruned in this model: {own.why()}{hint}')
        for name, unit in self.items():
            unit.choose(chosen.get(name))
        self.stripes, self.shortcuts = dict(other.stripes), dict(other.shortcuts)

    def unknown(self, name: str, source: str) -> UnitFileError:
        """Return the error for a unit name that is not here, with the nearest names."""
        return UnitFileError(f'{source}: unknown channel unit "{name}"{did_you_mean(name, self, cutoff=0.5)} '
                             '(tools/get_channel_units.py lists the names)')
