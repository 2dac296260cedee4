"""Pictures of pruned models."""

from __future__ import annotations

import io
import math

from mmprune_ext.units.unit import ChannelUnit
from mmprune_ext.units.unit_set import UnitSet

_ROWS = 50  # bars in one column of the picture
_DENSE, _KEPT, _FIXED = '#d5dbe3', '#2266aa', '#9a9a9a'


def widths_png(units: UnitSet, title: str = '') -> bytes:
    """Return a PNG picture of the width of each unit before and after pruning.

    One horizontal bar a unit, pale for the dense width, dark for what stays, grey for units that
    cannot be pruned; long models continue in further columns.

    Args:
        units: Channel units with choices.
        title: Line above the bars.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    shown = list(units.values())
    columns = max(math.ceil(len(shown) / _ROWS), 1)
    rows = max(math.ceil(len(shown) / columns), 1)
    # Figure, not pyplot: no global state, no display, whatever backend the user has set.
    figure = Figure(figsize=(7.5 * columns, 1.5 + 0.2 * max(rows, 8)), layout='constrained')
    FigureCanvasAgg(figure)
    widest = max((unit.num_channels for unit in shown), default=1)
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for i, axis in enumerate(axes):
        _draw(axis, shown[i * rows:(i + 1) * rows], rows, widest)
    handles = [Patch(color=colour, label=label) for colour, label in (
        (_DENSE, 'channels removed'), (_KEPT, 'channels kept'),
        (_FIXED, 'not prunable'))]
    figure.legend(handles=handles, loc='outside lower center', ncols=3, frameon=False, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=11)
    file = io.BytesIO()
    figure.savefig(file, format='png', dpi=100)
    return file.getvalue()


def _draw(axis: object, units: list[ChannelUnit], rows: int, widest: int) -> None:
    """Draw one column of bars; columns share their scales, so that bars compare."""
    places = range(len(units))
    dense = [unit.num_channels for unit in units]
    kept = [unit.keep for unit in units]
    colours = [_KEPT if unit.prunable else _FIXED for unit in units]
    axis.barh(places, dense, height=0.8, color=_DENSE)
    axis.barh(places, kept, height=0.8, color=colours)
    for y, unit in zip(places, units):
        text = str(unit.num_channels) if unit.keep == unit.num_channels else \
            f'{unit.keep} / {unit.num_channels}'
        axis.text(unit.num_channels + widest * 0.01, y, text, va='center', fontsize=7)
    axis.set_yticks(places, [unit.name for unit in units], fontsize=7)
    axis.set_ylim(rows - 0.4, -0.6)
    axis.set_xlim(0, widest * 1.16)
    axis.set_xlabel('channels', fontsize=8)
    axis.tick_params(axis='x', labelsize=7)
    axis.tick_params(axis='y', length=0)
    axis.spines[['top', 'right', 'left']].set_visible(False)
    axis.grid(axis='x', color='#eeeeee', linewidth=0.8)
    axis.set_axisbelow(True)
