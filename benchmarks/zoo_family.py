"""Prune one family of the zoos by half of all channels, and compare it with the dense model without these channels."""

from __future__ import annotations

import copy
import importlib.util
import json
import runpy
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.machine import memory, timed
from benchmarks.networks import FAMILIES, built, source
from mmprune_ext.atomic import atomic_write
from mmprune_ext.compact.compact_model import build_architecture
from mmprune_ext.errors import PruningError
from mmprune_ext.settings import reading
from mmprune_ext.settings.libraries import library_config
from mmprune_ext.units import UnitSet, slim, trace_units
from mmprune_ext.units.demo_inputs import eval_pass, tracing_inputs
from mmprune_ext.units.labels import tensors_in
from mmprune_ext.units.parameters.copies import copied

ROOT = Path(__file__).resolve().parents[1]
# Relative to the largest value of an output: float32 rounding through a hundred layers, and float64's.
SINGLE, DOUBLE = 1e-4, 1e-9


def read(family: Mapping[str, Any], scope: str = 'all') -> Config:
    """Return the config of a family, to be measured in a scope.

    One that is written in plain Python imports its bases from ``mmpose.configs``, which an installed mmpose lacks:
    there they lie in another folder.
    """
    if 'builder' in family:
        config = built(family, scope)
        reading.make_known(config)
        return config
    for name in family.get('imports', ()):  # which the config leaves to its user
        importlib.import_module(name)
    options = family.get('cfg_options', {})
    package = family['config'].partition('::')[0]
    init_default_scope(package)  # for configs that do not say it
    if not family.get('plain_python'):
        return reading.read_config(family['config'], options)
    path = library_config(family['config'])
    bases = ModuleType(f'{package}.configs')
    bases.__path__ = [str(next(parent for parent in path.parents if parent.name == 'configs'))]
    sys.modules.setdefault(bases.__name__, bases)
    values = {key: value for key, value in runpy.run_path(str(path)).items()
              if not key.startswith('_') and isinstance(value, (dict, list, tuple, str, int, float))}
    config = Config(values)
    config.merge_from_dict(options)
    return config


def measure(name: str, scope: str) -> dict[str, Any]:
    """Trace a family, remove half of each unit's channels and compare; returns what was seen.

    Args:
        name: The family.
        scope: ``backbone`` or ``all``.
    """
    family = FAMILIES[name]
    config = read(family, scope)
    torch.manual_seed(0)
    # A copy holds no activations that belong to a graph, of which there is none.
    model = copied(build_architecture(config.model, config.get('data_preprocessor')))
    inputs = tracing_inputs(config, family.get('size'))
    units, spent = timed(lambda: trace_units(model, inputs, scope=scope))
    part = model.get_submodule('backbone') if scope == 'backbone' and hasattr(model, 'backbone') else model
    before = sum(parameter.numel() for parameter in part.parameters())
    found: dict[str, Any] = {
        'inputs': str(inputs) if not isinstance(inputs, Tensor) else str(tuple(inputs.shape)),
        'seconds': round(spent.wall, 2), 'cpu_seconds': round(spent.cpu, 2), 'gigabytes': _peak(),
        'units': len(units), 'prunable': len(units.prunable), 'parameters': before,
        'reasons': dict(Counter(unit.reason.name for unit in units.values() if not unit.prunable))}
    halve(units)
    slimmed = slim(copy.deepcopy(model), units)
    part = slimmed.get_submodule('backbone') if part is not model else slimmed
    found['removed'] = round(1 - sum(parameter.numel() for parameter in part.parameters()) / before, 4)
    del slimmed, part
    return {**found, **compare(model, units, inputs)}


def halve(units: UnitSet) -> None:
    """Choose half of the channels of each prunable unit, drawn at random."""
    generator = np.random.default_rng(3)
    for unit in units.prunable.values():
        unit.choose(generator.permutation(unit.num_channels)[:unit.kept_number(0.5)].tolist())


def compare(model: nn.Module, units: UnitSet, inputs: Any) -> dict[str, Any]:
    """Compare a slimmed model with the dense one in which the same channels are silenced.

    The silenced model is that of the tests, written from the definition and independent of the package's own check.
    In float64 where the outputs differ by more than float32 rounding.
    """
    model.eval()
    torch.manual_seed(1)
    forward = eval_pass(model, inputs)
    settle(model, forward)
    error, tolerance = _difference(model, units, forward), SINGLE
    if error > tolerance and hasattr(forward, 'images'):
        torch.set_default_dtype(torch.float64)
        forward = replace(forward, images=forward.images.double())
        error, tolerance = _difference(model.double(), units, forward), DOUBLE
    return {'error': error, 'same': bool(error <= tolerance), 'double': tolerance == DOUBLE}


def settle(model: nn.Module, forward: Callable[[nn.Module], Any]) -> None:
    """Make all layers count: values of order one for what is initialised by 0 and 1, statistics that fit the maps."""
    for parameter in model.parameters():
        if parameter.dim() < 2 or parameter.shape[0] == 1:
            parameter.data.uniform_(0.5, 1.5)
        elif not parameter.any():  # a last layer of zeros gives the same whatever it reads
            parameter.data.normal_(0, 0.1)
    handles = [module.register_forward_pre_hook(_take_statistics) for module in model.modules()
               if isinstance(module, _BatchNorm) and module.track_running_stats]
    try:
        with torch.no_grad():
            forward(model)
    finally:
        for handle in handles:
            handle.remove()


def _take_statistics(norm: nn.Module, args: Sequence[Any]) -> None:
    values = args[0].transpose(0, 1).flatten(1)
    if values.shape[1] > 3:
        norm.running_mean.copy_(values.mean(1))
        norm.running_var.copy_(values.var(1).clamp_min(0.1))


def _difference(model: nn.Module, units: UnitSet, forward: Callable[[nn.Module], Any]) -> float:
    """Return the largest difference of two models' outputs, relative to the largest value of each."""
    first, second = (_outputs(each, forward) for each in (
        _reference().silenced(model, units), slim(copy.deepcopy(model), units)))
    if not first or [value.shape for value in first] != [value.shape for value in second]:
        return float('inf')
    errors = [float((one - two).abs().max() / one.abs().max().clamp_min(1e-3)) for one, two in zip(first, second)
              if one.numel() and one.is_floating_point()]
    worst = max(errors, default=float('inf'))
    return worst if worst == worst else float('inf')


def _outputs(model: nn.Module, forward: Callable[[nn.Module], Any]) -> list[Tensor]:
    torch.manual_seed(5)
    with torch.no_grad():
        return tensors_in(forward(model))


def _reference() -> ModuleType:
    """Return the module of the tests that silences channels; "tests" may be the name of an installed package too."""
    spec = importlib.util.spec_from_file_location('reference', ROOT / 'tests' / 'test_units' / 'reference.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measure_peer(name: str, scope: str) -> dict[str, Any]:
    """Prune a family by Torch-Pruning's defaults; tells how much it removes and whether the result runs.

    It is given the images and the pass that this package traces. A classifier's last layer is left out.
    """
    import torch_pruning
    family = FAMILIES[name]
    config = read(family, scope)
    torch.manual_seed(0)
    model = build_architecture(config.model, config.get('data_preprocessor')).eval()
    forward = eval_pass(model, tracing_inputs(config, family.get('size')))
    images = forward.images
    if scope == 'backbone':
        net: nn.Module = model.backbone
        ignored: list[nn.Module] = []
    else:
        net = _OnImages(model, forward)
        ignored = [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]
        ignored = ignored if name.startswith('mmpretrain') else []
    before = sum(parameter.numel() for parameter in net.parameters())
    with torch.no_grad():
        shapes = [value.shape for value in tensors_in(net(images))]
    torch_pruning.pruner.BasePruner(net, images, importance=torch_pruning.importance.MagnitudeImportance(p=1),
                                    pruning_ratio=0.5, ignored_layers=ignored).step()
    with torch.no_grad():
        values = tensors_in(net.eval()(images))
    found = {'removed': round(1 - sum(parameter.numel() for parameter in net.parameters()) / before, 4),
             'finite': all(bool(torch.isfinite(value).all()) for value in values)}
    if scope == 'all':  # a backbone alone may well give fewer channels
        found['shapes'] = [value.shape for value in values] == shapes
    return found


class _OnImages(nn.Module):
    """A model that is called with images alone, as Torch-Pruning does it."""

    def __init__(self, model: nn.Module, forward: Any) -> None:
        super().__init__()
        self.model = model
        self.pass_ = forward

    def forward(self, images: Tensor) -> Any:
        """Return what the pass gives."""
        return replace(self.pass_, images=images)(self.model)


def _peak() -> float:
    return round(memory('VmHWM') / 1e6, 2)


def main() -> None:
    """Measure one family and write a file, also where it fails; arguments: family, scope, file, tool."""
    name, scope, path, tool = sys.argv[1:]
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    started = time.time()
    try:
        found = measure(name, scope) if tool == 'mmprune_ext' else measure_peer(name, scope)
        found['outcome'] = 'done'
    except Exception as error:  # a network may fail in any way; that is a result
        text = ' '.join(str(error).split())[:300]
        found = {'outcome': 'refused' if isinstance(error, PruningError) else 'failed',
                 'message': f'{type(error).__name__}: {text}'}
        traceback.print_exc()
    found = {'family': name, 'scope': scope, 'tool': tool, 'config': source(FAMILIES[name]), **found,
             'whole_seconds': round(time.time() - started, 1), 'peak_gigabytes': _peak()}
    atomic_write(json.dumps(found, indent=1), path)


if __name__ == '__main__':
    main()
