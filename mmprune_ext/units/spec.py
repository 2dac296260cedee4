"""Channel-unit files: reading, writing, checking, and the form that mmrazor writes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from mmprune_ext.atomic import atomic_write
from mmprune_ext.errors import PruningError, UnitFileError
from mmprune_ext.paths import missing
from mmprune_ext.units.layers import ConvRule, rule_for
from mmprune_ext.units.parameters.fingerprint import fingerprint
from mmprune_ext.units.reasons import Reason
from mmprune_ext.units.unit import ChannelUnit, InitArgs, Member

Units = Mapping[str, ChannelUnit]

SCHEMA = 1
_ROLES = ('producers', 'followers', 'consumers')
_UNIT_KEYS = ('num_channels', 'prunable', 'keep', 'reason', 'detail', 'indices', 'init_args',
              'channels')
_MEMBER_KEYS = ('module', 'start', 'end', 'block', 'index', 'dim')
_MEMBER_KEY_SET = frozenset(_MEMBER_KEYS)
_MMRAZOR_NAME = re.compile(r'^(?P<module>.+)_\((?P<start>\d+), (?P<end>\d+)\)_(?P<count>\d+)$')


# ---------------------------------------------------------------- writing


def to_dict(units: Units, architecture: str, channels: bool, init_args: bool) -> dict[str, Any]:
    """Return the content of a channel-unit file."""
    return {'schema': SCHEMA, 'architecture': architecture,
            'units': {unit.name: _unit_to_dict(unit, channels, init_args)
                      for unit in units.values()}}


def _unit_to_dict(unit: ChannelUnit, channels: bool, init_args: bool) -> dict[str, Any]:
    record: dict[str, Any] = {'num_channels': unit.num_channels, 'prunable': unit.prunable,
                              'keep': unit.keep}
    if unit.reason is not None:
        record['reason'] = unit.reason.name
        if unit.detail:
            record['detail'] = unit.detail
    if unit.indices is not None and not unit.by_number:
        record['indices'] = list(unit.indices)
    if init_args:
        record['init_args'] = {'divisor': unit.init_args.divisor,
                               'min_channels': unit.init_args.min_channels,
                               **({'round_up': True} if unit.init_args.round_up else {})}
    if channels:
        record['channels'] = {role: [member.to_dict() for member in getattr(unit, role)]
                              for role in _ROLES}
    return record


def choice_template(units: Units) -> dict[str, float]:
    """Return ``{unit: pruning ratio}`` of the prunable units, a target_pruning_ratio to edit."""
    return {name: round(1 - unit.keep / unit.num_channels, 6)
            for name, unit in units.items() if unit.prunable}


def dumps(content: dict[str, Any]) -> str:
    """Return JSON text with one line per unit member and per index list."""
    text = json.dumps(content, indent=2)
    # Index lists and members read better on one line each.
    return re.sub(r'(\[[\s\d,]*\]|\{[^{}\[\]]*"module"[^{}\[\]]*\})',
                  lambda m: re.sub(r'\s+', ' ', m[0]).replace('[ ', '[').replace(' ]', ']'),
                  text) + '\n'


def write(content: dict[str, Any], path: str | Path) -> None:
    """Write a channel-unit file; it appears whole or not at all."""
    atomic_write(dumps(content), path)


# ---------------------------------------------------------------- reading


def load_json(path: str | Path, writer: str = 'tools/get_channel_units.py') -> Any:
    """Read a JSON file; ``writer`` is the tool that an error names for writing it anew.

    Raises:
        UnitFileError: If it is missing, unreadable or not JSON.
    """
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise UnitFileError(f'{path}: {missing(path)}') from None
    except (OSError, UnicodeDecodeError) as error:
        raise UnitFileError(f'{path}: cannot be read: {error}') from error
    except json.JSONDecodeError as error:
        raise UnitFileError(f'{path}: not valid JSON (line {error.lineno}: {error.msg}); '
                            f'write it anew with {writer}') from error


def from_dict(content: Any, source: str) -> tuple[list[ChannelUnit], str]:
    """Return the units in the content of a file, and its architecture's fingerprint.

    ``source`` names the file in errors. A file of mmrazor's form has no fingerprint.

    Raises:
        UnitFileError: If the content is malformed.
    """
    if not isinstance(content, dict) or not content:
        raise UnitFileError(f'{source}: not a channel-unit file: expected a JSON object')
    records = mmrazor_records(content, source)
    if records is not None:
        units = [_from_mmrazor(name, record, source) for name, record in records.items()]
        for i, unit in enumerate(units):
            before = sum(other.name.split('#')[0] == unit.name for other in units[:i])
            unit.name += f'#{before + 1}' if before else ''
        return units, ''
    if content.get('schema') != SCHEMA or not isinstance(content.get('units'), dict):
        ratios = all(isinstance(value, (int, float)) for value in content.values())
        fix = ('pruning ratios are a target: tools/prune.py --ratio, or target_pruning_ratio in a config' if ratios
               else 'write one with tools/get_channel_units.py -c -i')
        raise UnitFileError(f'{source}: not a channel-unit file of schema {SCHEMA} (got schema '
                            f'{content.get("schema")!r}); {fix}')
    units = [_unit_from_dict(name, record, source) for name, record in content['units'].items()]
    return units, str(content.get('architecture', ''))


def _unit_from_dict(name: str, record: Any, source: str) -> ChannelUnit:
    where = f'{source}: unit "{name}"'
    try:
        _known_keys(record, _UNIT_KEYS, where)
        unit = ChannelUnit(name, _count(record['num_channels'], where),
                           prunable=bool(record.get('prunable', True)),
                           detail=str(record.get('detail', '')),
                           init_args=InitArgs(**record.get('init_args', {})))
        if 'reason' in record:
            unit.reason = Reason[record['reason']]
        channels = record.get('channels', {})
        _known_keys(channels, _ROLES, where)
        for role in _ROLES:
            for item in channels.get(role, []):
                getattr(unit, role).append(_member(item, unit.num_channels, where))
        _set_choice(unit, record)
    except PruningError as error:
        raise _located(error, source, where) from None
    except (KeyError, TypeError, AttributeError) as error:
        raise UnitFileError(f'{where} is malformed: {type(error).__name__}: {error}') from error
    return unit


def _count(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UnitFileError(f'{where}: num_channels should be a positive integer, got {value!r}')
    return value


def _integer(value: Any, key: str, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise UnitFileError(f'{where}: {key} should be an integer, got {value!r}')
    return value


def _known_keys(record: dict[str, Any], known: Sequence[str], where: str) -> None:
    for key in record.keys() - set(known):
        raise UnitFileError(f'{where}: unknown key "{key}"; known are {", ".join(known)}')


def _located(error: PruningError, source: str, where: str) -> UnitFileError:
    """Return the error with file and unit in its text, if it does not name them yet."""
    message = str(error)
    if not message.startswith(source):
        message = f'{source if message.startswith("unit ") else where}: {message}'
    return UnitFileError(message)


def _member(item: dict[str, Any], num_channels: int, where: str) -> Member:
    if not item.keys() <= _MEMBER_KEY_SET:
        _known_keys(item, _MEMBER_KEYS, where)
    start, end, block, dim = item['start'], item['end'], item.get('block', 1), item.get('dim')
    index = item.get('index')
    if not (type(start) is type(end) is type(block) is int and (dim is None or type(dim) is int)):
        here = f'{where}: layer "{item["module"]}"'
        for key, value in (('start', start), ('end', end), ('block', block),
                           ('dim', 0 if dim is None else dim)):
            _integer(value, key, here)
    if index is not None:
        for row in index:
            if not all(type(p) is int for p in row):
                raise UnitFileError(f'{where}: layer "{item["module"]}": index should hold '
                                    f'integers, got {row!r}')
        index = tuple(map(tuple, index))
    return _checked_member(Member(item['module'], start, end, block, index, dim), num_channels,
                           where)


def _checked_member(member: Member, num_channels: int, where: str) -> Member:
    if member.index is None:
        fits = member.start >= 0 and member.end - member.start == num_channels * member.block
    else:
        places = [p for row in member.index for p in row]
        fits = (len(member.index) == num_channels
                and all(len(row) == member.block for row in member.index)
                and len(set(places)) == len(places)
                and all(0 <= p < member.end for p in places))
    if not fits or member.block < 1:
        raise UnitFileError(f'{where}: range {member.start}..{member.end} of layer '
                            f'"{member.module}" does not hold {num_channels} channels')
    return member


def _set_choice(unit: ChannelUnit, record: dict[str, Any]) -> None:
    if record.get('indices') is not None:
        unit.choose(record['indices'])
        if record.get('keep', unit.keep) != unit.keep:
            raise PruningError(f'unit "{unit.name}": keep is {record["keep"]}, but indices lists '
                               f'{unit.keep} channels')
        return
    keep = record.get('keep', unit.num_channels)
    if isinstance(keep, bool) or not isinstance(keep, int) or not 1 <= keep <= unit.num_channels:
        raise PruningError(f'unit "{unit.name}": keep should be an integer from 1 to '
                           f'{unit.num_channels}, got {keep!r}')
    # A number alone does not say which channels; a compact build takes its weights from a
    # checkpoint, where only the count matters.
    if keep < unit.num_channels:
        unit.choose(range(keep))
        unit.by_number = True


def mmrazor_records(content: dict[str, Any], source: str) -> dict[str, Any] | None:
    """Return the records of a file of mmrazor's form by unit, ``None`` for a file of another form.

    It publishes them as they are, or under ``channel_unit_cfg`` beside what they have in common; a record may be no
    more than its choice.

    Raises:
        UnitFileError: If there are none under ``channel_unit_cfg``.
    """
    nested = content.get('channel_unit_cfg')
    common = nested.get('default_args') if isinstance(nested, dict) else None
    units = content if nested is None else nested.get('units') if isinstance(nested, dict) else None
    if not (isinstance(units, dict) and units and all(_MMRAZOR_NAME.match(str(name)) for name in units)):
        if nested is None:
            return None
        raise UnitFileError(f'{source}: channel_unit_cfg names no units '
                            '("units": {"backbone.conv1_(0, 64)_64": {"choice": 32}, ...})')
    records = {name: record if isinstance(record, dict) else {'choice': record} for name, record in units.items()}
    if not isinstance(common, dict) or 'divisor' not in common:
        return records
    return {name: {**record, 'init_args': {'divisor': common['divisor'], **record.get('init_args', {})}}
            for name, record in records.items()}


def _from_mmrazor(name: str, record: Any, source: str) -> ChannelUnit:
    """Read one unit of mmrazor's form: a choice is the number, or the share, that stays."""
    match = _MMRAZOR_NAME.match(name)
    count = int(match['count'])
    where = f'{source}: unit "{name}"'
    try:
        args = record.get('init_args', {})
        if args.get('num_channels', count) != count:
            raise UnitFileError(f'{where}: num_channels is {args["num_channels"]}, its name says '
                                f'{count}')
        divisor = _integer(args.get('divisor', 1), 'divisor', f'{where} is malformed')
        unit = ChannelUnit(match['module'], count, init_args=InitArgs(divisor, 1))
        channels = record.get('channels', {})
        for item in channels.get('output_related', []):
            unit.producers.append(_mmrazor_member(item, count, where))
        for item in channels.get('input_related', []):
            unit.consumers.append(_mmrazor_member(item, count, where))
    except PruningError as error:
        raise _located(error, source, where) from None
    except (KeyError, TypeError, AttributeError) as error:
        raise UnitFileError(f'{where} is malformed: {type(error).__name__}: {error}') from error
    choice = record.get('choice', 1.0)
    if isinstance(choice, bool) or not isinstance(choice, (int, float)) or not math.isfinite(choice):
        raise UnitFileError(f'{where}: choice should be a number, got {choice!r}')
    keep = choice if isinstance(choice, int) else int(count * choice)
    try:
        _set_choice(unit, {'keep': keep})
    except PruningError as error:
        raise UnitFileError(f'{where}: choice {choice!r} is out of range: {error}') from None
    return unit


def _mmrazor_member(item: dict[str, Any], count: int, where: str) -> Member:
    """Read a member of mmrazor's form, whose ``expand_ratio`` is our ``block``."""
    start, end = (_integer(item[key], key, where) for key in ('start', 'end'))
    block = _integer(item.get('expand_ratio', 1), 'expand_ratio', where)
    return _checked_member(Member(item['name'], start, end, block), count, where)


def _settle_followers(units: Units, modules: dict[str, nn.Module]) -> None:
    """Make followers of layers that mmrazor lists as input- or output-related or both."""
    for unit in units.values():
        for member in [*unit.producers, *unit.consumers]:
            module = modules.get(member.module)
            rule = None if module is None else rule_for(module)
            if rule is not None and (set(rule.widths(module)) == {'follower'} or (
                    isinstance(rule, ConvRule) and rule.depthwise(module))):
                unit.producers = [m for m in unit.producers if m.module != member.module]
                unit.consumers = [m for m in unit.consumers if m.module != member.module]
                if member not in unit.followers:
                    unit.followers.append(member)


# ---------------------------------------------------------------- checking


def check(units: Units, architecture: str, model: nn.Module, source: str,
          beside: Mapping[str, int | None] | None = None) -> None:
    """Check the units against a dense model; see :meth:`UnitSet.check`."""
    if not any(unit.members for unit in units.values()):
        raise UnitFileError(f'{source}: the units have no "channels" section; write it with '
                            'tools/get_channel_units.py -c')
    modules = dict(model.named_modules())
    if not architecture:
        _settle_followers(units, modules)
    described: dict[tuple[str, str], int] = {}
    sizes: dict[tuple[str, str, int | None], int] = {}
    for unit in units.values():
        for role in _ROLES:
            for member in getattr(unit, role):
                place = (member.module, role, member.dim)
                size = sizes.get(place)
                if size is None:
                    size = sizes[place] = _width(modules, member, role[:-1],
                                                 f'{source}: unit "{unit.name}"')
                if member.end > size:
                    raise UnitFileError(
                        f'{source}: unit "{unit.name}" covers channels {member.start}..{member.end} '
                        f'of layer "{member.module}", which has {size}; was it written for '
                        'another model, or is this model already compact?')
                if role == 'producers':
                    key = (member.module, str(size))
                    described[key] = described.get(key, 0) + unit.num_channels * member.block
    for (path, size), count in described.items():
        if count != int(size):
            raise UnitFileError(f'{source}: describes {count} output channels of layer "{path}", '
                                f'which has {size}; was it written for another model?')
    layer = _undescribed_layer(units, modules, beside or {}) if architecture else None
    # The fingerprint takes longer than the rest, and tells most often what is known already.
    if layer is not None and architecture != fingerprint(model, beside):
        raise UnitFileError(f'{source}: does not describe layer "{layer}" of the model; it was written for another '
                            'model. Where only outputs differ: build the model that it was written for, and replace '
                            'its last layers')


def _width(modules: dict[str, nn.Module], member: Member, role: str, where: str) -> int:
    if member.dim is not None:
        try:
            owner, _, name = member.module.rpartition('.')
            return int(getattr(modules[owner], name).shape[member.dim])
        except (KeyError, AttributeError, IndexError):
            raise UnitFileError(f'{where}: the model has no parameter "{member.module}" with '
                                f'dimension {member.dim}') from None
    module = modules.get(member.module)
    rule = None if module is None else rule_for(module)
    if rule is None:
        raise UnitFileError(f'{where}: the model has no layer "{member.module}"; was the file '
                            'written for another model?')
    size = rule.widths(module).get(role)
    if size is None:
        raise UnitFileError(f'{where}: layer "{member.module}" ({type(module).__name__}) cannot '
                            f'be a {role}')
    return size


def _undescribed_layer(units: Units, modules: dict[str, nn.Module], beside: Collection[str]) -> str | None:
    """Return the first layer with parameters, in a part that is pruned, that the units do not name.

    A unit file may serve a network with another head (another data set); a layer unknown to the
    file inside a pruned part would keep its dense width among slimmed neighbours. Only in the very
    model that was traced it is a layer that never runs.
    """
    known = {member.module for unit in units.values() for member in unit.members}.union(beside)
    parts = {member.module.split('.')[0] for unit in units.values() if unit.prunable
             for member in unit.producers}
    for path, module in modules.items():
        rule = rule_for(module)
        if (rule is not None and path not in known and not _inside_layer(path, modules) and path.split('.')[0] in parts
                and rule.widths(module) and any(True for _ in module.parameters(recurse=False))):
            return path
    return None


def _inside_layer(path: str, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a layer is a part of another one, such as the projection of an attention layer."""
    while '.' in path:
        path = path.rpartition('.')[0]
        if path in modules and rule_for(modules[path]) is not None:
            return True
    return False
