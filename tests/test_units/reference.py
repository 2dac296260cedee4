"""Brute-force reference: what a network without some channels should compute.

Written from the definition and independent of the package's own check: every producer and
follower of a removed channel gives 0 for it, by a hook on its output. Layer and group normalisation
run over the kept channels of each group in plain sums.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmprune_ext.ops import ZeroPadShortcut
from mmprune_ext.units import UnitSet


def choose(units: UnitSet, seed: int, fewest: int = 1) -> None:
    """Keep random channels of every prunable unit, from ``fewest`` to all but one."""
    generator = np.random.default_rng(seed)
    for unit in units.prunable.values():
        low = min(fewest, unit.num_channels - 1)
        keep = generator.integers(low, unit.num_channels)
        unit.choose(generator.permutation(unit.num_channels)[:keep].tolist())


def silenced(dense: nn.Module, units: UnitSet) -> nn.Module:
    """Return a copy of the dense model in which the removed channels are 0 everywhere."""
    model = copy.deepcopy(dense)
    gone: dict[tuple[str, int | None], list[int]] = {}
    for unit in units.values():
        kept = range(unit.num_channels) if unit.indices is None else unit.indices
        removed = [c for c in range(unit.num_channels) if c not in kept]
        for member in [*unit.producers, *unit.followers]:
            places = member.positions(unit.num_channels)[removed].ravel().tolist()
            gone.setdefault((member.module, member.dim), []).extend(places)
    for (path, dim), places in gone.items():
        if places and dim is not None:
            index = torch.tensor(places)
            tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
            tensors[path].data.index_fill_(dim, index, 0)
        elif places:
            layer = model.get_submodule(path)
            layer.register_forward_hook(_hook(layer, places))
            if isinstance(layer, (nn.Linear, nn.Conv2d)):  # code may compute with the weight itself
                for parameter in filter(lambda p: p is not None, (layer.weight, layer.bias)):
                    parameter.data[places] = 0
    return model


def _hook(layer: nn.Module, places: list[int]) -> Callable[..., Tensor]:
    removed = torch.tensor(sorted(set(places)))
    if isinstance(layer, (nn.LayerNorm, nn.GroupNorm)) or type(layer).__name__ == 'HorNetLayerNorm':
        return lambda module, args, out: _kept_norm(module, args[0], out, removed)
    if isinstance(layer, (nn.modules.conv._ConvNd)):
        from_end = len(layer.kernel_size) + 1
        return lambda module, args, out: out.index_fill(out.dim() - from_end, removed, 0)
    if isinstance(layer, nn.Linear):
        return lambda module, args, out: out.index_fill(out.dim() - 1, removed, 0)
    known = (nn.modules.batchnorm._NormBase, nn.PReLU, ZeroPadShortcut)
    if type(layer).__name__ == 'TridentConv':
        return lambda module, args, outs: [out.index_fill(1, removed, 0) for out in outs]
    by_name = {'DeformConv2d', 'ModulatedDeformConv2d', 'SingleRoIExtractor', 'SinePositionalEncoding'}
    assert isinstance(layer, known) or by_name & {cls.__name__ for cls in type(layer).__mro__}
    return lambda module, args, out: out.index_fill(1, removed, 0)


def _kept_norm(module: nn.Module, x: Tensor, out: Tensor, removed: Tensor) -> Tensor:
    """Normalise over the kept channels of the dimension that the layer normalises over."""
    if isinstance(module, nn.GroupNorm):
        return _norm(module, x, 1, removed.tolist())
    count = module.normalized_shape[0]
    # A layer may take channels first or last: the one that gives what it gave.
    for dim in (x.dim() - 1, 1):
        if x.shape[dim] == count and torch.allclose(_norm(module, x, dim, []), out, atol=1e-4):
            return _norm(module, x, dim, removed.tolist())
    raise AssertionError('this layer does not normalise over one dimension')


def _norm(module: nn.Module, x: Tensor, channel: int, removed: list[int]) -> Tensor:
    """Normalise each group (one group for layer normalisation), with 0 for removed channels."""
    grouped = isinstance(module, nn.GroupNorm)
    count = module.num_channels if grouped else module.normalized_shape[0]
    y, source = torch.zeros_like(x).movedim(channel, 0), x.movedim(channel, 0)
    groups = module.num_groups if grouped else 1
    dims = tuple(d for d in range(x.dim()) if not (grouped and d == 1))  # dim 1 is now the batch
    for members in torch.arange(count).view(groups, -1):
        kept = torch.tensor([c for c in members.tolist() if c not in removed], dtype=torch.long)
        if not len(kept):
            continue
        part = source[kept]
        over = dims if grouped else (0,)
        mean = part.mean(over, keepdim=True)
        variance = ((part - mean) ** 2).mean(over, keepdim=True)
        part = (part - mean) / torch.sqrt(variance + module.eps)
        shape = (-1,) + (1,) * (x.dim() - 1)
        if module.weight is not None:
            part = part * module.weight[kept].view(shape)
        if module.bias is not None:
            part = part + module.bias[kept].view(shape)
        y[kept] = part
    return y.movedim(0, channel)


def outputs_of(value: Any) -> list[Tensor]:
    """Return the tensors of a toy net's output in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for part in value.values() for t in outputs_of(part)]
    if isinstance(value, (list, tuple)):
        return [t for part in value for t in outputs_of(part)]
    slots = getattr(value, '__slots__', ())
    return [t for name in slots for t in outputs_of(getattr(value, name))]


def assert_close(got: list[Tensor], want: list[Tensor], tolerance: float) -> None:
    """Assert that two lists of outputs agree, relative to the largest value of each."""
    assert want, 'no output to compare'
    assert [t.shape for t in got] == [t.shape for t in want]
    for a, b in zip(got, want, strict=True):
        scale = max(float(b.abs().max()), 1e-3)
        assert float((a - b).abs().max()) / scale <= tolerance


def training_step(model: nn.Module, loss: Tensor) -> None:
    """Do one SGD step and assert that it moved the trainable parameters that it reached."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.SGD(parameters, lr=0.01)
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss)
    reached = [(p, old) for p, old in zip(parameters, before, strict=True) if p.grad is not None]
    assert reached
    moved = sum(not torch.equal(p, old) for p, old in reached)
    assert moved >= len(reached) // 2
    assert all(p.grad.shape == p.shape for p, _ in reached)
