"""Measure the metrics of several forms of a model in one pass over the data."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger, print_log
from mmengine.model import BaseModel
from mmengine.runner import set_random_seed
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from mmprune_ext.compact.forms import Form, Forms
from mmprune_ext.draws import Draws
from mmprune_ext.evaluation.copies import Copies
from mmprune_ext.evaluation.replay import Replay
from mmprune_ext.evaluation.validation import Validation


class Meter:
    """Measure forms of a model as a plain evaluation of each would.

    Each batch is read once for all forms. What is the same in all of them is computed once
    (:class:`mmprune_ext.evaluation.replay.Replay`); on the first batch the last form is run whole as well, and if
    that does not give the same to the last bit, every pass is run whole from there.

    Args:
        model: The model, in eval mode on its device.
        validation: The samples.
        sharing: Whether to compute once what is the same.

    Attributes:
        sharing: The same; ``False`` once it was seen not to work.
    """

    def __init__(self, model: nn.Module, validation: Validation, sharing: bool = True) -> None:
        self.model = model
        self.validation = validation
        self.sharing = sharing
        self.forms = Forms(model)
        self._replay = Replay(model)
        self._evaluators: list[Evaluator] = []

    def measure(self, forms: Sequence[Form], advance: Callable[[], None] = lambda: None) -> list[dict[str, float]]:
        """Return the metrics of each form, as the evaluator names them; what is no number is left out.

        Args:
            forms: The forms.
            advance: Called after each batch of each form.
        """
        with quiet():
            while len(self._evaluators) < len(forms):
                self._evaluators.append(self.validation.evaluator())
        evaluators = self._evaluators[:len(forms)]
        for evaluator in evaluators:  # what an interrupted measurement has left
            for metric in evaluator.metrics:
                metric.results.clear()
        try:
            with torch.no_grad(), self._replay.installed():
                for number, batch in enumerate(self.validation.batches):
                    set_random_seed(number)
                    prepared = _Prepared(self.model, f'{self.validation.split}_step', batch)
                    for place, form in enumerate(forms):
                        self.forms.take(form)
                        own, outputs = self._outputs(number, prepared, forms, place)
                        evaluators[place].process(data_samples=outputs, data_batch=own)
                        advance()
        finally:
            self.forms.take(None)
        with quiet():
            return [numbers(evaluator.evaluate(self.validation.size)) for evaluator in evaluators]

    def _outputs(self, number: int, batch: _Prepared, forms: Sequence[Form], place: int) -> tuple[Any, Any]:
        """Return a batch of one form's own, and what the form gives for it."""
        own, run = batch.new()
        if not self.sharing or len(forms) == 1:
            return own, run()
        if place == 0:
            modules = set().union(*(form.modules for form in forms))
            return own, self._replay.record(run, modules, _differing_tensors(forms))
        outputs = self._replay.replay(run)
        checked = number == 0 and place == len(forms) - 1
        if self._replay.trusted and not checked:
            return own, outputs
        whole, run = batch.new()
        truth = run()
        if not self._replay.trusted or not _same(outputs, truth):
            self.sharing = False
            self._replay.forget()
            print_log(f'{type(self.model).__name__} does not run the same way twice: every pass is computed whole',
                      logger='current')
        return whole, truth


class _Prepared:
    """A batch that went through the model's data preprocessor, which is the same in all forms.

    Args:
        model: The model.
        step: ``val_step`` or ``test_step``. If the model's own is not that of mmengine, all of it is run each time.
        batch: The batch, which may be changed.
    """

    def __init__(self, model: nn.Module, step: str, batch: Any) -> None:
        self._model, self._step = model, step
        self._plain = getattr(type(model), step) is getattr(BaseModel, step)
        data = model.data_preprocessor(batch, False) if self._plain else None
        self._copies, self._draws = Copies((batch, data)), Draws.now()

    def new(self) -> tuple[Any, Callable[[], Any]]:
        """Return a copy of the batch, and what runs the model on it; each draws the same random numbers."""
        batch, data = self._copies.new()
        self._draws.put_back()
        if self._plain:
            return batch, lambda: self._model._run_forward(data, mode='predict')
        return batch, lambda: getattr(self._model, self._step)(batch)


def _differing_tensors(forms: Sequence[Form]) -> list[Tensor]:
    """Return the tensors that the first form has where any of the forms differ."""
    first, places = forms[0], dict.fromkeys(place for form in forms for place in form.values)
    owners = {place: form for form in reversed(forms) for place in form.values}
    values = [first.values[place] if place in first.values else owners[place].own[place] for place in places]
    return [value for value in values if isinstance(value, Tensor)]


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()
            if isinstance(value, (int, float, np.number)) or (isinstance(value, Tensor) and value.numel() == 1)}


def _same(first: Any, second: Any) -> bool:
    """Whether two outputs of a model are the same to the last bit; NaN is the same as NaN."""
    if isinstance(first, BaseDataElement):
        return isinstance(second, BaseDataElement) and _same(first.to_dict(), second.to_dict())
    if type(first) is not type(second):
        return False
    if isinstance(first, (Tensor, np.ndarray)):
        return first.shape == second.shape and bool(
            ((first == second) | ((first != first) & (second != second))).all())
    if isinstance(first, Mapping):
        return first.keys() == second.keys() and all(_same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(_same, first, second))
    if isinstance(first, (int, float, str)):
        return first == second or first != first
    return True  # nothing that a metric reads


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the tables that metrics print and log, one for each measurement, from the terminal."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
