"""What functions of torch multiply: which operand is a weight, and which of the dimensions are channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# By function: the dimension of its weight that it puts out, and the one that it sums over.
_CONVOLUTIONS = {F.conv1d: (0, 1), F.conv2d: (0, 1), F.conv3d: (0, 1), F.conv_transpose1d: (1, 0),
                 F.conv_transpose2d: (1, 0), F.conv_transpose3d: (1, 0)}
_MATRICES = {torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm}
_ADDED = {torch.addmm, Tensor.addmm}
_NAMES = ('input', 'weight', 'bias', 'stride', 'padding', 'dilation', 'groups')
_TRANSPOSED_NAMES = ('input', 'weight', 'bias', 'stride', 'padding', 'output_padding', 'groups')


@dataclass(frozen=True)
class WeightProduct:
    """A product of an activation with a weight.

    Attributes:
        x: The activation.
        weight: The weight.
        read: The dimension of ``x`` that is summed over, from its end.
        given: The dimension of the result that holds the outputs, from its end.
        outputs: The dimension of the weight that holds them.
        inputs: The dimension of the weight that is summed over.
        dims: How many dimensions a weight has.
        bias: What is added to the outputs.
        groups: Of a convolution.
    """

    x: Tensor
    weight: Tensor
    read: int
    given: int
    outputs: int
    inputs: int
    dims: int
    bias: Tensor | None = None
    groups: int = 1

    @property
    def by_channel(self) -> bool:
        """Whether each channel that is read makes outputs of its own."""
        return self.groups > 1 and self.groups == self.x.shape[self.read]


def product_of(function: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any],
               is_weight: Callable[[Any], bool]) -> WeightProduct | None:
    """Return what a function multiplies with a weight, ``None`` if it multiplies none.

    Where each channel has a kernel of its own, that may be any tensor.

    Args:
        function: A function of torch.
        args: What it is called with.
        kwargs: The same by name.
        is_weight: Tells a weight from an activation.
    """
    product = None
    if function in _CONVOLUTIONS:
        product = _convolution(function, args, kwargs)
    elif function is F.linear:
        given = {**kwargs, **dict(zip(_NAMES, args))}
        product = WeightProduct(given['input'], given['weight'], -1, -1, 0, 1, 2, given.get('bias'))
    elif function in _MATRICES:
        product = _matrices([*args, *kwargs.values()], is_weight)
    elif function in _ADDED and len(args) == 3 and not kwargs:
        product = WeightProduct(args[1], args[2], -1, -1, 1, 0, 2, args[0])
    elif function is torch.einsum:
        product = _einsum(args, is_weight)
    return product if product is not None and (is_weight(product.weight) or product.by_channel) else None


def _convolution(function: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any]) -> WeightProduct:
    outputs, inputs = _CONVOLUTIONS[function]
    given = {**kwargs, **dict(zip(_NAMES if inputs else _TRANSPOSED_NAMES, args))}
    dims = int(function.__name__[-2]) + 2
    return WeightProduct(given['input'], given['weight'], 1 - dims, 1 - dims, outputs, inputs, dims,
                         given.get('bias'), given.get('groups', 1))


def _matrices(operands: list[Any], is_weight: Callable[[Any], bool]) -> WeightProduct | None:
    if len(operands) != 2 or not all(isinstance(operand, Tensor) for operand in operands):
        return None
    left, right = operands
    if is_weight(right):
        return WeightProduct(left, right, -1, -1, 1, 0, 2)
    if left.dim() != 2:
        return None  # a matrix for each sample: of attention, to which a bias was added
    rows = -min(right.dim(), 2)
    return WeightProduct(right, left, rows, rows, 0, 1, 2)


def _einsum(args: tuple, is_weight: Callable[[Any], bool]) -> WeightProduct | None:
    """Return the product that an equation of two operands tells, one of them a matrix; ``None`` for another."""
    equation, *operands = args
    operands = operands[0] if len(operands) == 1 and isinstance(operands[0], (list, tuple)) else operands
    if not isinstance(equation, str) or len(operands) != 2 or '->' not in equation:
        return None
    terms, result = equation.replace(' ', '').split('->')
    terms = terms.split(',')
    place = 1 if is_weight(operands[1]) else 0
    of_weight, of_input = terms[place], terms[1 - place]
    put_out = [letter for letter in of_weight if letter in result and letter not in of_input]
    summed = [letter for letter in of_weight if letter in of_input and letter not in result]
    if len(of_weight) != 2 or len(put_out) != 1 or len(summed) != 1 or (
            {*of_input, *put_out} - {*summed} != {*result}):
        return None
    x = operands[1 - place]
    return WeightProduct(x, operands[place], _from_end(of_input, summed[0], x.dim()),
                         _from_end(result, put_out[0], x.dim()),
                         of_weight.index(put_out[0]), of_weight.index(summed[0]), 2)


def _from_end(term: str, letter: str, dims: int) -> int:
    """Return where a letter stands in a term, whose three points are all dimensions that no letter names."""
    before, _, after = term.partition('...')
    if letter in after:
        return after.index(letter) - len(after)
    return before.index(letter) - (dims if '...' in term else len(term))
