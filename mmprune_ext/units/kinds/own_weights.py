"""Layers that users write: a functional convolution or linear product on parameters of their own.

Which dimensions of the weight are channels the operator says. The weight may be computed from parameters before, by a
scale, a normalisation, a transposition: beside each tensor that parameters alone have made stands which of its
dimensions is which of theirs. The parameters become members of units, each with its dimension; whether what is computed
from fewer channels is the same shows in the check by execution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

from mmprune_ext.units.labels import get_core, tensors_in, varying
from mmprune_ext.units.reasons import Reason

if TYPE_CHECKING:
    from mmprune_ext.units.tracing.tracer import Tracer

_MADE_OF = '_mmprune_made_of'
# By parameter: for each dimension of a tensor the dimension of the parameter that it is, None for none.
Dims = dict[str, 'tuple[int | None, ...]']
# By function: the dimension of its weight that it puts out, and the one that it sums over.
CONVOLUTIONS = {F.conv1d: (0, 1), F.conv2d: (0, 1), F.conv3d: (0, 1), F.conv_transpose1d: (1, 0),
                F.conv_transpose2d: (1, 0), F.conv_transpose3d: (1, 0)}
PRODUCTS = {F.linear: (0, 1), torch.matmul: (1, 0), Tensor.matmul: (1, 0), Tensor.__matmul__: (1, 0), torch.mm: (1, 0),
            Tensor.mm: (1, 0)}
_NAMES = ('input', 'weight', 'bias', 'stride', 'padding', 'dilation', 'groups')


class OwnWeights:
    """Follow the parameters that no layer owns to the operators that take them for a weight.

    Args:
        parameters: Of the model, by id: their path and they themselves.
        owners: Paths of layers by the id of their weight.

    Attributes:
        refused: Why a parameter that is a weight is in no unit, by path.
        of_layers: Paths of layers with whose weight code computes, instead of calling them.
    """

    def __init__(self, parameters: dict[int, tuple[str, Tensor]], owners: Mapping[int, str] | None = None) -> None:
        self._parameters = parameters
        self._owners = owners or {}
        self.refused: dict[str, str] = {}
        self.of_layers: set[str] = set()

    def made_of(self, tensor: Any) -> Dims:
        """Return the parameters that alone have made a tensor; empty if there are others, or none."""
        if id(tensor) in self._parameters and isinstance(tensor, nn.Parameter):
            return {self._parameters[id(tensor)][0]: tuple(range(tensor.dim()))}
        return getattr(tensor, _MADE_OF, {})

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
        if function not in CONVOLUTIONS and function not in PRODUCTS:
            if not self._meet_crosswise(tracer, args):
                return self.note(args, kwargs, run())
            output = tracer.untraced(run)
            for out in tensors_in(output):
                largest = max((arg for arg in args if isinstance(arg, Tensor)), key=Tensor.numel)
                tracer.write(out, tracer.core(largest) if largest.shape == out.shape else None)
            return self.note(args, kwargs, output)
        given = {**kwargs, **dict(zip(_NAMES, args))}
        x, weight = given.get('input'), given.get('weight', given.get('other', given.get('mat2')))
        made = self.made_of(weight)
        if not made or self.made_of(x) or not isinstance(x, Tensor):
            return run()
        outputs, inputs = {**CONVOLUTIONS, **PRODUCTS}[function]
        rows = {path: dims[outputs] for path, dims in made.items() if dims and dims[outputs] is not None}
        columns = {path: dims[inputs] for path, dims in made.items() if dims and dims[inputs] is not None}
        why = ''
        if weight.dim() != (2 if function in PRODUCTS else x.dim()):
            why = 'an operand of other dimensions than a weight'
        elif given.get('groups', 1) != 1:
            why = 'a grouped convolution on a weight of its own'
        elif not set(rows) & set(columns):
            why = 'the dimensions of its weight cannot be told'
        if why:
            self.refused.update(dict.fromkeys(made, why))
            tracer.freeze_inputs(x, Reason.LAYER, f'{next(iter(made))}: {why}')
            return run()
        output = tracer.untraced(run)
        self._follow(tracer, x, output, given.get('bias'), rows, columns, -1 if function in PRODUCTS else 1)
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
                 removed: Mapping[str, np.ndarray]) -> Any:
        """Return the output of an operator without some outputs of the weights that it takes, by parameter."""
        if function not in CONVOLUTIONS and function not in PRODUCTS:
            return self.note(args, kwargs, output)
        weight = {**kwargs, **dict(zip(_NAMES, args))}
        made = self.made_of(weight.get('weight', weight.get('other', weight.get('mat2'))))
        for path in made:
            if path in removed:
                output = output.index_fill(-1 if function in PRODUCTS else 1, torch.from_numpy(removed[path]), 0)
        return output

    def _follow(self, tracer: Tracer, x: Tensor, output: Tensor, bias: Tensor | None, rows: dict[str, int],
                columns: dict[str, int], dim: int) -> None:
        core, dim_in, dim_out = tracer.core(x), dim % x.dim(), dim % output.dim()
        first = next(path for path in rows if path in columns)
        own = self._labels(tracer, first, 'producer', rows[first])
        for path, where in rows.items():
            tracer.space.tie(own, self._labels(tracer, path, 'parameter', where))
        if bias is not None and tracer.core(bias) is not None:
            tracer.space.tie(own, tracer.core(bias).numpy())
        if core is not None and varying(core) and dim_in not in varying(core):
            # It reads positions, and the channels pass through.
            tracer.space.freeze(own, (Reason.SPACE, first))
            return tracer.write(output, core)
        read = tracer.channel_labels(x, dim_in, Reason.SPACE)
        for path, where in columns.items():
            labels = self._labels(tracer, path, 'parameter', where)
            tracer.space.tie(labels, read)
            if (read == 0).any():
                tracer.space.freeze(labels, (Reason.LAYER, f'{path} reads other inputs too'))
        shape = [1] * output.dim()
        shape[dim_out] = -1
        tracer.write(output, torch.from_numpy(own.copy()).reshape(shape))

    def _labels(self, tracer: Tracer, path: str, role: str, dim: int) -> np.ndarray:
        """Return the labels of a parameter along one of its dimensions, new ones at first."""
        size = next(tensor for known, tensor in self._parameters.values() if known == path).shape[dim]
        if (path, role, dim) not in tracer.records:
            tracer.records[path, role, dim] = tracer.space.new(size)
        return tracer.records[path, role, dim]


class Silencing(TorchFunctionMode):
    """Give 0 for some outputs of the operators that take parameters of a model for a weight.

    Zeros in the parameters themselves would not do: a weight that is divided by its norm has none.

    Args:
        model: The model.
        removed: By path of a parameter, the outputs.
    """

    def __init__(self, model: nn.Module, removed: Mapping[str, np.ndarray]) -> None:
        super().__init__()
        self._own = OwnWeights({id(p): (path, p) for path, p in model.named_parameters()})
        self._removed = removed

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        return self._own.silenced(func, args, kwargs, func(*args, **kwargs), self._removed)

    def around(self, module: nn.Module) -> None:
        """Do so in each pass of a module."""
        module.register_forward_pre_hook(lambda m, args: self.__enter__() and None)
        module.register_forward_hook(lambda m, args, out: self.__exit__(None, None, None), always_call=True)


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
