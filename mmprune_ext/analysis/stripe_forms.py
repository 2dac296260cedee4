"""Which form of a convolution that has lost stripes is the faster one, measured."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmprune_ext.analysis.latency import compare_latency
from mmprune_ext.analysis.passes import inference_pass
from mmprune_ext.analysis.preserve import untouched
from mmprune_ext.ops import StripeConv2d
from mmprune_ext.units.demo_inputs import DemoInputs

# A form that is as good as equal is not worth it: the next measurement may say the opposite.
CLEARLY = 0.97
# Large models are measured no longer than that, in seconds, once each form has run FEWEST times.
BUDGET_S, FEWEST = 4.0, 5


@dataclass(frozen=True)
class FormTimes:
    """The form chosen for a layer, and what both take.

    Attributes:
        form: ``dense`` or ``stripes``, as of :class:`mmprune_ext.ops.StripeConv2d`.
        dense_ms: Median milliseconds that the layer takes of one inference pass in its dense form; 0 if it takes no
            part in it, or has no stripe left.
        stripes_ms: The same of the other form.
    """

    form: str
    dense_ms: float
    stripes_ms: float

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain values for JSON."""
        return asdict(self)


def fastest_forms(model: nn.Module, demo_inputs: DemoInputs = None, batch_size: int = 1,
                  repeats: int = 25) -> dict[str, FormTimes]:
    """Return the faster form of each convolution of a model that has lost stripes; the model stays as it was.

    The model runs in turn with all these layers dense and with all in stripes, where its parameters are and with the
    present number of threads; each layer's time is taken in these passes, as it finds the caches there. Then the model
    in the forms chosen runs in turn with the model all dense: if it is not faster, all layers stay dense.

    Args:
        model: Any module, on the device that counts.
        demo_inputs: As of :func:`mmprune_ext.analysis.complexity`.
        batch_size: Samples per pass.
        repeats: Timed passes of each kind, at most; fewer where these take long.

    Raises:
        PruningError: If the model does not run on the input.
    """
    layers = _layers(model)
    chosen = {path: FormTimes('dense', 0.0, 0.0) for path in layers}
    if all(layer.weight is None for layer in layers.values()):
        return chosen
    models = {form: _in_form(model, form) for form in ('dense', 'stripes')}
    times, turns = _measure(models, demo_inputs, batch_size, repeats)
    for path, by_form in times.items():
        if layers[path].weight is not None:
            dense, stripes = (float(np.median(by_form[form])) for form in ('dense', 'stripes'))
            chosen[path] = FormTimes('stripes' if stripes < CLEARLY * dense else 'dense', dense, stripes)
    mixed = models['stripes']
    for path, layer in _layers(mixed).items():
        layer.set_form(chosen[path].form)
    if any(times.form == 'stripes' for times in chosen.values()) and compare_latency(
            models['dense'], mixed, demo_inputs, batch_size, turns, 1).speedup > 1:
        return chosen
    return {path: replace(times, form='dense') for path, times in chosen.items()}


def _layers(model: nn.Module) -> dict[str, StripeConv2d]:
    return {path: layer for path, layer in model.named_modules() if isinstance(layer, StripeConv2d)}


def _in_form(model: nn.Module, form: str) -> nn.Module:
    model = copy.deepcopy(model)
    for layer in _layers(model).values():
        layer.set_form(form)
    return model


def _measure(models: dict[str, nn.Module], demo_inputs: DemoInputs, batch_size: int,
             repeats: int) -> tuple[dict[str, dict[str, list[float]]], int]:
    """Return the milliseconds of each layer in each pass, by path and form, and how many passes there were."""
    times: dict[str, dict[str, list[float]]] = {}
    start, turn = time.perf_counter(), 0
    with untouched(*models.values()):
        passes = {form: inference_pass(model, demo_inputs, batch_size) for form, model in models.items()}
        for form, model in models.items():
            passes[form].run(model)  # the first pass allocates
        while turn < repeats and (turn < FEWEST or time.perf_counter() - start < BUDGET_S):
            # The order alternates: the second of a pair may find a warmer processor.
            for form in list(models)[::1 if turn % 2 else -1]:
                with _timed_layers(models[form]) as spent:
                    passes[form].run(models[form])
                for path, milliseconds in spent.items():
                    times.setdefault(path, {}).setdefault(form, []).append(milliseconds)
            turn += 1
    return times, turn


@contextlib.contextmanager
def _timed_layers(model: nn.Module) -> Iterator[dict[str, float]]:
    """Add up, in the block, the milliseconds that each layer with stripes takes, by path."""
    spent: dict[str, float] = {}
    handles = []
    for path, layer in _layers(model).items():
        def start(module: nn.Module, args: tuple[Tensor, ...], path: str = path) -> None:
            spent[path] = spent.get(path, 0.0) - _now(module.keep.device)

        def stop(module: nn.Module, args: tuple[Tensor, ...], output: Tensor, path: str = path) -> None:
            spent[path] += _now(module.keep.device)
        handles += [layer.register_forward_pre_hook(start), layer.register_forward_hook(stop, prepend=True)]
    try:
        yield spent
    finally:
        for handle in handles:
            handle.remove()


def _now(device: torch.device) -> float:
    """Return the time in milliseconds when a device has done what it was told."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter() * 1e3
