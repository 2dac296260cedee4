"""Whether a checkpoint may run code when it is read: only one that the user trusts.

A checkpoint is a pickle, which can name any function to call. Unless it is trusted, it is read by torch's
``weights_only``, which knows tensors, plain values and what is allowed by name. mmengine tries that too, but then reads
whatever it is; a variable of torch's keeps it from that.
"""

import os
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager

TRUST = 'MMPRUNE_TRUST_CHECKPOINT'
FLAG = '--trust-checkpoint'
_FORCED, _NEVER_FORCED = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'
# What a file names beside what is allowed, in the words of torch's reader.
_NAMED = re.compile(r'Unsupported global: GLOBAL (.+?) was not|Unsupported global: GLOBAL (.+)|'
                    r'unsupported GLOBAL (\S+)|Unsupported class (\S+)|unrecognized function (.+?)(?: which|$)|'
                    r'`add_safe_globals` but got (.+)')


def is_trusted() -> bool:
    """Whether the user has said that checkpoints may run code."""
    return os.environ.get(TRUST) == '1'


def refused_name(error: BaseException) -> str | None:
    """Return what a checkpoint names that it may not, by the error of reading it; ``None`` for another error."""
    found = _NAMED.search(' '.join(str(error).split())) if isinstance(error, pickle.UnpicklingError) else None
    return found and next(filter(None, found.groups())).split('. ')[0]


@contextmanager
def checkpoints(trust: bool = False) -> Iterator[None]:
    """Let no checkpoint run code in this block, by whoever reads it, and in processes that it starts.

    Args:
        trust: Allow it in the block.
    """
    if trust:
        changes = {TRUST: '1'}
    else:
        changes = {} if is_trusted() or os.environ.get(_NEVER_FORCED) else {_FORCED: '1'}
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
