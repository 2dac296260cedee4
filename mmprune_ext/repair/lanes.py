"""Passes that can be held at any place: so a layer's inputs are at hand for all images before it gives an output."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch


class _Closed(BaseException):
    """Ends a pass that is not needed any further; no code of a model catches it."""


class Lane:
    """A pass in a thread of its own, of which one at a time runs, until it holds.

    What a pass still needs lives in its own frames, and nothing else does: no network need be known to go on from
    a layer.

    Args:
        run: The pass. It is given the lane, and calls :meth:`hold` where it is to wait.
    """

    def __init__(self, run: Callable[[Lane], Any]) -> None:
        self._run = run
        self._go, self._held = threading.Semaphore(0), threading.Semaphore(0)
        self._event: Any = None
        self._error: BaseException | None = None
        self._closed = False
        self._device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
        self._thread = threading.Thread(target=self._body, daemon=True)

    def advance(self) -> Any:
        """Let the pass go on, and return what it holds with next, ``None`` at its end.

        Raises:
            Exception: What the pass raised.
        """
        self._event = None
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._go.release()
        self._held.acquire()
        if self._error is not None:
            raise self._error
        return self._event

    def hold(self, event: Any) -> None:
        """Wait in the pass, with something to look at, until it may go on."""
        self._event = event
        self._held.release()
        self._go.acquire()
        self._event = None
        if self._closed:
            raise _Closed

    def close(self) -> None:
        """End the pass where it is."""
        self._closed = True
        if self._thread.is_alive():
            self._go.release()
            self._thread.join()
        self._event = None

    def _body(self) -> None:
        if self._device is not None:
            torch.cuda.set_device(self._device)
        try:
            with torch.no_grad():  # of this thread
                self._run(self)
        except _Closed:
            pass
        except BaseException as error:  # raised where the lane is advanced
            self._error = error
        self._run = None
        self._held.release()
