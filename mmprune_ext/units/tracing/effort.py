"""How long a trace may take, what it shows meanwhile, and what is said of one that is cut short."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from torch import nn

from mmprune_ext.errors import TraceError
from mmprune_ext.units.checking.verify import Judge
from mmprune_ext.units.unit_set import UnitSet

# Where there is no terminal, a line is printed each so many seconds.
PATIENCE = 30.


@dataclass(frozen=True)
class Effort:
    """What holds for all traces of a command.

    Attributes:
        progress: Whether it shows on stderr how far it is.
        timeout: Seconds that one trace may take with its check by execution; ``None`` for any.
        cache: The folder of units that were traced before (:class:`mmprune_ext.units.cache.store.Entry`); ``None`` for
            none.
    """

    progress: bool = False
    timeout: float | None = None
    cache: Path | None = None


_EFFORT: ContextVar[Effort | None] = ContextVar('effort', default=None)


def present_effort() -> Effort:
    """Return what holds now; in code that calls :func:`mmprune_ext.units.trace_units` itself none of it."""
    return _EFFORT.get() or Effort()


@contextlib.contextmanager
def tracing(effort: Effort) -> Iterator[None]:
    """Let this hold for all traces in a block."""
    token = _EFFORT.set(effort)
    try:
        yield
    finally:
        _EFFORT.reset(token)


class OutOfTime(BaseException):
    """The time of a trace is over; no ``Exception``, which the code of a model may take for one of its own."""


class Watch:
    """What is known of a trace while it runs.

    Args:
        name: The model's class.
        effort: What holds for the trace.
    """

    def __init__(self, name: str, effort: Effort) -> None:
        self._name, self._effort = name, effort
        self._began = self._said = time.monotonic()
        self._tries = 0
        self._doing = 'following its channels'
        self._console = Console(stderr=True)
        self._shown: Callable[[str], None] = lambda text: None

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Watch over a block.

        Raises:
            TraceError: If it takes longer than it may.
            KeyboardInterrupt: If it is interrupted; it says where.
        """
        try:
            with self._display(), _alarm(self._effort.timeout):
                yield
        except OutOfTime as error:
            raise TraceError(
                f'{self._where(error)}: it takes longer than {self._effort.timeout:g} s (--timeout). Give it more '
                'time, a smaller --input-size, a --scope with fewer layers, or demo_inputs that run less of the model'
            ) from error
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt(self._where(error)) from error

    def counted(self, judge: Judge) -> Judge:
        """Return a judge whose tries are counted and shown."""
        def judged(model: nn.Module, units: UnitSet) -> None:
            pruned = [name for name, unit in units.items() if unit.keep < unit.num_channels]
            self._tries += 1
            self._doing = (f'checking unit "{pruned[0]}"' if len(pruned) == 1 else
                           f'checking {len(pruned)} units together')
            self._say()
            judge(model, units)
        return judged

    def _say(self) -> None:
        elapsed, timeout = time.monotonic() - self._began, self._effort.timeout
        if timeout is not None and elapsed > timeout:  # no alarm outside the main thread
            raise OutOfTime
        self._shown(f'try {self._tries}: {self._doing}')
        if self._effort.progress and not self._console.is_terminal and time.monotonic() - self._said > PATIENCE:
            self._said = time.monotonic()
            self._console.print(f'tracing {self._name}: try {self._tries}, {elapsed:.0f} s: {self._doing}',
                                soft_wrap=True, highlight=False, markup=False)

    @contextlib.contextmanager
    def _display(self) -> Iterator[None]:
        if not (self._effort.progress and self._console.is_terminal):
            yield
            return
        with Progress(TextColumn(f'tracing {self._name}'), TimeElapsedColumn(),
                      TextColumn('{task.description}', markup=False), console=self._console, transient=True) as display:
            task = display.add_task(self._doing, total=None)
            self._shown = lambda text: display.update(task, description=text)
            yield

    def _where(self, error: BaseException) -> str:
        """Return how far the trace was, as one line."""
        layer = _layer_of(error, self._name)
        return (f'tracing {self._name}, after {time.monotonic() - self._began:.0f} s and {self._tries} tries, '
                f'{self._doing}' + (f', in layer "{layer}"' if layer else ''))


@contextlib.contextmanager
def _alarm(seconds: float | None) -> Iterator[None]:
    """Raise :class:`OutOfTime` in a block after some seconds, and again each second until it has come through."""
    if seconds is None or threading.current_thread() is not threading.main_thread() or not hasattr(signal, 'SIGALRM'):
        yield
        return

    def ring(number: int, frame: Any) -> None:
        raise OutOfTime
    before, began = signal.signal(signal.SIGALRM, ring), time.monotonic()
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, 1.)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:  # an alarm of someone else's
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - began), 1e-3), interval)


def _layer_of(error: BaseException, name: str) -> str:
    """Return the path of the innermost module that ran when an error was raised, in a model of a class or its copy."""
    runners = [module for frame, _ in traceback.walk_tb(error.__traceback__)
               if isinstance(module := frame.f_locals.get('self'), nn.Module)]
    root = next((module for module in runners if type(module).__name__ == name), None)
    paths = {} if root is None else {id(module): path for path, module in root.named_modules()}
    return next((paths[id(module)] for module in reversed(runners) if id(module) in paths), '')
