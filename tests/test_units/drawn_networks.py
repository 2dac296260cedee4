"""Networks drawn by hypothesis: programs of the steps that the tracer knows.

A program is a list of steps, each a list of whole numbers. The first numbers say which feature map the step takes and
which step it is, the others what it decides; a step that has run out of numbers takes its first option. So any list of
lists is a network, and hypothesis makes a failing one smaller by leaving out steps and lowering numbers.
"""

from __future__ import annotations

from hypothesis import strategies as st

# The steps register themselves when they are imported.
from tests.test_units import drawn_images, drawn_sequences  # noqa: F401
from tests.test_units.drawn_base import Draft, Drawn


def network(program: list[list[int]]) -> Drawn:
    """Return the network of a program."""
    draft = Draft()
    drawn_images.stem(draft)
    for numbers in program:
        draft.step(numbers)
    return draft.finish()


def networks(most_steps: int = 10) -> st.SearchStrategy[Drawn]:
    """Return a strategy for networks of one to some steps."""
    numbers = st.lists(st.integers(0, 719), min_size=2, max_size=9)
    return st.lists(numbers, min_size=1, max_size=most_steps).map(network)
