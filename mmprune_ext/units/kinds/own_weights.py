"""Layers that users write: a functional convolution or linear product on parameters of their own.

Which dimensions of the weight are channels the operator says. The weight may be computed from parameters before, by a
scale, a normalisation, a transposition, a product of two (low rank): beside each tensor that parameters alone have made
stands which of its dimensions is which of theirs. The parameters become members of units, each with its dimension;
whether what is computed from fewer channels is the same shows in the check by execution. Masks that a module keeps as
buffers are taken like parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

from mmprune_ext.units.kinds.weight_products import WeightProduct, product_of
from mmprune_ext.units.labels import get_core, tensors_in, varying
from mmprune_ext.units.reasons import Reason

if TYPE_CHECKING:
    from mmprune_ext.units.tracing.tracer import Tracer

_MADE_OF = '_mmprune_made_of'
# By parameter: for each dimension of a tensor the dimension of the parameter that it is, None for none.
Dims = dict[str, 'tuple[int | None, ...]']


class OwnWeights:
    """Follow the parameters that no layer owns to the operators that take them for a weight.

    Args:
        parameters: Of the model, by id: their path and they themselves.
        owners: Paths of layers by the id of their weight.

    Attributes:
        buffers: Paths of those parameters that are buffers.
        refused: Why a parameter that is a weight is in no unit, by path.
        of_layers: Paths of layers with whose weight code computes, instead of calling them.
    """

    def __init__(self, parameters: dict[int, tuple[str, Tensor]], owners: Mapping[int, str] | None = None) -> None:
        self._parameters = parameters
        self._owners = owners or {}
        self._tensors = dict(parameters.values())
        self.buffers = {path for path, tensor in parameters.values() if not isinstance(tensor, nn.Parameter)}
        self.refused: dict[str, str] = {}
        self.of_layers: set[str] = set()

    def made_of(self, tensor: Any) -> Dims:
        """Return the parameters that alone have made a tensor; empty if there are others, or none."""
        if id(tensor) in self._parameters:
            return {self._parameters[id(tensor)][0]: tuple(range(tensor.dim()))}
        return getattr(tensor, _MADE_OF, {})

    def _is_weight(self, tensor: Any) -> bool:
        """Whether parameters have made a tensor; buffers alone are values like others."""
        return isinstance(tensor, Tensor) and not self.made_of(tensor).keys() <= self.buffers

    def size(self, path: str, dim: int) -> int:
        """Return the size of a parameter in one of its dimensions."""
        return self._tensors[path].shape[dim]

    def note(self, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        """Note what an operator makes of parameters alone, and return that."""
        given = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        made = [(tensor, self.made_of(tensor)) for tensor in given]
        if any(dims for _, dims in made) and all(dims or get_core(tensor) is None for tensor, dims in made):
            for out in tensors_in(output):
                if id(out) not in self._parameters:
                    found: Dims = {}
                    for tensor, dims in made:
                        for path, ours in dims.items():
                            _put_better(found, path, _carried(tensor, ours, out))
                    setattr(out, _MADE_OF, found)
        return output

    def around(self, tracer: Tracer, function: Callable[..., Any], args: tuple, kwargs: dict[str, Any],
               run: Callable[[], Any]) -> Any:
        """Run a function; carry the labels through it where it takes such a weight, else note what it makes."""
        run = self._noting_layers(function, args, run)
        product = product_of(function, args, kwargs, self._is_weight)
        if product is None:
            if not self._meet_crosswise(tracer, args):
                return self.note(args, kwargs, run())
            output = tracer.untraced(run)
            for out in tensors_in(output):
                largest = max((arg for arg in args if isinstance(arg, Tensor)), key=Tensor.numel)
                tracer.write(out, tracer.core(largest) if largest.shape == out.shape else None)
            return self.note(args, kwargs, output)
        if self._is_weight(product.x):
            return self._note_product(product, run())
        followed = _Followed(tracer, product, self)
        why = followed.refusal()
        if why:
            made = self.made_of(product.weight)
            self.refused.update(dict.fromkeys(made, why))
            tracer.freeze_inputs(product.x, Reason.LAYER, f'{next(iter(made))}: {why}')
            return run()
        output = tracer.untraced(run)
        followed.follow(output)
        return output

    def _note_product(self, product: WeightProduct, output: Tensor) -> Tensor:
        """Note what a product of two matrices of parameters makes: the rows of one, the columns of the other."""
        first, second = self.made_of(product.x), self.made_of(product.weight)
        if product.x.dim() == product.weight.dim() == output.dim() == 2 and product.read == -1:
            found = {path: (dims[0], None) for path, dims in first.items() if dims}
            for path, dims in second.items():
                if dims and path not in found:
                    found[path] = (None, dims[product.outputs])
            setattr(output, _MADE_OF, found)
        return output

    def _noting_layers(self, function: Callable[..., Any], args: tuple, run: Callable[[], Any]) -> Callable[[], Any]:
        """Return a function that runs another, and notes layers from whose weight that makes a tensor."""
        layers = {self._owners[id(leaf)] for leaf in tree_flatten(args)[0]
                  if isinstance(leaf, Tensor) and id(leaf) in self._owners}
        name = getattr(function, '__name__', '')
        if not layers or name.startswith('new_') or name.endswith('_like'):
            return run

        def noted() -> Any:
            output = run()
            if tensors_in(output):
                self.of_layers |= layers
            return output
        return noted

    def _meet_crosswise(self, tracer: Tracer, args: tuple) -> bool:
        """Whether parameters meet along other dimensions, as a weight and the gains of its rows do.

        Which of their dimensions are the same is told where they become a weight.
        """
        made = [arg for arg in args if isinstance(arg, Tensor) and self.made_of(arg)]
        if len(made) < 2 or len(made) < sum(isinstance(arg, Tensor) for arg in args):
            return False
        cores = [core for core in map(tracer.core, made) if core is not None]
        return len({frozenset(dim - core.dim() for dim in varying(core)) for core in cores}) > 1

    def silenced(self, function: Callable[..., Any], args: tuple, kwargs: dict[str, Any], output: Any,
                 removed: Mapping[tuple[str, int], np.ndarray]) -> Any:
        """Return the output of an operator without some outputs of the weights that it takes.

        These are told by parameter and dimension: one weight may be read both ways.
        """
        product = product_of(function, args, kwargs, self._is_weight)
        if product is None:
            return self.note(args, kwargs, output)
        # Without labels nothing tells whether it is two parameters that are multiplied.
        self._note_product(product, output)
        for path, dims in self.made_of(product.weight).items():
            gone = removed.get((path, dims[product.outputs])) if len(dims) > product.outputs else None
            if gone is not None:
                size, dim = product.weight.shape[product.outputs], product.given % output.dim()
                places = gone + np.arange(0, output.shape[dim], size)[:, None]
                output = output.index_fill(dim, torch.from_numpy(places.ravel()), 0)
        return output


class _Followed:
    """A product with a weight that is carried over to the labels.

    Args:
        tracer: What follows the model.
        product: The product.
        own: The weights of the model.
    """

    def __init__(self, tracer: Tracer, product: WeightProduct, own: OwnWeights) -> None:
        self.tracer, self.product, self._own = tracer, product, own
        made = own.made_of(product.weight)
        self.rows, self.columns = (
            {path: dims[dim] for path, dims in made.items() if len(dims) > dim and dims[dim] is not None}
            for dim in (product.outputs, product.inputs))

    def refusal(self) -> str:
        """Return why the weight is not followed; empty if it is."""
        weight = self.product.weight
        if weight.dim() != self.product.dims:
            return 'an operand of other dimensions than a weight'
        told = self.rows.keys() - self._own.buffers and (
            self.columns.keys() - self._own.buffers or weight.shape[self.product.inputs] == 1)
        return '' if told or self.product.by_channel else 'the dimensions of its weight cannot be told'

    def follow(self, output: Tensor) -> None:
        """Carry the labels over to the result."""
        space, product = self.tracer.space, self.product
        dim_in, dim_out = product.read % product.x.dim(), product.given % output.dim()
        core = self.tracer.core(product.x)
        if core is not None and varying(core) and dim_in not in varying(core):
            # It reads positions, and the channels pass through.
            if product.dims == 2 and product.read != -1:
                self._own.refused.update(dict.fromkeys(self.rows, 'it mixes positions, which are no channels'))
            else:
                space.freeze(self._made(output.shape[dim_out]), (Reason.SPACE, next(iter(self.rows))))
            return self.tracer.write(output, core)
        read = self.tracer.channel_labels(product.x, dim_in, Reason.SPACE)
        if product.by_channel and read.all():
            made = self._carried(read, output.shape[dim_out])
        else:
            made = self._made(output.shape[dim_out])
            self._read(read)
        bias = self.tracer.core(product.bias) if isinstance(product.bias, Tensor) else None
        if bias is not None:
            space.tie(made, bias.numpy())
        shape = [1] * output.dim()
        shape[dim_out] = -1
        self.tracer.write(output, torch.from_numpy(made.copy()).reshape(shape))

    def _carried(self, read: np.ndarray, count: int) -> np.ndarray:
        """Return the labels of all outputs where each channel has a kernel of its own: those of the channels."""
        carried, weight = np.repeat(read, count // len(read)), self.product.weight
        # Kernels lie along the first dimension, whatever that is in the convolution of one group.
        along = carried if self.product.outputs == 0 else read
        for path, dim in (self.rows if self.product.outputs == 0 else self.columns).items():
            self.tracer.space.tie(along, self._labels(path, dim))
        core = None if self._own.made_of(weight) else self.tracer.core(weight)
        if core is not None and varying(core) <= {0}:
            self.tracer.space.tie(along, core.reshape(-1).numpy())
        elif core is not None:
            self.tracer.freeze_inputs(weight, Reason.OUTER, 'kernels of single channels')
        return carried

    def _made(self, count: int) -> np.ndarray:
        """Return the labels of all outputs, which are those of the parameters' rows."""
        # One of them makes the channels, the others go with it.
        first = next((path for path in self.rows if path not in self._own.buffers), None)
        if first is None:
            return np.zeros(count, dtype=np.int64)
        made = self._labels(first, self.rows[first], 'producer')
        for path, dim in self.rows.items():
            if path != first:
                self.tracer.space.tie(made, self._labels(path, dim))
        if len(made) < count:
            return np.tile(made, self.product.groups)
        by_group = made.reshape(self.product.groups, -1)
        self.tracer.space.tie(by_group, by_group[:1])
        return made

    def _read(self, read: np.ndarray) -> None:
        """Tie the labels that are read with the parameters' columns."""
        space, by_group = self.tracer.space, read.reshape(self.product.groups, -1)
        space.tie(by_group, by_group[:1])
        for path, dim in self.columns.items():
            labels = self._labels(path, dim)
            space.tie(labels, read if len(labels) == len(read) else by_group[0])
            if (read == 0).any():
                space.freeze(labels, (Reason.LAYER, f'{path} reads other inputs too'))

    def _labels(self, path: str, dim: int, role: str = 'parameter') -> np.ndarray:
        """Return the labels of a parameter along one of its dimensions, new ones at first."""
        key = (path, role, dim)
        if key not in self.tracer.records:
            self.tracer.records[key] = self.tracer.space.new(self._own.size(path, dim))
        return self.tracer.records[key]


class Silencing(TorchFunctionMode):
    """Give 0 for some outputs of the operators that take parameters of a model for a weight.

    Zeros in the parameters themselves would not do: a weight that is divided by its norm has none.

    Args:
        model: The model.
        removed: By path of a parameter and dimension, the outputs.
    """

    def __init__(self, model: nn.Module, removed: Mapping[tuple[str, int], np.ndarray]) -> None:
        super().__init__()
        self._own = OwnWeights({id(p): (path, p) for path, p in model.named_parameters()})
        self._removed, self._passes = removed, 0

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        return self._own.silenced(func, args, kwargs, func(*args, **kwargs), self._removed)

    def around(self, module: nn.Module) -> None:
        """Do so in each pass of a module; in one of another such module around that, this is done already."""
        module.register_forward_pre_hook(lambda m, args: self._begin())
        module.register_forward_hook(lambda m, args, out: self._end(), always_call=True)

    def _begin(self) -> None:
        if not self._passes:
            self.__enter__()
        self._passes += 1

    def _end(self) -> None:
        self._passes -= 1
        if not self._passes:
            self.__exit__(None, None, None)


def settle(tracer: Tracer) -> None:
    """Let a dimension of a parameter that is a producer be that alone."""
    for path, role, dim in list(tracer.records):
        twin = (path, 'parameter', dim)
        if role == 'producer' and dim is not None and twin in tracer.records:
            tracer.space.tie(tracer.records[path, role, dim], tracer.records.pop(twin))


def _carried(tensor: Tensor, dims: tuple[int | None, ...], out: Tensor) -> tuple[int | None, ...]:
    """Return which dimensions of parameters those of a result are, ``()`` where that cannot be told."""
    if out.dim() == 0 or not dims:
        return ()
    if out.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr() and out.numel() == tensor.numel():
        where = {(size, step): dim for size, step, dim in zip(tensor.shape, tensor.stride(), dims) if size > 1}
        return tuple(where.get((size, step)) for size, step in zip(out.shape, out.stride()))
    if len(dims) > out.dim() or tensor.dim() != len(dims):
        return ()
    beyond = out.dim() - len(dims)
    return (None,) * beyond + tuple(dim if size == left and size > 1 else None for dim, size, left in zip(
        dims, tensor.shape, out.shape[beyond:]))


def _put_better(found: Dims, path: str, dims: tuple[int | None, ...]) -> None:
    known = found.get(path, ())
    if path not in found or sum(d is not None for d in dims) > sum(d is not None for d in known):
        found[path] = dims
