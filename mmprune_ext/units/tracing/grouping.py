"""From traced labels to channel units.

Labels tied together are an *atom*: what can be removed as one channel. Atoms that occupy the same
dimensions of the same layers, equally often, form a channel unit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from mmprune_ext.units.reasons import Reason
from mmprune_ext.units.tracing.tracer import Tracer
from mmprune_ext.units.unit import ChannelUnit, Member

Entry = tuple[str, str, 'int | None']


def group(tracer: Tracer) -> list[ChannelUnit]:
    """Return the units of a traced model in execution order of their first producers."""
    entries = list(tracer.records)
    frozen = tracer.space.frozen()
    found = []
    for columns, roots, places in _alike(tracer):
        if any(entries[e][1] == 'producer' for e in columns):
            rows: dict[object, list[int]] = defaultdict(list)
            for row, root in enumerate(roots.tolist()):
                rows[frozen.get(root)].append(row)
            found += [_unit(tracer, entries, columns, places[own], why) for why, own in rows.items()]
    order = {entry[0]: i for i, entry in enumerate(entries) if entry[1] == 'producer'}
    found.sort(key=lambda unit: (order[unit.producers[0].module], unit.producers[0].start))
    _make_names_unique(found)
    return found


def _alike(tracer: Tracer) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield the atoms that occupy the same records equally often.

    Yields:
        Numbers of the records ``(L,)``, one that is occupied several times as often here, in rising order;
        representative labels of the atoms ``(N,)``; their positions ``(N, L)``, rising in each record.
    """
    records = list(tracer.records.values())
    roots = tracer.space.roots(np.concatenate([*records, np.zeros(1, dtype=np.int64)]))[:-1]
    entry = np.repeat(np.arange(len(records)), [len(r) for r in records])
    place = np.concatenate([np.arange(len(r)) for r in [*records, []]]).astype(np.int64)
    order = np.lexsort((place, entry, roots))
    order = order[np.searchsorted(roots[order], 1):]
    labels, starts, lengths = np.unique(roots[order], return_index=True, return_counts=True)
    for length in np.unique(lengths):
        chosen = lengths == length
        where = order[starts[chosen, None] + np.arange(length)]
        kinds, kind = np.unique(entry[where], axis=0, return_inverse=True)
        for number, columns in enumerate(kinds):
            own = kind.ravel() == number
            yield columns, labels[chosen][own], place[where[own]]


def _unit(tracer: Tracer, entries: list[Entry], columns: np.ndarray, places: np.ndarray, why: object) -> ChannelUnit:
    """Return a unit.

    Args:
        tracer: What has followed the model.
        entries: The keys of its records.
        columns: Numbers of the records that an atom occupies, one for each of its positions.
        places: The positions of each atom.
        why: Reason and detail if it cannot be pruned.
    """
    first = next(i for i, e in enumerate(columns) if entries[e][1] == 'producer')
    places = places[np.argsort(places[:, first])]
    members: dict[str, list[Member]] = {'producer': [], 'follower': [], 'consumer': []}
    for e in np.unique(columns):
        path, role, dim = entries[e]
        member = Member.from_positions(path, places[:, columns == e], dim)
        members['follower' if role == 'parameter' else role].append(member)

    def weightless(member: Member) -> bool:
        return member.dim is None and not tracer.has_weights(member.module)
    # A unit is named after a layer with weights, not after a shortcut without.
    members['producer'].sort(key=weightless)
    unit = ChannelUnit(members['producer'][0].module, len(places), members['producer'],
                       members['follower'], members['consumer'])
    if why is not None:
        unit.forbid(*why)
    elif len(places) == 1:
        unit.forbid(Reason.SINGLE)
    elif weightless(members['producer'][0]):
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
