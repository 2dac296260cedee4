"""From traced labels to channel units.

Labels tied together are an *atom*: what can be removed as one channel. Atoms that occupy the same
dimensions of the same layers, equally often, form a channel unit.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from mmprune_ext.units.reasons import Reason
from mmprune_ext.units.tracing.tracer import Tracer
from mmprune_ext.units.unit import ChannelUnit, Member

Entry = tuple[str, str, 'int | None']
Atom = dict[int, list[int]]


def group(tracer: Tracer) -> list[ChannelUnit]:
    """Return the units of a traced model in execution order of their first producers."""
    entries = list(tracer.records)
    frozen = tracer.space.frozen()
    groups: dict[tuple, list[Atom]] = defaultdict(list)
    for root, atom in _atoms(tracer).items():
        if any(entries[e][1] == 'producer' for e in atom):
            signature = tuple((e, len(places)) for e, places in atom.items())
            groups[signature, frozen.get(root)].append(atom)
    found = [_unit(tracer, entries, atoms, why) for (_, why), atoms in groups.items()]
    order = {entry[0]: i for i, entry in enumerate(entries) if entry[1] == 'producer'}
    found.sort(key=lambda unit: (order[unit.producers[0].module], unit.producers[0].start))
    _make_names_unique(found)
    return found


def _atoms(tracer: Tracer) -> dict[int, Atom]:
    """Return the positions of each atom, by representative label and record number."""
    records = list(tracer.records.values())
    roots = tracer.space.roots(np.concatenate([*records, np.zeros(1, dtype=np.int64)]))[:-1]
    entry = np.repeat(np.arange(len(records)), [len(r) for r in records])
    place = np.concatenate([np.arange(len(r)) for r in [*records, []]]).astype(np.int64)
    order = np.lexsort((place, entry, roots))
    atoms: dict[int, Atom] = {}
    columns = (column[order].tolist() for column in (roots, entry, place))
    for root, e, p in zip(*columns):
        if root:
            atoms.setdefault(root, {}).setdefault(e, []).append(p)
    return atoms


def _unit(tracer: Tracer, entries: list[Entry], atoms: list[Atom], why: object) -> ChannelUnit:
    first = next(e for e in atoms[0] if entries[e][1] == 'producer')
    atoms.sort(key=lambda atom: atom[first])
    members: dict[str, list[Member]] = {'producer': [], 'follower': [], 'consumer': []}
    for e in atoms[0]:
        path, role, dim = entries[e]
        member = Member.from_positions(path, np.array([atom[e] for atom in atoms]), dim)
        members['follower' if role == 'parameter' else role].append(member)
    # A unit is named after a layer with weights, not after a shortcut without.
    members['producer'].sort(key=lambda member: member.dim is None and not tracer.has_weights(member.module))
    unit = ChannelUnit(members['producer'][0].module, len(atoms), members['producer'],
                       members['follower'], members['consumer'])
    if why is not None:
        unit.forbid(*why)
    elif len(atoms) == 1:
        unit.forbid(Reason.SINGLE)
    elif members['producer'][0].dim is None and not tracer.has_weights(members['producer'][0].module):
        unit.forbid(Reason.NO_LAYER)
    return unit


def _make_names_unique(units: list[ChannelUnit]) -> None:
    """Name a unit after a later producer, or number it, where its first producer has two units."""
    taken: set[str] = set()
    for unit in units:
        paths = [member.module for member in unit.producers]
        free = [path for path in paths if path not in taken]
        number = 2
        while not free:
            free = [name for name in [f'{paths[0]}#{number}'] if name not in taken]
            number += 1
        unit.name = free[0]
        taken.add(unit.name)
