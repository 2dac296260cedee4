"""Pictures of pruned models."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmprune_ext.units.reasons import Reason
from mmprune_ext.units.unit import ChannelUnit
from mmprune_ext.units.unit_set import UnitSet

_ROWS = 50  # bars in one column of the picture
_SHAPES = 16
_DENSE, _KEPT, _FIXED, _OUTSIDE = '#d5dbe3', '#2266aa', '#9a9a9a', '#d9c7a8'
_CURVES = 14  # in one panel
_STAGES = ('Blues', 'Oranges', 'Greens', 'Purples', 'Reds', 'Greys')
_STYLES, _MARKERS = ('-', '--', ':'), 'os^Dvx'


def widths_png(units: UnitSet, title: str = '') -> bytes:
    """Return a PNG picture of the width of each unit before and after pruning.

    One horizontal bar a unit, pale for the dense width, dark for what stays, grey for units that
    cannot be pruned, sand for those outside the scope; long models continue in further columns.

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
        (_FIXED, 'not prunable'), (_OUTSIDE, 'outside the scope'))]
    figure.legend(handles=handles, loc='outside lower center', ncols=len(handles), frameon=False, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=11)
    return _png(figure)


def _draw(axis: object, units: list[ChannelUnit], rows: int, widest: int) -> None:
    """Draw one column of bars; columns share their scales, so that bars compare."""
    places = range(len(units))
    dense = [unit.num_channels for unit in units]
    kept = [unit.keep for unit in units]
    colours = [_KEPT if unit.prunable else _OUTSIDE if unit.reason is Reason.OUT_OF_SCOPE else _FIXED
               for unit in units]
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


def stripes_png(units: UnitSet) -> bytes:
    """Return a PNG picture of the stripes that are left (Meng et al., arXiv 2009.14410, figures 4 and 5).

    One heat map a kernel size: a row a convolution that has lost stripes, a column a kernel position, the share of
    filters that keep a stripe there; beside it the most frequent shapes of the filters that are left.

    Args:
        units: Channel units with the stripes that stay.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    kernels: dict[tuple[int, int], list[str]] = {}
    for path, layer in units.stripes.items():
        kernels.setdefault(tuple(layer.kernel_size), []).append(path)
    rows = [max(len(paths), 8) for paths in kernels.values()] or [8]
    figure = Figure(figsize=(11, 1.5 + 0.18 * sum(rows) + 0.8 * len(rows)), layout='constrained')
    FigureCanvasAgg(figure)
    figure.suptitle('Stripes that are left', fontsize=11)
    parts = figure.subfigures(len(rows), 1, squeeze=False, height_ratios=rows)[:, 0]
    if not kernels:
        parts[0].text(0.5, 0.5, 'all stripes are left', ha='center')
    for part, ((height, width), paths) in zip(parts, kernels.items()):
        shares, frequent = part.subfigures(1, 2, width_ratios=(3, 2))
        _draw_shares(shares, (height, width), [(path, units.stripes[path].keep) for path in paths])
        _draw_shapes(frequent, np.concatenate([units.stripes[path].keep for path in paths]))
    return _png(figure)


def _draw_shares(figure: Any, kernel: tuple[int, int], layers: list[tuple[str, np.ndarray]]) -> None:
    """Draw the share of filters that keep a stripe, a row a layer, a column a kernel position."""
    axis = figure.subplots()
    image = axis.imshow([keep.mean(0).ravel() for _, keep in layers], vmin=0, vmax=1, cmap='Blues', aspect='auto')
    axis.set_yticks(range(len(layers)), [path for path, _ in layers], fontsize=7)
    positions = [f'{row},{column}' for row in range(kernel[0]) for column in range(kernel[1])]
    axis.set_xticks(range(len(positions)), positions, fontsize=7, rotation=90 if len(positions) > 9 else 0)
    axis.set_xlabel(f'position in the {kernel[0]}x{kernel[1]} kernel', fontsize=8)
    bar = figure.colorbar(image, ax=axis, label='share of the filters')
    bar.ax.tick_params(labelsize=7)


def _draw_shapes(figure: Any, keep: np.ndarray) -> None:
    """Draw the most frequent shapes of live filters with their shares."""
    live = keep[keep.any((1, 2))]
    shapes, counts = np.unique(live.reshape(len(live), keep[0].size), axis=0, return_counts=True)
    order = np.argsort(-counts, kind='stable')[:_SHAPES]
    figure.suptitle(f'most frequent shapes of {len(live)} filters', fontsize=8)
    axes = figure.subplots(4, _SHAPES // 4).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, place in zip(axes, order):
        axis.set_axis_on()
        axis.imshow(shapes[place].reshape(keep.shape[1:]), vmin=0, vmax=1, cmap='Blues')
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_title(f'{counts[place] / len(live):.1%}', fontsize=7)


def curves_png(curves: Mapping[str, Sequence[tuple[float, float]]], dense: float, metric: str,
               title: str = '') -> bytes:
    """Return a PNG picture of sensitivities (Li et al., arXiv 1608.08710, figure 2b).

    One curve a unit, one panel and colour a stage; the other stages' curves stand pale behind it. A stage is what
    comes first in a unit's path below the backbone. The scale is that of the square root of the drop: few units fall to
    chance, and what tells the others apart is near the dense model.

    Args:
        curves: By unit, in execution order, its points: share of channels removed, metric; NaN leaves a gap.
        dense: The metric of the dense model, a dashed line.
        metric: Its name.
        title: Line above the panels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    panels = _panels(list(curves))
    columns = min(len(panels), 4)
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(1 + 3.9 * columns, 0.6 + 5.0 * rows), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    stages = list(dict.fromkeys(stage for stage, _ in panels))
    for axis, (stage, names) in zip(axes, panels):
        for name, points in curves.items():
            if name not in names:
                axis.plot(*_xy(points), color='#e4e4e4', linewidth=0.8, zorder=1)
        colours = _shades(stages.index(stage), len(names))
        for number, (name, colour) in enumerate(zip(names, colours)):
            axis.plot(*_xy(curves[name]), _STYLES[number % len(_STYLES)], color=colour, linewidth=1.4, zorder=2,
                      marker=_MARKERS[number % len(_MARKERS)], markersize=3.5, label=_below(name))
        if math.isfinite(dense):
            axis.axhline(dense, color='#333333', linewidth=0.8, linestyle='--', zorder=1)
            _widen_around(axis, dense, [metric for points in curves.values() for _, metric in points])
        axis.set_title(stage, fontsize=10, color=colours[len(colours) // 2])
        axis.tick_params(labelsize=7, labelbottom=True, labelleft=True)
        axis.grid(color='#eeeeee', linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[['top', 'right']].set_visible(False)
        axis.legend(loc='upper center', bbox_to_anchor=(0.5, -0.08), ncols=2, frameon=False, fontsize=6.5)
    for axis in axes[len(panels):]:
        axis.set_visible(False)
    figure.supxlabel('channels of the unit removed, % (dashed: the dense model)', fontsize=9)
    figure.supylabel(f'{metric} (scale: square root of the drop)', fontsize=9)
    figure.suptitle(title, fontsize=11)
    return _png(figure)


def _widen_around(axis: Any, dense: float, metrics: Sequence[float]) -> None:
    """Scale an axis by the square root of the distance from the dense model's metric."""
    far = max((abs(metric - dense) for metric in metrics if math.isfinite(metric)), default=0.0)
    if far == 0:
        return
    sides = [side for side in (-1, 1) if any(side * (metric - dense) >= far / 9 for metric in metrics)]
    axis.set_yscale('function', functions=(lambda y: np.sign(y - dense) * np.sqrt(np.abs(y - dense)),
                                           lambda z: dense + np.sign(z) * z ** 2))
    ticks = [dense, *(dense + side * far * (step / 5) ** 2 for side in sides for step in range(1, 6))]
    axis.set_yticks(ticks, [f'{tick:.3g}' for tick in ticks])
    axis.minorticks_off()


def _panels(names: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Return units by stage, in parts where there are many."""
    stages: dict[str, list[str]] = {}
    for name in names:
        parts = name.removeprefix('backbone.').split('.')
        stages.setdefault(parts[0], []).append(name)
    found = []
    for stage, members in stages.items():
        parts = math.ceil(len(members) / _CURVES)
        size = math.ceil(len(members) / parts)
        found += [(stage, members[i * size:(i + 1) * size]) for i in range(parts)]
    return found


def _below(name: str) -> str:
    """Return a unit's name without its stage."""
    parts = name.removeprefix('backbone.').split('.')
    return '.'.join(parts[1:]) or parts[0]


def _xy(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [100 * ratio for ratio, _ in points], [metric for _, metric in points]


def _shades(stage: int, number: int) -> list[Any]:
    """Return as many shades of a stage's colour, from light to dark."""
    from matplotlib import colormaps
    shades = colormaps[_STAGES[stage % len(_STAGES)]]
    return [shades(0.45 + 0.5 * i / max(number - 1, 1)) for i in range(number)]


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format='png', dpi=100)
    return file.getvalue()
