"""The kept numbers of least predicted drop under a limit, among those that were measured.

Each unit takes one of its points: a kept number and the drop that it costs. The drops are added; the costs are not a
sum over units, since a layer costs its inputs times its outputs, which are two units' channels. Both are put exactly
into one mixed-integer linear program, which HiGHS solves through ``scipy.optimize.milp`` to a gap of zero.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from mmengine.logging import print_log

from mmprune_ext.analysis import CostModel
from mmprune_ext.errors import TargetError

# Beyond so many pairs of points the tight form of the products, with a variable each, gets slower than the loose one.
MAX_PAIRS = 12000
SECONDS = 60
# What the costs and the drops are scaled to: HiGHS compares them by absolute tolerances of 1e-6.
_SCALE = 1000.0


class Option(NamedTuple):
    """What a unit may become: how many of its channels stay, and what that is predicted to cost of the metric."""

    keep: int
    drop: float


def least_drop(options: Mapping[str, Sequence[Option]], costs: CostModel, kind: str, limit: float) -> dict[str, int]:
    """Return the kept numbers whose drops have the least sum within a limit.

    Of several choices with that sum one is taken that no unit's wider option of the same drop fits into: the rest
    of the limit goes to the units that are pruned most.

    Args:
        options: What each unit may become; units that are not named stay whole.
        costs: The costs of the dense model.
        kind: Which of them is limited (:meth:`CostModel.terms`).
        limit: What the choice may cost.

    Raises:
        TargetError: If nothing fits into the limit, or scipy is not installed.
    """
    # Less than nothing is noise of the measurement, and would pay for the drop of another unit.
    options = {name: [Option(keep, max(drop, 0.0)) for keep, drop in points if math.isfinite(drop)]
               for name, points in options.items()}
    useful = {name: _useful(points) for name, points in options.items()}

    def fits(keeps: Mapping[str, int]) -> bool:
        return costs.terms(kind).cost(costs.vector(keeps)) <= limit
    program = _Program(useful, costs, kind, limit)
    keeps = program.solve()
    while not fits(keeps):  # within the tolerances of the solver, but too much in integers
        program.forbid(keeps)
        keeps = program.solve()
    return _fill(options, keeps, fits, costs)


def _useful(points: Sequence[Option]) -> list[Option]:
    """Return the options, the narrowest first, than which no narrower one is as good."""
    found: list[Option] = []
    for point in sorted(points):
        if not found or point.drop < found[-1].drop:
            found.append(point)
    return found


def _fill(options: Mapping[str, Sequence[Option]], keeps: Mapping[str, int],
          fits: Callable[[Mapping[str, int]], bool], costs: CostModel) -> dict[str, int]:
    """Widen units to options of no more drop while they fit, always the one of which the smallest share is left."""
    sizes = dict(zip(costs.names, costs.sizes.tolist()))
    keeps, open_units = dict(keeps), set(options)
    while open_units:
        name = min(sorted(open_units), key=lambda n: keeps[n] / sizes[n])
        drop = min(point.drop for point in options[name] if point.keep == keeps[name])
        wider = [point.keep for point in options[name] if point.keep > keeps[name] and point.drop <= drop]
        if wider and fits({**keeps, name: min(wider)}):
            keeps[name] = min(wider)
        else:  # nor will it fit when others are wider
            open_units.discard(name)
    return keeps


class _Program:
    """The mixed-integer linear program.

    A binary variable for each option of each unit, of which one is 1. The cost of a choice is a constant, a sum over
    units, and a sum over pairs of units whose kept numbers some layer multiplies. A pair's product is linear in
    further variables, by one of two forms; both give it exactly where the binary variables are 0 or 1:

    * tight: a variable for each two options, which is 1 where both are taken; its sums over the options of one unit
      are the variables of the other;
    * loose: a variable for each option of one unit, which is the other's kept number where it is taken, else 0.
    """

    def __init__(self, options: Mapping[str, Sequence[Option]], costs: CostModel, kind: str, limit: float) -> None:
        self.names = list(options)
        self.keep = [np.array([point.keep for point in options[name]]) for name in self.names]
        drops = np.concatenate([[point.drop for point in options[name]] for name in self.names])
        starts = np.cumsum([0, *map(len, self.keep)])
        self.columns = [np.arange(first, end) for first, end in zip(starts, starts[1:])]
        self.binaries = self.size = int(starts[-1])
        self.drops = drops * (_SCALE / max(drops.max(), 1e-300))
        self.rows: list[tuple[np.ndarray, np.ndarray, float, float]] = []
        for columns in self.columns:
            self._row(columns, np.ones(len(columns)), 1, 1)
        self._limit(costs, kind, limit)

    def _row(self, columns: Any, values: Any, low: float, high: float) -> None:
        self.rows.append((np.asarray(columns), np.asarray(values, dtype=float), low, high))

    def _new(self, count: int) -> np.ndarray:
        self.size += count
        return np.arange(self.size - count, self.size)

    def _limit(self, costs: CostModel, kind: str, limit: float) -> None:
        """Add the row that limits the cost."""
        constant, own, products = _quadratic(costs, kind, self.names)
        columns, values = [], []
        for u, keep in enumerate(self.keep):
            columns.append(self.columns[u])
            values.append(own[u] * keep + products[u, u] * keep ** 2)
        pairs = [(u, v) for u, v in combinations(range(len(self.names)), 2) if products[u, v] > 0]
        tight = sum(len(self.keep[u]) * len(self.keep[v]) for u, v in pairs) <= MAX_PAIRS
        partners = np.bincount(np.array(pairs, dtype=int).ravel(), minlength=len(self.names))
        for u, v in pairs:
            first, second = (u, v) if partners[u] <= partners[v] else (v, u)
            found, amounts = (self._tight if tight else self._loose)(first, second)
            columns.append(found)
            values.append(products[u, v] * amounts)
        scale = _SCALE / costs.terms(kind).dense
        # Costs are integers: half of one more keeps the tolerance away from what is allowed.
        room = (math.floor(limit) + 0.5 - constant) * scale
        self._row(np.concatenate(columns), np.concatenate(values) * scale, -np.inf, room)

    def _tight(self, u: int, v: int) -> tuple[np.ndarray, np.ndarray]:
        """Return variables, and what each of them is to be multiplied by, whose sum is the product of two units."""
        both = self._new(len(self.keep[u]) * len(self.keep[v])).reshape(len(self.keep[u]), -1)
        for lines, columns in ((both, self.columns[u]), (both.T, self.columns[v])):
            for line, column in zip(lines, columns):
                self._row([*line, column], [*np.ones(len(line)), -1], 0, 0)
        return both.ravel(), np.outer(self.keep[u], self.keep[v]).ravel()

    def _loose(self, u: int, v: int) -> tuple[np.ndarray, np.ndarray]:
        other = self._new(len(self.keep[u]))
        least, most = self.keep[v].min(), self.keep[v].max()
        for variable, column in zip(other, self.columns[u]):
            self._row([variable, column], [1, -most], -np.inf, 0)
            self._row([variable, column], [1, -least], 0, np.inf)
        self._row([*other, *self.columns[v]], [*np.ones(len(other)), *-self.keep[v]], 0, 0)
        return other, self.keep[u]

    def forbid(self, keeps: Mapping[str, int]) -> None:
        """Rule one choice out."""
        taken = [columns[np.flatnonzero(keep == keeps[name])[0]]
                 for name, keep, columns in zip(self.names, self.keep, self.columns)]
        self._row(taken, np.ones(len(taken)), -np.inf, len(taken) - 1)

    def solve(self) -> dict[str, int]:
        """Return the best choice.

        Raises:
            TargetError: If there is none, or scipy is not installed.
        """
        try:
            from scipy import optimize, sparse
        except ImportError as error:
            raise TargetError('ratios from a sensitivity file are found by scipy, which is not installed: pip '
                              'install scipy') from error
        columns, values, low, high = zip(*self.rows)
        places = np.repeat(np.arange(len(self.rows)), [len(row) for row in columns])
        matrix = sparse.csr_array((np.concatenate(values), (places, np.concatenate(columns))),
                                  shape=(len(self.rows), self.size))
        binary = np.arange(self.size) < self.binaries
        found = optimize.milp(
            np.concatenate([self.drops, np.zeros(self.size - self.binaries)]), integrality=binary,
            bounds=optimize.Bounds(0, np.where(binary, 1.0, np.inf)),
            constraints=optimize.LinearConstraint(matrix, np.array(low), np.array(high)),
            options={'mip_rel_gap': 0.0, 'time_limit': SECONDS})
        if found.x is None:
            raise TargetError(f'no choice of measured widths was found within the budget: {found.message}')
        if found.status != 0:
            print_log(f'ratios from sensitivity: in {SECONDS} s the widths found were not proven to be the best; the '
                      f'least predicted drop may be {found.mip_gap:.1%} less', logger='current',
                      level=logging.WARNING)
        return {name: int(keep[found.x[places].argmax()])
                for name, keep, places in zip(self.names, self.keep, self.columns)}


def _quadratic(costs: CostModel, kind: str, names: Sequence[str]) -> tuple[float, np.ndarray, np.ndarray]:
    """Return a cost as ``constant + own . k + k . products . k`` of the kept numbers ``k`` of some units.

    A layer's cost is divided by its groups, which loses nothing: where it has groups, a channel of a unit is one of
    each group, or, in a depthwise layer, its inputs are counted once.

    Args:
        costs: The costs of the dense model.
        kind: Which of them.
        names: The units that may change, U of them; all others stay whole.

    Returns:
        The constant, ``(U,)``, and ``(U, U)``, upper triangular.
    """
    terms = costs.terms(kind)
    free = [costs.names.index(name) for name in names]
    fixed = costs.sizes.copy()
    fixed[free] = 0
    ins, outs = terms.widths(fixed)
    weights = terms.weights / terms.groups
    in_use, out_use = terms.in_use[:, free], terms.out_use[:, free]
    constant = terms.constant + terms.linear @ fixed + (weights * ins * outs).sum()
    own = terms.linear[free] + (weights * ins) @ out_use + (weights * outs) @ in_use
    products = in_use.T @ (weights[:, None] * out_use)
    return float(constant), own, np.triu(products) + np.triu(products.T, 1)
