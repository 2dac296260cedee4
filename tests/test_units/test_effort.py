"""A trace under watch: what it shows, when it gives up, and what an interrupt says."""
from __future__ import annotations

import contextlib
import signal
import threading
import time

import pytest
import torch
from torch import Tensor, nn

from mmprune_ext.cli.errors import user_errors
from mmprune_ext.errors import TraceError
from mmprune_ext.units import trace_units
from mmprune_ext.units.tracing import effort
from mmprune_ext.units.tracing.effort import Effort, tracing


class Last(nn.Conv2d):
    """A layer that does something in the first pass, or in the check by execution, when channels are gone."""

    def __init__(self, act, width: int) -> None:
        super().__init__(8, 4, 1)
        self.act, self.width = act, width

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] <= self.width:
            self.act()
        return super().forward(x)


def network(act=lambda: None, width: int = 8) -> nn.Module:
    net = nn.Sequential()
    net.body, net.last = nn.Conv2d(3, 8, 3), Last(act, width)
    return net


@pytest.fixture(autouse=True, scope='module')
def _imported() -> None:
    """Let torch import what it needs for a dispatch mode before the times are short."""
    trace_units(network(), (8, 8))


def sleep() -> None:
    time.sleep(20)


def sleep_whatever_is_raised() -> None:
    for _ in range(2):
        with contextlib.suppress(Exception):
            time.sleep(10)


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(('act', 'width', 'doing'), [
    (sleep, 8, 'following its channels'), (sleep, 7, 'checking unit "body"'),
    (sleep_whatever_is_raised, 8, 'following its channels')])
def test_time_is_over(act, width, doing):
    began, handler = time.monotonic(), signal.getsignal(signal.SIGALRM)
    with pytest.raises(TraceError) as raised, tracing(Effort(timeout=0.7)):
        trace_units(network(act, width), (8, 8))
    assert time.monotonic() - began < 10
    assert signal.getsignal(signal.SIGALRM) is handler
    for part in ('tracing Sequential', doing, 'in layer "last"', '0.7 s (--timeout)', '--input-size'):
        assert part in str(raised.value)


def test_an_alarm_of_someone_else_goes_off_later():
    rung: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    remaining = signal.setitimer(signal.ITIMER_REAL, 600)
    try:
        with tracing(Effort(timeout=60)):
            trace_units(network(), (8, 8))
        assert 500 < signal.getitimer(signal.ITIMER_REAL)[0] <= 600
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *remaining)
    assert not rung


def test_in_a_thread_it_is_looked_at_between_tries():
    """Alarms reach the main thread alone."""
    found: list[str] = []

    def run() -> None:
        with tracing(Effort(timeout=0.3)):
            try:
                trace_units(network(lambda: time.sleep(0.5)), (8, 8))
            except TraceError as error:
                found.append(str(error))
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert len(found) == 1 and '(--timeout)' in found[0]


@pytest.mark.parametrize(('width', 'doing'), [
    (8, '0 tries, following its channels'), (7, '1 tries, checking unit "body"')])
def test_an_interrupt_says_in_one_line_what_was_interrupted(width, doing, capsys):
    with pytest.raises(SystemExit) as ended, user_errors('out is as it was'):
        trace_units(network(interrupt, width), (8, 8))
    text = capsys.readouterr().err
    assert (ended.value.code, text.count('\n')) == (130, 1)
    assert text.startswith('error: interrupted tracing Sequential, after 0 s and ')
    assert f'{doing}, in layer "last"; out is as it was\n' in text


@pytest.mark.parametrize('progress', [True, False])
def test_without_a_terminal_a_line_now_and_then(progress, capsys, monkeypatch):
    monkeypatch.setattr(effort, 'PATIENCE', -1.)
    with tracing(Effort(progress=progress)):
        units = trace_units(network(), (8, 8))
    captured = capsys.readouterr()
    assert captured.out == ''
    lines = captured.err.splitlines()
    assert (lines[:1] == ['tracing Sequential: try 1, 0 s: checking unit "body"']) is progress
    assert bool(lines) is progress
    assert list(units.prunable) == ['body']


def test_on_a_terminal_one_line_that_goes_again(capsys, monkeypatch):
    monkeypatch.setenv('FORCE_COLOR', '1')  # rich then takes any file for a terminal
    with tracing(Effort(progress=True)):
        trace_units(network(lambda: time.sleep(0.2)), (8, 8))
    text = capsys.readouterr().err
    assert 'tracing Sequential' in text and 'checking unit "body"' in text
    assert '\x1b[2K' in text.rpartition('checking unit')[2]  # the line is wiped in the end


def test_it_changes_nothing():
    torch.manual_seed(0)
    plain = trace_units(network(), (8, 8)).to_json()
    with tracing(Effort(progress=True, timeout=100)):
        assert trace_units(network(), (8, 8)).to_json() == plain
