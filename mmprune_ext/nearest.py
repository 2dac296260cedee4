"""The names that a user may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], number: int = 3, cutoff: float = 0.6) -> list[str]:
    """Return the names that are nearest to one, whatever their case, the nearest first.

    Args:
        name: What was given.
        known: What there is.
        number: How many to return at most.
        cutoff: The least likeness, from 0 to 1 (:func:`difflib.get_close_matches`).
    """
    by_case: dict[str, list[str]] = {}
    for other in known:
        by_case.setdefault(other.lower(), []).append(other)
    found = difflib.get_close_matches(name.lower(), by_case, n=number, cutoff=cutoff)
    return [other for folded in found for other in by_case[folded]][:number]


def did_you_mean(name: str, known: Iterable[str], number: int = 3, cutoff: float = 0.6) -> str:
    """Return a question for the end of a message, ``'; did you mean a, b?'``; empty where nothing is near."""
    near = nearest(name, known, number, cutoff)
    return f'; did you mean {", ".join(near)}?' if near else ''
