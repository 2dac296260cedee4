"""Recording what parts of a model return while it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from mmprune_ext.errors import ConfigError
from mmprune_ext.nearest import nearest


class _EnoughError(Exception):
    """Ends a run whose wanted results are all there."""


@contextlib.contextmanager
def recorded(model: nn.Module, paths: Sequence[str], stop: bool = False) -> Iterator[dict[str, Any]]:
    """Record the results of parts of a model that runs in this block, the last one of each.

    ``forward`` is replaced on the part itself: heads of mmseg and mmpose call their own ``forward``, where module hooks
    do not see it.

    Args:
        model: The model.
        paths: Its parts.
        stop: Whether to leave the block as soon as each part has returned. What comes after them (proposals,
            post-processing) is then not computed.

    Yields:
        A dict that holds the results by path.
    """
    results: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        for path in paths:
            stack.enter_context(_recorded(model.get_submodule(path), path, results, len(paths) if stop else None))
        with contextlib.suppress(_EnoughError):
            yield results


@contextlib.contextmanager
def _recorded(module: nn.Module, path: str, results: dict[str, Any], enough: int | None) -> Iterator[None]:
    own, before = module.forward, vars(module).get('forward')

    def forward(*args: Any, **kwargs: Any) -> Any:
        results[path] = own(*args, **kwargs)
        if len(results) == enough:
            raise _EnoughError
        return results[path]

    vars(module)['forward'] = forward
    try:
        yield
    finally:
        if before is None:
            del vars(module)['forward']
        else:
            vars(module)['forward'] = before


def check_path(model: nn.Module, path: str, where: str) -> None:
    """Check that a model has a part.

    Raises:
        ConfigError: If not, naming the nearest.
    """
    parent, prefix = model, ''
    for name in path.split('.'):
        parts = {key: part for key, part in parent._modules.items() if part is not None}
        if name not in parts:
            near = nearest(name, parts, 1)
            raise ConfigError(f'{where}: {type(model).__name__} has no module "{path}"; '
                              + (f'did you mean {prefix}{near[0]}?' if near else
                                 f'there are {", ".join(prefix + key for key in parts) or "none below it"}'))
        parent, prefix = parts[name], f'{prefix}{name}.'
