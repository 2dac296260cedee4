"""Models that are an algorithm and an instance of the user's own class at once."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from mmengine.model import BaseModule
from torch import nn

from mmprune_ext.errors import ConfigError


def mix_in(algorithm: type, model: nn.Module) -> nn.Module:
    """Make a model an instance of an algorithm too, in place.

    Its class becomes one that derives from the algorithm, then from the class that it was; nothing else
    changes: attributes, names of parameters, ``isinstance`` checks, methods that its class overrides.

    Args:
        algorithm: The algorithm's class, which is not an ``nn.Module`` itself.
        model: The model.

    Raises:
        ConfigError: If the model belongs to a pruning run already, or has attributes that the algorithm
            needs under the same name.
    """
    if hasattr(type(model), 'algorithm_type'):
        raise ConfigError(f'architecture: the model is that of a {type(model).algorithm_type.__name__} run '
                          'already; give what its export_model() returns')
    taken = sorted(name for name in _names(algorithm) if hasattr(model, name) and not hasattr(BaseModule, name))
    if taken:
        raise ConfigError(f'architecture: {type(model).__name__} has an attribute "{taken[0]}", under which '
                          f'{algorithm.__name__} keeps its own; rename it in the model')
    # A compact model that brought its weights along shuts out its class's own; the algorithm has a say in that.
    vars(model).pop('init_weights', None)
    model.__class__ = mixed_class(algorithm, type(model))
    return model


@functools.cache
def mixed_class(algorithm: type, architecture: type) -> type:
    """Return the class of models that are both; it goes by the architecture's name, as messages and tools do."""
    return type(architecture)(architecture.__name__, (algorithm, architecture), {
        '__module__': architecture.__module__,
        '__qualname__': f'{algorithm.__name__}[{architecture.__qualname__}]',
        '__doc__': architecture.__doc__,
        'algorithm_type': algorithm,
        'architecture_type': architecture})


def take_out(model: nn.Module) -> nn.Module:
    """Give a mixed model its own class back, in place, without what the algorithm keeps in it."""
    algorithm = type(model).algorithm_type
    model.__class__ = type(model).architecture_type
    for name in _names(algorithm):
        vars(model).pop(name, None)
    return model


def blank(algorithm: type, architecture: type) -> nn.Module:
    """Return an instance without content, for copies and pickles to fill."""
    return object.__new__(mixed_class(algorithm, architecture))


def _names(algorithm: type) -> set[str]:
    """Return the attributes and methods of an algorithm: those it defines, and those it annotates."""
    own: dict[str, Any] = {}
    for kind in algorithm.__mro__[:-1]:
        own.update(vars(kind), **inspect.get_annotations(kind))
    return {name for name in own if not name.startswith('__')}
