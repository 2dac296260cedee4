"""The search for the smallest network within a measured drop."""
from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from mmprune_ext.errors import TargetError
from mmprune_ext.targets.drop_search import smallest_within


class Widths:
    """One unit of 1,000 channels that may keep any multiple of a step, from a tenth on."""

    resource = 'channels'
    sensitivity = SimpleNamespace(source='s.json')

    def __init__(self, step: int = 1, least: int = 100) -> None:
        self.step, self.least = step, least
        self.asked: list[int] = []

    def least_share(self) -> float:
        return self.least / 1000

    def keeps(self, share: float) -> dict[str, int]:
        return {'a': max(int(share * 1000) // self.step * self.step, self.least)}

    def share(self, keeps: dict[str, int]) -> float:
        return keeps['a'] / 1000

    def drop(self, keeps: dict[str, int]) -> float:
        return (1000 - keeps['a']) / 200

    def measure(self, drop: Callable[[int], float]) -> Callable[[dict[str, int]], float]:
        def measured(keeps: dict[str, int]) -> float:
            self.asked.append(keeps['a'])
            return drop(keeps['a'])
        return measured


@pytest.mark.parametrize('least', [130, 472, 705, 987])
def test_the_smallest_within_the_precision(least):
    widths = Widths()
    found = smallest_within(widths, widths.measure(lambda keep: 0.0 if keep >= least else 9.0), 1.0)
    assert least <= found.keeps['a'] <= least + 10
    assert (found.share, found.measured) == (found.keeps['a'] / 1000, 0.0)
    assert found.predicted == pytest.approx(5 * (1 - found.share))
    assert len(widths.asked) <= 7  # 0.9 halved seven times is below 0.01
    assert len(set(widths.asked)) == len(widths.asked)


def test_a_drop_of_just_what_is_allowed_is_within():
    widths = Widths()
    assert smallest_within(widths, widths.measure(lambda keep: 1.0), 1.0).keeps['a'] <= 110


def test_few_networks_are_measured_once_each():
    widths = Widths(step=250)
    found = smallest_within(widths, widths.measure(lambda keep: 0.5 if keep >= 500 else 2.0), 1.0)
    assert found.keeps == {'a': 500}
    assert sorted(widths.asked) == sorted(set(widths.asked))


def test_nothing_falls_by_so_little():
    widths = Widths()
    with pytest.raises(TargetError, match=r'falls by at most 1: the largest that was tried leaves channels 99\.\d% '
                       r'and falls by 1\.5'):
        smallest_within(widths, widths.measure(lambda keep: 1.5), 1.0)


def test_a_drop_that_is_no_number_is_too_much():
    widths = Widths()
    found = smallest_within(widths, widths.measure(lambda keep: float('inf') if keep < 800 else 0.0), 1.0)
    assert 800 <= found.keeps['a'] <= 810


def test_nothing_to_search():
    with pytest.raises(TargetError, match=r's\.json: the smallest measured widths leave channels 99\.5%'):
        smallest_within(Widths(least=995), lambda keeps: 0.0, 1.0)


def test_every_candidate_is_told(monkeypatch):
    told: list[str] = []
    monkeypatch.setattr('mmprune_ext.targets.drop_search.print_log', lambda text, **_: told.append(text))
    widths = Widths()
    smallest_within(widths, widths.measure(lambda keep: 0.0 if keep >= 500 else 9.0), 1.0)
    assert told[0] == 'candidate 1 of at most 7: channels 55.0%, predicted drop 2.25, measured 0: within 1'
    assert told[1].endswith('predicted drop 3.375, measured 9: more than 1')
    assert len(told) == len(widths.asked)
