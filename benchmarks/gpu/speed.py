"""How long steps and passes take on a device, beside those of the dense network."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import nn

from benchmarks.gpu.bench import SIZE, Bench
from benchmarks.gpu.checks import SETTINGS
from benchmarks.gpu.compare import computing_on
from benchmarks.gpu.results import DONE
from benchmarks.networks import read
from benchmarks.steps import step_of
from benchmarks.stripe import with_stripes
from mmprune_ext.units.demo_inputs import image_size_from_config

Runs = Mapping[str, Callable[[], object]]
HALF = 0.5  # of the FLOPs stay in a compact network
DENSITY = 0.25  # of the stripes


def median_ms(runs: Runs, device: str, repeats: int) -> dict[str, float]:
    """Return the milliseconds of each run, medians over rounds in which all run in turn, after two to warm up.

    On a GPU they are taken between events, which lie in its own queue: what the processor does meanwhile counts only
    where the GPU waits for it.
    """
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 2):
        for name, run in runs.items():
            elapsed = _elapsed_ms(run, device)
            if turn > 1:
                spent[name].append(elapsed)
    return {name: statistics.median(values) for name, values in spent.items()}


def _elapsed_ms(run: Callable[[], object], device: str) -> float:
    if not device.startswith('cuda'):
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) * 1e3
    torch.cuda.synchronize()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def beside_first(times: Mapping[str, float]) -> dict[str, str]:
    """Return times as text, each with its ratio to the first."""
    first = next(iter(times.values()))
    return {name: f'{value:.3g} ms ({value / first:.2f})' for name, value in times.items()}


def steps(bench: Bench, network: str, models: Mapping[str, nn.Module], size: tuple[int, int],
          batch: int) -> Mapping[str, Any]:
    """Time training steps."""
    inputs = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0)).to(bench.device)
    runs = {name: step_of(model.to(bench.device), inputs) for name, model in models.items()}
    times = median_ms(runs, bench.device, bench.sizes.repeats)
    return {'status': DONE, 'text': f'{network}, training step, batch {batch}, to dense', 'ms': times,
            'numbers': beside_first(times)}


def small_steps(bench: Bench) -> Mapping[str, Any]:
    """Time steps of the CIFAR network: dense, and as each method trains it."""
    models = {'dense': bench.dense(), **{kind: bench.pruning(kind, **SETTINGS[kind]) for kind in SETTINGS}}
    return steps(bench, bench.sizes.network, ready(models), SIZE, bench.sizes.batch)


def large_steps(bench: Bench) -> Mapping[str, Any]:
    """Time steps of the large network."""
    name, batch = bench.sizes.large
    config = read(name)
    size = image_size_from_config(config)

    def made(kind: str | None) -> nn.Module:
        torch.manual_seed(0)
        section = config.model.to_dict()
        if kind is not None:
            section = {'type': f'mmprune_ext.{kind}', 'architecture': section, **SETTINGS[kind]}
            mutator = MODELS.get(section['type']).mutator_type
            section['mutator'] = {'type': mutator, 'demo_inputs': size}
            if kind == 'L1Norm':
                section['from_scratch'] = True  # what its weights are does not matter for time
        model = MODELS.build(section)
        model.init_weights()
        return model
    return steps(bench, name, ready({kind or 'dense': made(kind) for kind in (None, *SETTINGS)}), size, batch)


def ready(models: Mapping[str, nn.Module]) -> Mapping[str, nn.Module]:
    """Return models that can be trained without their hooks."""
    models['DCFF'].update_fusion(50, 100)
    models['ChipNet'].set_step(5)
    models['StripeWise'].scheduled = True
    return models


def passes(bench: Bench, network: str, dense: nn.Module, compact: nn.Module, size: tuple[int, int],
           batch: int) -> Mapping[str, Any]:
    """Time inference of a dense and a compact network: as they are, channels last, in float16, and both."""
    inputs = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0)).to(bench.device)
    runs = {}
    for layout, memory in (('', torch.contiguous_format), (' channels last', torch.channels_last)):
        for kind, model in (('dense', dense), ('compact', compact)):
            own = copy.deepcopy(model).to(bench.device).to(memory_format=memory).eval()
            x = inputs.to(memory_format=memory)
            runs[f'{kind}{layout}'] = partial(_infer, own, x, bench.device, False)
            if bench.device.startswith('cuda'):  # what a CPU does with bfloat16 says nothing of a GPU
                runs[f'{kind}{layout} half'] = partial(_infer, own, x, bench.device, True)
    times = median_ms(runs, bench.device, bench.sizes.repeats)
    ratios = {name.replace('dense', '').strip() or 'plain': value / times[name.replace('dense', 'compact')]
              for name, value in times.items() if name.startswith('dense')}
    return {'status': DONE, 'text': f'{network}, {HALF:.0%} of the FLOPs, inference, batch {batch}', 'ms': times,
            'numbers': {name: f'{times["dense" if name == "plain" else f"dense {name}"]:.3g} ms, compact '
                              f'{times["compact" if name == "plain" else f"compact {name}"]:.3g} ms, {ratio:.2f} times '
                              'as fast' for name, ratio in ratios.items()}}


@torch.no_grad()
def _infer(model: nn.Module, inputs: torch.Tensor, device: str, half: bool) -> object:
    with torch.autocast(torch.device(device).type, enabled=half, dtype=torch.float16 if half else None):
        return model(inputs, mode='tensor')


def small_passes(bench: Bench, batch: int) -> Mapping[str, Any]:
    """Time inference of the CIFAR network."""
    compact = bench.pruning('L1Norm', budget={'flops': HALF, 'input_size': SIZE}).export_model()
    return passes(bench, bench.sizes.network, bench.dense(), compact, SIZE, batch)


def large_passes(bench: Bench, batch: int) -> Mapping[str, Any]:
    """Time inference of the large network."""
    name, _ = bench.sizes.large
    config = read(name)
    size = image_size_from_config(config)
    dense = MODELS.build(config.model.to_dict())
    dense.init_weights()
    compact = MODELS.build({
        'type': 'mmprune_ext.L1Norm', 'architecture': copy.deepcopy(dense),
        'mutator': {'type': 'mmprune_ext.L1Mutator', 'demo_inputs': size},
        'budget': {'flops': HALF, 'input_size': size}}).export_model()
    return passes(bench, name, dense, compact, size, batch)


def stripes(bench: Bench, batch: int) -> Mapping[str, Any]:
    """Time a network that has lost stripes at random, in both forms of its layers."""
    name = bench.sizes.stripes
    model = MODELS.build(read(name).model.to_dict())
    models = with_stripes(model.eval(), DENSITY)
    inputs = torch.randn(batch, 3, *SIZE, generator=torch.Generator().manual_seed(0)).to(bench.device)
    runs = {kind: partial(_infer, each.to(bench.device).eval(), inputs, bench.device, False)
            for kind, each in models.items()}
    times = median_ms(runs, bench.device, bench.sizes.repeats)
    return {'status': DONE, 'text': f'{name}, {DENSITY:.0%} of the stripes, inference, batch {batch}, to plain '
            'convolutions', 'ms': times, 'numbers': beside_first(times)}


def on_device(measure: Callable[[Bench], Mapping[str, Any]]) -> Callable[[Bench], Mapping[str, Any]]:
    """Return a measurement that computes on the device, with TF32 as torch sets it."""
    def run(bench: Bench) -> Mapping[str, Any]:
        with computing_on(bench.device):
            return measure(bench)
    return run


def measures(bench: Bench) -> Mapping[str, Callable[[Bench], Mapping[str, Any]]]:
    """Return all measurements by name."""
    single, many = bench.sizes.passes
    found = {'steps': small_steps}
    for batch in (single, many):
        found[f'inference, batch {batch}'] = partial(small_passes, batch=batch)
        found[f'stripes, batch {batch}'] = partial(stripes, batch=batch)
    if bench.sizes.large is not None:
        found['steps, large'] = large_steps
        found.update({f'inference, large, batch {batch}': partial(large_passes, batch=batch)
                      for batch in (single, many)})
    return {name: on_device(measure) for name, measure in found.items()}
