"""Derivatives of a model's own loss by gates on its channels, sample by sample: one backward pass over each batch."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from mmprune_ext.draws import preserved_random_state
from mmprune_ext.errors import ConfigError, PruningError
from mmprune_ext.mutators.calibration import RunningSums
from mmprune_ext.ops.gated_layer import channel_dim
from mmprune_ext.scores import gate_gradient
from mmprune_ext.units import UnitSet
from mmprune_ext.units.demo_inputs import failure_of, is_openmmlab
from mmprune_ext.units.task_samples import library_of

# By unit, the places ``(num_channels, block)`` of its channels among those of a layer.
Places = Mapping[str, Tensor]


class GateGradients(RunningSums):
    """Sum up, over samples, the squared derivatives of the loss by gates on the channels of each unit.

    A gate is 1 and multiplies its channel wherever a layer reads it: what pruning takes from a layer is what it
    would read. A channel that no layer reads, as those of queries and keys, is multiplied where layers make it. The
    derivative of a sample is the sum over all these layers, all their calls and all positions; then it is squared.

    The loss is the model's own (``mode='loss'``, ``parse_losses``). Flags are those of training, as losses ask for
    them; but layers, those of normalisation and dropout, are in eval mode, so that a sample's derivative depends on no
    other sample. The loss of a batch of ``N`` counts ``N`` times, as the mean of its samples' losses. Detectors divide
    theirs by what they find in the whole batch: they run one image at a time, and so does any model in which a layer
    reads something else than ``N`` samples in its first dimension (regions, windows, sequences first).

    Args:
        model: The dense model; it is run, not changed.
        units: Its units. Only those that are prunable are scored.
        seed: Of what losses draw at random, the same for each pass.

    Raises:
        ConfigError: If the model has no loss.
    """

    def __init__(self, model: nn.Module, units: UnitSet, seed: int = 0) -> None:
        super().__init__(model, units, {name: unit.num_channels for name, unit in units.prunable.items()})
        if not is_openmmlab(model) or not hasattr(model, 'parse_losses'):
            raise ConfigError(f'the gradients of a loss are wanted, but {type(model).__name__} has none: its forward '
                              "takes no mode='loss', or it has no parse_losses(); derive it from mmengine's BaseModel")
        self.seed = seed
        self._readers, self._makers = _gated_layers(units)
        self._one_by_one = library_of(model) == 'mmdet'
        self._derivatives: dict[str, Tensor] = {}  # by unit (N, num_channels), of the present pass

    def add(self, batch: Any) -> None:
        """Add the squared derivatives of all samples of a batch.

        Raises:
            PruningError: If the loss cannot be computed, or it or a derivative is not finite.
        """
        parts = samples_of(batch)
        if not self._one_by_one:
            try:
                self._add_pass(copy.deepcopy(batch), len(parts))
                return
            except _OtherSamples:
                self._one_by_one = True
        for part in parts:
            self._add_pass(part, 1)

    def _add_pass(self, batch: Any, count: int) -> None:
        self._derivatives = {}
        _as_in_training(self.model)
        with torch.enable_grad(), self._gates(count), preserved_random_state(), _alone():
            torch.manual_seed(self.seed)
            loss = count * self._loss(batch)
            if loss.requires_grad:
                loss.backward()
        for name, derivative in self._derivatives.items():
            total = derivative.square().sum(0).cpu()
            if not bool(total.isfinite().all()):
                raise PruningError(f'unit "{name}", calibration batch {self.batches + 1}: a gradient is infinite or '
                                   'NaN; check checkpoint and data')
            self.sums[name] += total
            self.samples[name] += count

    def _loss(self, batch: Any) -> Tensor:
        where = f'calibration batch {self.batches + 1}'
        try:
            loss, _ = self.model.parse_losses(self.model._run_forward(self.preprocessed(batch), mode='loss'))
        except _OtherSamples:
            raise
        except Exception as error:  # runs the model's code, which may fail in any way
            raise PruningError(f'{where}: {type(self.model).__name__} gives no loss on the training data: '
                               f'{failure_of(self.model, error)}') from error
        if not bool(loss.isfinite()):
            raise PruningError(f'{where}: the loss is {float(loss.detach())}; check checkpoint and data')
        return loss

    @contextlib.contextmanager
    def _gates(self, count: int) -> Iterator[None]:
        """Put gates on the layers for a block in which no parameter needs a gradient."""
        needed = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        # What the gates need for a gradient where nothing before them does.
        anchor = torch.zeros((), requires_grad=True)
        handles = []

        def gated(value: Tensor, layer: nn.Module, places: Places) -> Tensor:
            if not torch.is_grad_enabled():
                return value
            dim = channel_dim(layer, value)
            by_sample = count > 1
            if by_sample and (value.dim() + dim == 0 or len(value) != count):
                raise _OtherSamples

            def tell(values: Tensor, gradients: Tensor) -> None:
                self._tell(gate_gradient(values, gradients, dim, by_sample), places)
            return _Gate.apply(value, anchor, tell)

        def watch_reader(layer: nn.Module, places: Places) -> None:
            def enter(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
                if args:
                    return (gated(args[0], layer, places), *args[1:]), kwargs
                key = next(key for key, value in kwargs.items() if isinstance(value, Tensor))
                return args, {**kwargs, key: gated(kwargs[key], layer, places)}
            handles.append(layer.register_forward_pre_hook(enter, with_kwargs=True))

        def watch_maker(layer: nn.Module, places: Places) -> None:
            handles.append(layer.register_forward_hook(lambda _, args, output: gated(output, layer, places)))

        try:
            for watch, table in ((watch_reader, self._readers), (watch_maker, self._makers)):
                for path, places in table.items():
                    watch(self.model.get_submodule(path), places)
            for parameter in needed:
                parameter.requires_grad_(False)
            yield
        finally:
            for handle in handles:
                handle.remove()
            for parameter in needed:
                parameter.requires_grad_(True)

    def _tell(self, derivative: Tensor, places: Places) -> None:
        """Add what one call of a layer contributes, ``(N, C)``."""
        for name, positions in places.items():
            part = derivative[:, positions.to(derivative.device)].sum(2)
            present = self._derivatives.get(name)
            self._derivatives[name] = part if present is None else present + part

    def scores(self) -> dict[str, Tensor]:
        """Return each unit's sums over the samples of all processes, ``(num_channels,)``.

        Raises:
            PruningError: If the loss reads a unit's channels in no sample.
        """
        sums, samples = self.totals()
        for name, seen in samples.items():
            if not bool(seen.any()):
                raise PruningError(f'unit "{name}": no gradient of the loss reaches the layers that read it; leave the '
                                   f'unit whole (mutator exclude=["{name}"])')
        return sums


class _OtherSamples(Exception):
    """A layer's first dimension is not that of the batch's samples."""


class _Gate(torch.autograd.Function):
    """A factor of 1 that tells its value and the gradient by what it gives."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, anchor: Tensor, tell: Callable[[Tensor, Tensor], None]) -> Tensor:
        ctx.tell = tell
        ctx.save_for_backward(value)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        value, = ctx.saved_tensors
        ctx.tell(value, gradient)
        return gradient, None, None


def _gated_layers(units: UnitSet) -> tuple[dict[str, Places], dict[str, Places]]:
    """Return the layers that read channels of prunable units, and those that make channels that none reads."""
    readers: dict[str, dict[str, Tensor]] = {}
    makers: dict[str, dict[str, Tensor]] = {}
    for name, unit in units.prunable.items():
        table, members = (readers, unit.consumers) if unit.consumers else (makers, unit.producers)
        paths = {member.module for member in members}
        for member in members:
            # A layer inside another reads what that reads, through its gate.
            if member.dim is None and not any(member.module.startswith(f'{path}.') for path in paths):
                places = torch.from_numpy(member.positions(unit.num_channels))
                present = table.setdefault(member.module, {})
                present[name] = torch.cat([present[name], places], 1) if name in present else places
    return readers, makers


def samples_of(batch: Any) -> list[Any]:
    """Return the samples of a batch as batches of one.

    Args:
        batch: Lists or tensors of as many entries, one a sample, in a dict or a sequence.

    Raises:
        PruningError: If they have different numbers of entries, or none.
    """
    sizes: set[int] = set()

    def fields(value: Any, place: slice | None, inside: bool = False) -> Any:
        if isinstance(value, Mapping):
            return {key: fields(entry, place, True) for key, entry in value.items()}
        if isinstance(value, (list, tuple)) and not inside:
            return [fields(entry, place, True) for entry in value]
        if not isinstance(value, (list, tuple, Tensor)):
            return value
        if place is None:
            sizes.add(len(value))
        return value if place is None else value[place]

    fields(batch, None)
    if len(sizes) != 1 or not max(sizes):
        raise PruningError('calibration: a batch should have as many entries in each of its parts, one a sample, but '
                           f'they have {sorted(sizes)}')
    return [fields(batch, slice(place, place + 1)) for place in range(sizes.pop())]


def _as_in_training(model: nn.Module) -> None:
    """Set the flags that losses look at to training, but not those of layers."""
    for module in model.modules():
        module.training = any(True for _ in module.children()) and not isinstance(module, nn.MultiheadAttention)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Let losses see one process: they would wait for others, which have other batches or none."""
    with mock.patch('torch.distributed.is_initialized', return_value=False):
        yield
