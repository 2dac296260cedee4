"""ChipNet's gates as functions: the continuous Heaviside, crispness, soft counts, schedules.

Source: Tiwari et al., "ChipNet: Budget-Aware Pruning with Heaviside Continuous Approximations", ICLR 2021,
arXiv 2102.07156, section 3.
"""
from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mmprune_ext.errors import ConfigError

CRISP = 0.05  # a gate within this of 0 or 1 is crisp


def logistic(psi: Tensor, beta: float) -> Tensor:
    """Return the relaxed mask ``z~ = 1 / (1 + exp(-beta psi))``, of the shape of ``psi``."""
    return torch.sigmoid(beta * psi)


def heaviside(relaxed: Tensor, gamma: float) -> Tensor:
    """Return the gate ``z = 1 - exp(-gamma z~) + z~ exp(-gamma)``: 0 at 0, 1 at 1, of the shape of ``z~``."""
    return relaxed * math.exp(-gamma) - torch.expm1(-gamma * relaxed)


def settling(iteration: int, total: int, share: float) -> float:
    """Return how far gates have gone from soft to decided, 0 to 1, in an iteration of a search.

    They go in the first two thirds of the search's last ``share``, and are there in the last iteration of any
    search.

    Args:
        iteration: Number of the iteration, from 0.
        total: Iterations of the whole search.
        share: Share of the search in which gates settle; 0 for none.
    """
    if not share:
        return 0.0
    length = max(round(total * share), 1)
    return min(max((iteration + 1 - (total - length)) / math.ceil(length * 2 / 3), 0.0), 1.0)


def crispness_loss(relaxed: Tensor, gates: Tensor) -> Tensor:
    """Return the mean of ``(z - z~)^2`` over all channels, a scalar; 0 where every gate is 0 or 1."""
    return (gates - relaxed).square().mean()


def soft_count(gates: Tensor, steepness: float) -> Tensor:
    """Return what each channel counts in a budget: ``1 / (1 + exp(-k (z - 0.5)))``, of the shape of ``z``."""
    return torch.sigmoid(steepness * (gates - 0.5))


def crisp_share(gates: Tensor) -> float:
    """Return the share of gates below 0.05 or above 0.95."""
    return float(((gates < CRISP) | (gates > 1 - CRISP)).float().mean())


@dataclass(frozen=True)
class GateSchedule:
    """How the gates sharpen, as functions of the steps done: an epoch each, in the paper.

    Attributes:
        beta: Of the logistic: at the start, added a step, at most.
        gamma: Of the Heaviside: at the start, factor a step, at most.
        steepness: Of the soft counts: at the start, added a step, at most.
    """

    beta: tuple[float, float, float] = (1.0, 0.1 / 5, 6.0)
    gamma: tuple[float, float, float] = (2.0, 2 ** (1 / 2), 256.0)
    steepness: tuple[float, float, float] = (10.0, 5.0, 60.0)

    def __post_init__(self) -> None:
        for name in ('beta', 'gamma', 'steepness'):
            values = getattr(self, name)
            if not isinstance(values, (tuple, list)) or len(values) != 3 or not all(
                    isinstance(v, (int, float)) and not isinstance(v, bool) and 0 < v < math.inf for v in values):
                raise ConfigError(f'schedule: {name} should be three positive numbers (at the start, change a step, '
                                  f'at most), but got {values!r}')

    def at(self, step: int) -> tuple[float, float, float]:
        """Return ``beta``, ``gamma`` and the steepness after ``step`` steps."""
        (beta, beta_add, beta_max), (gamma, factor, gamma_max) = self.beta, self.gamma
        steepness, steepness_add, steepness_max = self.steepness
        # In logarithms: a power of thousands of steps would overflow before its limit is applied.
        grown = math.log(gamma) + step * math.log(factor)
        return (min(beta_max, beta + step * beta_add),
                gamma_max if grown >= math.log(gamma_max) else math.exp(grown),
                min(steepness_max, steepness + step * steepness_add))
