"""In which order the layers of a slimmed model can be repaired, found from one pass."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_flatten

from mmprune_ext.repair.watch import Tail, Viewer
from mmprune_ext.units.layer_matrix import LayerMatrix

TOLERANCE = 1e-3  # of a layer's outputs, relative to the largest, between the layer and the product with its weights


@dataclass(frozen=True)
class Event:
    """A place where all passes wait for each other.

    Attributes:
        kind: ``'layer'``: before a layer is called; ``'sum'``: before the last outputs of a branch are added to its
            shortcut; ``'block'``: before a module is called in which a layer is called several times.
        path: Of the layer or module; of the layer whose outputs are added. The empty path is the whole pass.
        alive: Bytes of activations for one image that a pass needs from there on, at this place or later.
    """

    kind: str
    path: str
    alive: float


@dataclass
class Plan:
    """What is repaired, and where the passes wait for it.

    Attributes:
        events: In order of execution.
        inside: By path of a block, the layers that are repaired in it.
        sums: By path of a layer whose outputs are added to a shortcut, the path of the normalisation between, if any.
        norms: By path of a layer, the batch normalisations that read its outputs.
        calls: How often each layer is called.
        skipped: Why a layer is not repaired, by path.
    """

    events: list[Event] = field(default_factory=list)
    inside: dict[str, list[str]] = field(default_factory=dict)
    sums: dict[str, str | None] = field(default_factory=dict)
    norms: dict[str, list[str]] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def single(self) -> set[str]:
        """The layers that are called once, outside of blocks."""
        return {event.path for event in self.events if event.kind == 'layer'}


class Recorder(Viewer):
    """See in one pass which layers are called when, and what becomes of their outputs.

    Args:
        model: The model that is run.
        layers: Paths of the layers to repair.
    """

    def __init__(self, model: nn.Module, layers: Collection[str]) -> None:
        self.modules = dict(model.named_modules())
        self.layers = set(layers)
        self.counts: Counter[str] = Counter()
        self.order: list[tuple[str, str, int]] = []
        self.stacks: dict[str, list[tuple[str, ...]]] = {}
        self.norms: dict[str, list[str]] = {}
        self.sums: dict[str, list[str | None]] = {}
        self.rivals: list[tuple[str, str]] = []
        self.read_elsewhere: set[str] = set()
        self.unlike: set[str] = set()
        self.images = 1
        self._stack: list[str] = []
        self._inputs: dict[str, tuple[weakref.ref, int]] = {}
        self._alive: list[weakref.ref] = []
        self._in_layer = False

    def call(self, path: str, forward: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        self.counts[path] += 1
        self.stacks.setdefault(path, []).append(tuple(self._stack))
        self.order.append(('call', path, self._bytes_alive()))
        tail = Tail.of(args[0]) if args and self._is_norm(path) else None
        if tail is not None and tail.norm is not None:
            tail = None
        is_layer, outer = path in self.layers, self._in_layer
        self._stack.append(path)
        self._in_layer = outer or is_layer or tail is not None
        if is_layer:
            x = input_of(args, kwargs)
            self._inputs[path] = weakref.ref(x), x._version
        output = forward(*args, **kwargs)
        self._in_layer = outer
        self._stack.pop()
        if is_layer and isinstance(output, Tensor):
            if path not in self.unlike and not _is_product(self.modules[path], x, output):
                self.unlike.add(path)
            Tail(path, None, output)
        elif tail is not None:
            if path not in self.norms.setdefault(tail.path, []):
                self.norms[tail.path].append(path)
            Tail(tail.path, path, output)
        self._note(output)
        return output

    def before_sum(self, first: Tensor, second: Tensor) -> None:
        tails = [tail for tail in map(Tail.of, (first, second)) if tail is not None]
        for tail in tails:
            reference, version = self._inputs[tail.path]
            x = reference()
            if x is not None and x._version != version:
                self.read_elsewhere.add(tail.path)  # what the layer has read is no longer there
            self.sums.setdefault(tail.path, []).append(tail.norm)
            self.order.append(('sum', tail.path, self._bytes_alive()))
        if len(tails) == 2:
            self.rivals.append((tails[0].path, tails[1].path))

    def after_function(self, args: tuple, kwargs: Mapping[str, Any], output: Any) -> None:
        if isinstance(output, Tensor):
            self._alive.append(weakref.ref(output))
        if self._in_layer or not any(isinstance(value, Tensor) for value in tree_flatten(output)[0]):
            return
        for value in tree_flatten((args, dict(kwargs)))[0]:
            tail = Tail.of(value)
            if tail is not None and value is not output:
                self.read_elsewhere.add(tail.path)

    def _is_norm(self, path: str) -> bool:
        module = self.modules[path]
        return isinstance(module, _BatchNorm) and module.running_mean is not None

    def _note(self, output: Any) -> None:
        for value in tree_flatten(output)[0]:
            if isinstance(value, Tensor):
                self._alive.append(weakref.ref(value))

    def _bytes_alive(self) -> int:
        sizes = {}
        self._alive = [reference for reference in self._alive if reference() is not None]
        for reference in self._alive:
            value = reference()
            if value is not None:
                sizes[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return sum(sizes.values())


def make_plan(pruned: Recorder, dense: Recorder, reasons: Mapping[str, str]) -> Plan:
    """Return the plan by what was seen of both models.

    Args:
        pruned: A pass of the slimmed model.
        dense: A pass of the dense model on the same images.
        reasons: Why layers that are not among the recorders' are not repaired.
    """
    plan = Plan(skipped=dict(reasons))
    for path in sorted(pruned.layers):
        if not pruned.counts[path] or not dense.counts[path]:
            plan.skipped[path] = 'inference does not call it'
        elif path in pruned.unlike:
            plan.skipped[path] = f'{type(pruned.modules[path]).__name__} is more than a product with its weights'
        elif pruned.counts[path] != dense.counts[path]:
            plan.skipped[path] = 'the dense model calls it another number of times'
    layers = [path for path in pruned.counts if path in pruned.layers and path not in plan.skipped]
    plan.norms = {path: pruned.norms[path] for path in layers if path in pruned.norms}
    plan.calls = {path: pruned.counts[path] for path in layers}
    blocks = _blocks(pruned, [path for path in layers if pruned.counts[path] > 1])
    for path in layers:
        holders = {block for block in blocks if block == '' or all(block in stack for stack in pruned.stacks[path])}
        if holders:
            plan.inside.setdefault(holders.pop(), []).append(path)
    single = {path for path in layers if not any(path in inside for inside in plan.inside.values())}
    plan.sums = {path: norms[0] for path, norms in pruned.sums.items()
                 if path in single and len(norms) == 1 and path not in pruned.read_elsewhere}
    for pair in pruned.rivals:
        if all(path in plan.sums for path in pair):
            # The one that reads more can make up for more; of equal ones the first.
            del plan.sums[min(reversed(pair), key=lambda path: LayerMatrix(pruned.modules[path]).inputs)]
    wanted = _order(pruned, single, plan)
    if wanted != _order(dense, single, plan):
        plan.sums = {}
        wanted = _order(pruned, single, plan)
        if wanted != _order(dense, single, plan):
            later = set(wanted) ^ set(_order(dense, single, plan)) or set(wanted)
            raise RuntimeError(f'the dense model calls its layers in another order: {sorted(later)[:3]}')
    plan.events = _with_sizes(wanted, pruned, dense)
    return plan


def _blocks(seen: Recorder, repeated: list[str]) -> set[str]:
    """Return modules called once that hold all calls of layers called several times; none holds another."""
    found = set()
    for path in repeated:
        stacks = seen.stacks[path]
        shared = [block for place, block in enumerate(stacks[0])
                  if seen.counts[block] == 1 and all(len(s) > place and s[place] == block for s in stacks)]
        found.add(shared[-1] if shared else '')
    if '' in found:
        return {''}
    return {block for block in found if not any(other in seen.stacks[block][0] for other in found - {block})}


def _order(seen: Recorder, single: set[str], plan: Plan) -> list[tuple[str, str]]:
    order: list[tuple[str, str]] = [('block', '')] if '' in plan.inside else []
    for kind, path, _ in seen.order:
        if kind == 'call' and path in single:
            order.append(('layer', path))
        elif kind == 'call' and path in plan.inside and path:
            order.append(('block', path))
        elif kind == 'sum' and path in plan.sums:
            order.append(('sum', path))
    return order


def _with_sizes(order: list[tuple[str, str]], *recorders: Recorder) -> list[Event]:
    """Return events with the most that is alive from each on, in both passes together."""
    events: list[Event] = []
    most = 0.0
    for kind, path in reversed(order):
        key = ('sum' if kind == 'sum' else 'call', path)
        sizes = [max([size for *place, size in seen.order if tuple(place) == key] or [0]) / seen.images
                 for seen in recorders]
        most = max(most, sum(sizes))
        events.append(Event(kind, path, most))
    return events[::-1]


def input_of(args: tuple, kwargs: Mapping[str, Any]) -> Tensor:
    """Return what a layer reads."""
    return args[0] if args else kwargs['input']


def _is_product(layer: nn.Module, x: Tensor, y: Tensor) -> bool:
    """Whether a layer's outputs are its weights times the columns of its input, as seen on the first image."""
    matrix = LayerMatrix(layer)
    if matrix.is_batched(x):
        x, y = x[:1], y[:1]
    if not y.numel():
        return True
    weight, bias = matrix.weight(), matrix.bias()
    for samples in matrix.samples(x, [y]):
        found = samples[..., :matrix.inputs] @ weight.mT
        if bias is not None:
            found = found + bias[:, None]
        wanted = samples[..., matrix.inputs:-1]
        if not bool((found - wanted).abs().max() <= TOLERANCE * wanted.abs().max().clamp(min=1e-6)):
            return False
    return True


def branch_scale(norm: nn.Module | None, like: Tensor) -> Tensor:
    """Return by what a batch normalisation multiplies each channel, ones without one, ``(channels,)``."""
    if norm is None:
        return torch.ones(1, dtype=like.dtype, device=like.device)
    scale = (norm.running_var + norm.eps).rsqrt()
    return scale if norm.weight is None else scale * norm.weight.detach()
