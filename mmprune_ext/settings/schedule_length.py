"""What a config binds to the length of its schedule beside the schedule itself, brought to another length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmengine.registry import HOOKS, MODELS

from mmprune_ext.compact.training import default_of, name_of

# Settings of hooks that name a point in the run, and those that name a length.
POINTS = ('begin_epoch', 'begin_iter', 'switch_epoch', 'save_begin')
LENGTHS = ('num_last_epochs', 'warmup_epochs')
# Hooks whose interval is one of epochs, or of iterations where the run counts these.
INTERVALS = ('CheckpointHook', 'PreciseBNHook')
# An average that takes a larger share of what is new at every step would be none.
MAX_MOMENTUM = 0.1


@dataclass(frozen=True)
class Scale:
    """From the length of a schedule to another one, both in epochs or both in iterations."""

    before: int
    after: int

    def point(self, value: int, first: int = 0) -> int:
        """Return the point as far into the new run as this one is into the old, rounded down."""
        return max(first, value * self.after // self.before)

    def length(self, value: int) -> int:
        """Return the same share of the new run, at least 1."""
        return max(1, round(value * self.after / self.before))

    def interval(self, value: int) -> int:
        """Return an interval that divides the new run as often, at least 1, and none that is longer than before."""
        return max(1, min(value, value * self.after // self.before))


def fit_loop(loop: Any, scale: Scale) -> list[str]:
    """Give a ``train_cfg`` the new length, and validate as often in it.

    Returns:
        What was changed beside the length, a line each.
    """
    by_iteration = loop.get('max_iters') is not None
    loop['max_iters' if by_iteration else 'max_epochs'] = scale.after
    notes: list[str] = []
    interval = loop.get('val_interval', 1000 if by_iteration else 1)  # the defaults of mmengine's loops
    _set(loop, 'val_interval', min(scale.interval(interval), scale.after), 'train_cfg', notes, interval)
    if loop.get('val_begin') is not None:
        _set(loop, 'val_begin', scale.point(loop['val_begin'], 1), 'train_cfg', notes)
    if loop.get('dynamic_intervals'):
        intervals = [(scale.point(begin), scale.interval(step)) for begin, step in loop['dynamic_intervals']]
        _set(loop, 'dynamic_intervals', intervals, 'train_cfg', notes)
    return notes


def fit_hooks(config: Any, scale: Scale) -> list[str]:
    """Bring what hooks do at some point of the run, or every so often, to the new length.

    Returns:
        What was changed, a line each.
    """
    hooks = [(f'default_hooks.{name}', hook) for name, hook in (config.get('default_hooks') or {}).items()]
    hooks += [(f'custom_hooks[{name_of(hook)}]', hook) for hook in config.get('custom_hooks') or []
              if isinstance(hook, Mapping)]
    notes: list[str] = []
    for where, hook in hooks:
        if isinstance(hook, Mapping):
            _fit_hook(hook, where, scale, notes)
    return notes


def _fit_hook(hook: Any, where: str, scale: Scale, notes: list[str]) -> None:
    keys = {**dict.fromkeys(POINTS, scale.point), **dict.fromkeys(LENGTHS, scale.length)}
    if name_of(hook) in INTERVALS:
        keys['interval'] = scale.interval
    for key, brought in keys.items():
        value = hook.get(key, default_of(hook.get('type'), key, HOOKS))
        if type(value) is int and value > 0:
            _set(hook, key, brought(value), where, notes, value)
    if name_of(hook) == 'SwitchRecipeHook':
        _set(hook, 'schedule', _fit_recipes(hook['schedule'], scale), where, notes)
    if isinstance(hook.get('epoch_attributes'), Mapping):
        _set(hook, 'epoch_attributes', _merged((scale.point(int(epoch)), attributes) for epoch, attributes in sorted(
            hook['epoch_attributes'].items())), where, notes)
    if name_of(hook).endswith('EMAHook'):
        _fit_average(hook, where, scale, notes)


def _fit_recipes(recipes: Any, scale: Scale) -> list[dict[str, Any]]:
    """Return the recipes of mmpretrain's ``SwitchRecipeHook`` at their new epochs, no two at the same one."""
    ordered = sorted(recipes, key=lambda recipe: recipe['action_epoch'])
    merged = _merged((scale.point(recipe['action_epoch'], 1), recipe) for recipe in ordered)
    return [{**recipe, 'action_epoch': epoch} for epoch, recipe in merged.items()]


def _merged(entries: Any) -> dict[int, dict[str, Any]]:
    """Return entries by their points; of several at the same point the later ones have the last word."""
    found: dict[int, dict[str, Any]] = {}
    for point, entry in entries:
        found[point] = {**found.get(point, {}), **entry}
    return found


def _fit_average(hook: Any, where: str, scale: Scale, notes: list[str]) -> None:
    """Let a moving average warm up, and forget, over the same share of a shorter run."""
    if scale.after >= scale.before:
        return
    kind = hook.get('ema_type', 'ExponentialMovingAverage')
    for key in ('momentum', 'gamma'):
        value = hook.get(key, default_of(kind, key, MODELS))
        if not isinstance(value, (int, float)):
            continue
        changed = scale.length(value) if key == 'gamma' else max(
            value, min(MAX_MOMENTUM, value * scale.before / scale.after))
        _set(hook, key, changed, where, notes, value)


def _set(section: Any, key: str, value: Any, where: str, notes: list[str], before: Any = None) -> None:
    """Set a value, and note it where it is another one than before."""
    before = section.get(key) if before is None else before
    if value == before:
        return
    section[key] = value
    short = f'{before} -> {value}' if isinstance(value, (int, float)) else 'adapted'
    notes.append(f'{where}.{key}: {short}')
