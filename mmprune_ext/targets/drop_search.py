"""The smallest network whose measured metric falls by no more than allowed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from mmengine.logging import print_log

from mmprune_ext.errors import TargetError
from mmprune_ext.targets.budget import Keeps
from mmprune_ext.targets.sensitivity_choice import SensitivityChoice

PRECISION = 0.01


@dataclass(frozen=True)
class Candidate:
    """A network that was measured.

    Attributes:
        keeps: The kept number of each prunable unit.
        share: The share of the resource that it uses.
        predicted: The drop that the sensitivity file predicts, in the metric's own unit.
        measured: The drop that it has.
    """

    keeps: Keeps
    share: float
    predicted: float
    measured: float


def smallest_within(choice: SensitivityChoice, measure: Callable[[Keeps], float], allowed: float,
                    precision: float = PRECISION) -> Candidate:
    """Return the candidate of the smallest share whose measured drop is at most what is allowed.

    Candidates are the best choices under budgets. The interval of budgets is halved: by a measurement that is no more
    than allowed the upper part goes, by any other the lower part. Where a smaller budget happens to give a smaller
    drop, there may be a smaller network than what is found.

    Args:
        choice: Gives the best choice under a budget.
        measure: Gives the measured drop of kept numbers, in the metric's own unit.
        allowed: The largest drop, in the same unit.
        precision: The interval of budgets at which the search ends.

    Raises:
        TargetError: If no candidate falls by so little.
    """
    low, high = choice.least_share(), 1.0
    steps = max(math.ceil(math.log2(max((high - low) / precision, 1))), 1)
    best: Candidate | None = None
    failed: list[Candidate] = []
    number = 0
    while high - low > precision:
        middle = (low + high) / 2
        keeps = choice.keeps(middle)
        if any(keeps == candidate.keeps for candidate in failed):
            low = middle
            continue
        number += 1
        found = Candidate(keeps, choice.share(keeps), choice.drop(keeps), measure(keeps))
        passed = found.measured <= allowed
        print_log(f'candidate {number} of at most {steps}: {choice.resource} {found.share:.1%}, predicted drop '
                  f'{found.predicted:.4g}, measured {found.measured:.4g}: '
                  f'{"within" if passed else "more than"} {allowed:.4g}', logger='current')
        if passed:
            best, high = found, found.share
        else:
            failed.append(found)
            low = middle
    if best is not None:
        return best
    if not failed:
        raise TargetError(f'{choice.sensitivity.source}: the smallest measured widths leave {choice.resource} '
                          f'{low:.1%}, so that there is nothing to search')
    widest = max(failed, key=lambda candidate: candidate.share)
    raise TargetError(f'no network of measured widths falls by at most {allowed:.4g}: the largest that was tried '
                      f'leaves {choice.resource} {widest.share:.1%} and falls by {widest.measured:.4g}')
