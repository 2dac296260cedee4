"""Pictures of gates while channels are searched."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BINS = 20
_COLOURS = ('#2266aa', '#c26a18', '#3a8a4d', '#8a4d9a')


@dataclass(frozen=True)
class GateRecord:
    """What the gates were like at one time of a search.

    Attributes:
        time: Epochs (or iterations) done.
        histogram: Gates in each of 20 bins from 0 to 1.
        statistics: Share of crisp gates, ``crisp``, and of those that are so by themselves, ``learned``; soft and
            hard share of each resource, ``soft_flops``, ``hard_flops``; ``beta``, ``gamma``, ``steepness``.
    """

    time: int
    histogram: list[int]
    statistics: dict[str, float]


def gates_png(records: Sequence[GateRecord], budgets: dict[str, float], unit: str = 'epoch') -> bytes:
    """Return a PNG picture of a search: the gates' histogram over time, and the course of the budgets.

    Args:
        records: In order of time, at least one.
        budgets: The share that is to remain, by resource.
        unit: Name of the unit of time.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    # Figure, not pyplot: no global state, no display, whatever backend the user has set.
    figure = Figure(figsize=(11, 4.2), layout='constrained')
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _draw_histograms(figure, left, records, unit)
    _draw_budgets(right, records, budgets, unit)
    file = io.BytesIO()
    figure.savefig(file, format='png', dpi=100)
    return file.getvalue()


def _draw_histograms(figure: Any, axis: Any, records: Sequence[GateRecord], unit: str) -> None:
    from matplotlib.ticker import MaxNLocator
    counts = np.array([record.histogram for record in records], dtype=float).T
    shares = counts / counts.sum(0)
    times = [record.time for record in records]
    # Shares differ by orders of magnitude once most gates are crisp.
    image = axis.pcolormesh(_edges(times), np.linspace(0, 1, BINS + 1), 100 * np.sqrt(shares), cmap='Blues', vmin=0,
                            vmax=100)
    bar = figure.colorbar(image, ax=axis, label='share of gates')
    bar.set_ticks([100 * share ** 0.5 for share in (0, 0.01, 0.1, 0.3, 0.6, 1)], labels=[
        '0', '1%', '10%', '30%', '60%', '100%'])
    axis.set(xlabel=unit, ylabel='gate', title='Gates')
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def _edges(times: Sequence[int]) -> np.ndarray:
    """Return the borders between neighbouring times."""
    middle = [(a + b) / 2 for a, b in zip(times, times[1:])]
    first = 2 * times[0] - middle[0] if middle else times[0] - 0.5
    last = 2 * times[-1] - middle[-1] if middle else times[-1] + 0.5
    return np.array([first, *middle, last])


def _draw_budgets(axis: Any, records: Sequence[GateRecord], budgets: dict[str, float], unit: str) -> None:
    from matplotlib.ticker import MaxNLocator
    times = [record.time for record in records]
    for (name, share), colour in zip(budgets.items(), _COLOURS):
        for kind, style in (('soft', '-'), ('hard', ':')):
            values = [record.statistics[f'{kind}_{name}'] for record in records]
            axis.plot(times, values, style, color=colour, marker='.', label=f'{name}, {kind}')
        axis.axhline(share, color=colour, linewidth=0.8, alpha=0.6)
    axis.plot(times, [record.statistics['crisp'] for record in records], color='#9a9a9a', label='crisp gates')
    axis.plot(times, [record.statistics['learned'] for record in records], ':', color='#9a9a9a', label='by themselves')
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set(xlabel=unit, ylabel='share', ylim=(0, 1.02), title='Budgets (thin lines) and crisp gates')
    axis.spines[['top', 'right']].set_visible(False)
    axis.grid(axis='y', color='#eeeeee', linewidth=0.8)
    axis.legend(frameon=False, fontsize=8)
