"""Which form of a convolution that has lost stripes is the faster one, measured."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
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

# Of two forms that are as good as equal in one layer, dense is kept: the other could lose in the whole model.
CLEARLY = 0.97
# A layer of large maps is measured no longer than this, in milliseconds, once each form has run FEWEST times.
BUDGET_MS, FEWEST = 200.0, 5

Sizes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class FormTimes:
    """The form chosen for a layer, and what both take.

    Attributes:
        form: `dense` or `stripes`, as of :class:`mmprune_ext.ops.StripeConv2d`.
        dense_ms: Median milliseconds of the layer's share of one inference pass, in its dense form; 0 if it takes
            no part in it, or has no stripe left.
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

    Both forms run in turn, alone, on noise of the shapes that the layer sees in one inference pass, where the
    parameters are and with the present number of threads. Then the model in the forms chosen runs in turn with the
    model all dense: if it is not faster, all layers stay dense.

    Args:
        model: Any module, on the device that counts.
        demo_inputs: As of :func:`mmprune_ext.analysis.complexity`.
        batch_size: Samples per pass.
        repeats: Timed runs of each form, at most; fewer where these take long.

    Raises:
        PruningError: If the model does not run on the input.
    """
    layers = {path: layer for path, layer in model.named_modules() if isinstance(layer, StripeConv2d)}
    chosen = {path: FormTimes('dense', 0.0, 0.0) for path in layers}
    with untouched(model):
        for path, sizes in _input_sizes(model, layers, demo_inputs, batch_size).items():
            if layers[path].weight is not None:
                chosen[path] = _measure(layers[path], sizes, repeats)
    if all(times.form == 'dense' for times in chosen.values()):
        return chosen
    dense, mixed = _in_forms(model, {}), _in_forms(model, chosen)
    if compare_latency(dense, mixed, demo_inputs, batch_size, repeats).speedup > 1:
        return chosen
    return {path: replace(times, form='dense') for path, times in chosen.items()}


def _input_sizes(model: nn.Module, layers: Mapping[str, StripeConv2d], demo_inputs: DemoInputs,
                 batch_size: int) -> dict[str, Sizes]:
    """Return the input shape of each call of each layer in one pass, by path."""
    sizes: dict[str, Sizes] = {}

    def note(path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            sizes[path] = (*sizes.get(path, ()), tuple(args[0].shape))
        return hook
    handles = [layer.register_forward_pre_hook(note(path)) for path, layer in layers.items()]
    try:
        inference_pass(model, demo_inputs, batch_size).run(model)
    finally:
        for handle in handles:
            handle.remove()
    return sizes


def _measure(layer: StripeConv2d, sizes: Sizes, repeats: int) -> FormTimes:
    """Return the faster form of one layer."""
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(size, generator=generator).to(layer.weight) for size in sizes]
    forms = {form: copy.deepcopy(layer) for form in ('dense', 'stripes')}
    times: dict[str, list[float]] = {form: [] for form in forms}
    for form, copied in forms.items():
        copied.set_form(form)
        _milliseconds(copied, inputs)  # the first run allocates
    for turn in range(repeats):
        # The order alternates: the second of a pair may find the input in the cache.
        for form in list(forms)[::1 if turn % 2 else -1]:
            times[form].append(_milliseconds(forms[form], inputs))
        if turn + 1 >= FEWEST and sum(map(sum, times.values())) > BUDGET_MS:
            break
    dense, stripes = (float(np.median(times[form])) for form in ('dense', 'stripes'))
    return FormTimes('stripes' if stripes < CLEARLY * dense else 'dense', dense, stripes)


def _milliseconds(layer: nn.Module, inputs: list[Tensor]) -> float:
    on_gpu = inputs[0].device.type == 'cuda'
    if on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    for x in inputs:
        layer(x)
    if on_gpu:
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e3


def _in_forms(model: nn.Module, chosen: Mapping[str, FormTimes]) -> nn.Module:
    """Return a copy of a model in the forms chosen, dense elsewhere."""
    model = copy.deepcopy(model)
    for path, layer in model.named_modules():
        if isinstance(layer, StripeConv2d):
            layer.set_form(chosen[path].form if path in chosen else 'dense')
    return model
