"""What a method that learns its channels is to keep of one or several resources."""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mmprune_ext.errors import TargetError
from mmprune_ext.targets.budget import RESOURCES
from mmprune_ext.units.demo_inputs import DemoInputs


@dataclass(frozen=True)
class GateBudget:
    """Shares of resources that remain, each with its weight in the loss.

    Attributes:
        shares: The share that remains, above 0 and below 1, by resource: ``channels`` (of the prunable units),
            ``volume`` (output values of convolution and linear layers), ``params``, ``flops``
            (multiply-accumulates of these layers).
        weights: Of each resource's term of the budget loss.
        scope: Path of the submodule whose resources are measured; empty for the model.
        input_size: What ``flops`` and ``volume`` are counted on (:func:`mmprune_ext.analysis.complexity`).
    """

    shares: Mapping[str, float]
    weights: Mapping[str, float] = field(default_factory=dict)
    scope: str = ''
    input_size: DemoInputs = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | None) -> GateBudget:
        """Read ``dict(flops=0.5)`` or ``dict(flops=0.5, params=0.6, weights=dict(params=2.), scope='backbone')``.

        Raises:
            TargetError: For an unknown key or value.
        """
        if not isinstance(config, Mapping):
            raise TargetError('budget should say what remains, such as dict(flops=0.5), but got '
                              f'{config!r:.100}')
        extra = set(config) - {*RESOURCES, 'weights', 'scope', 'input_size'}
        shares = {key: config[key] for key in RESOURCES if config.get(key) is not None}
        if extra or not shares:
            raise TargetError(f'budget should have one or more of {", ".join(RESOURCES)}, and optionally weights, '
                              f'scope and input_size, but got {dict(config)!r:.200}')
        for key, share in shares.items():
            if not _is_number(share) or not 0 < share < 1:
                raise TargetError(f'budget: {key} is the share that remains, above 0 and below 1, but got {share!r}')
        weights = config.get('weights') or {}
        if not isinstance(weights, Mapping) or set(weights) - set(shares) or not all(
                _is_number(w) and 0 < w < math.inf for w in weights.values()):
            raise TargetError(f'budget: weights should be positive numbers for {", ".join(shares)}, but got '
                              f'{weights!r:.100}')
        return cls({key: float(share) for key, share in shares.items()},
                   {key: float(weights.get(key, 1.0)) for key in shares},
                   config.get('scope') or '', config.get('input_size'))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
