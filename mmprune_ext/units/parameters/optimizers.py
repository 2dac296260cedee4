"""What trains a model's parameters: nothing, where these are others now, or frozen."""

from __future__ import annotations

import gc
import sys
import warnings
from collections.abc import Mapping

from torch import nn
from torch.optim import Optimizer

# References to a parameter that nothing else holds, while it is counted: the mapping, the name of the loop, the count.
_OWN_REFERENCES = 3


class TrainingWarning(UserWarning):
    """Training would do nothing, or less than it seems."""


def warn_of_training(model: nn.Module, before: Mapping[str, nn.Parameter]) -> None:
    """Warn where training a model would do nothing, or less than it seems.

    Args:
        model: A model that was slimmed.
        before: Its parameters from before, by name. An optimizer that still holds those which are no longer the
            model's trains nothing of the layers that were slimmed.
    """
    now = {id(parameter) for parameter in model.parameters()}
    gone = {name: parameter for name, parameter in before.items() if id(parameter) not in now}
    for optimizer, names in _holding(gone):
        kind = type(optimizer).__name__
        warnings.warn(f'an optimizer ({kind}) was built before slim(): it holds {len(names)} parameters that are no '
                      f'longer those of the model, the first is {names[0]}, and would train nothing of them. Build it '
                      f'after slim(): {kind}(model.parameters(), ...)', category=TrainingWarning, stacklevel=3)
    if before and not any(parameter.requires_grad for parameter in model.parameters()):
        warnings.warn(f'all {len(now)} parameters of the slimmed {type(model).__name__} are frozen '
                      '(requires_grad=False): nothing of it will be trained', category=TrainingWarning, stacklevel=3)


def _holding(parameters: Mapping[str, nn.Parameter]) -> list[tuple[Optimizer, list[str]]]:
    """Return the optimizers that hold some parameters, with the names of these."""
    if not any(_is_held(parameters, name) for name in parameters):
        return []
    names = {id(parameter): name for name, parameter in parameters.items()}
    if not _among(names):
        return []
    gc.collect()  # of optimizers that are no longer used
    return _among(names)


def _among(names: Mapping[int, str]) -> list[tuple[Optimizer, list[str]]]:
    """Return the optimizers that hold some of these parameters, by id, with the names of those.

    Nothing lists the optimizers that there are. Types are compared by a set: there may be a million objects.
    """
    kinds, found = _subclasses(Optimizer), []
    for optimizer in [value for value in gc.get_objects() if type(value) in kinds]:
        held = [names[id(p)] for group in optimizer.param_groups for p in group['params'] if id(p) in names]
        if held:
            found.append((optimizer, held))
    return found


def _subclasses(kind: type) -> set[type]:
    return {kind}.union(*map(_subclasses, kind.__subclasses__()))


def _is_held(parameters: Mapping[str, nn.Parameter], name: str) -> bool:
    parameter = parameters[name]
    return sys.getrefcount(parameter) > _OWN_REFERENCES
