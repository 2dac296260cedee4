"""Parameters and multiply-accumulates of a model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from mmprune_ext.analysis.counting import MacCounter
from mmprune_ext.analysis.preserve import sample_batch, sample_shape, untouched
from mmprune_ext.errors import PruningError
from mmprune_ext.units.demo_inputs import Forward, eval_pass

CONVENTIONS: Mapping[str, str] = MappingProxyType({
    'params': 'learned parameters, each counted once; no buffers',
    'macs': 'multiply-accumulates of all convolution and linear layers for one sample; no bias, '
            'normalisation, activation or pooling',
    'matmul_macs': 'multiply-accumulates of matrix products of two activations (attention), '
                   'not part of macs',
    'flops': "mmengine's FlopAnalyzer: a multiply-accumulate is one, normalisation, pooling and "
             'interpolation count, matrix products included; null where it cannot run',
    'backbone': 'the part of the model named "backbone"; the whole model where there is none',
})


@dataclass(frozen=True)
class Complexity:
    """What a model costs for one sample.

    Attributes:
        params: Learned parameters of the whole model.
        macs: Multiply-accumulates of its convolution and linear layers. No bias, normalisation,
            activation, pooling.
        backbone_params: Parameters of the backbone; of the whole model where it has none.
        backbone_macs: Multiply-accumulates of the backbone, in the same way.
        per_layer: Multiply-accumulates by layer path; layers that were called only.
        matmul_macs: Multiply-accumulates of matrix products of two activations; not in ``macs``.
        flops: The count by mmengine's convention, ``None`` where it was not asked for or cannot
            be made.
        input_shape: ``(C, H, W)`` of the sample, ``None`` for a demo pass of the user's own.
    """

    params: int
    macs: int
    backbone_params: int
    backbone_macs: int
    per_layer: Mapping[str, int] = field(repr=False)
    matmul_macs: int = 0
    flops: int | None = None
    input_shape: tuple[int, ...] | None = None

    @property
    def conventions(self) -> Mapping[str, str]:
        """What each number counts, in words."""
        return CONVENTIONS

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers as plain values for JSON, with the words for what they count."""
        return {**asdict(self), 'conventions': dict(CONVENTIONS)}


def backbone_path(model: nn.Module) -> str:
    """Return the path of the outermost submodule named ``backbone``, ``''`` if there is none."""
    found = [path for path, _ in model.named_modules() if path.split('.')[-1] == 'backbone']
    return min(found, key=lambda path: path.count('.'), default='')


def complexity(model: nn.Module, input_shape: Sequence[int] | Forward | None = None,
               flops: bool = True) -> Complexity:
    """Return parameters and multiply-accumulates of a model for one sample.

    ``macs`` is counted by hooks on the layers while the model runs once. mmengine's analysis is not
    used for it: it adds normalisation, pooling and attention, sees no layer inside a custom
    operator, and needs a forward that ``torch.jit`` can trace, which detectors have not. The hooks
    count every model that runs, so dense and compact models of all tasks go by one rule.

    The model stays as it was: flags, buffers and random number generators are restored.

    Args:
        model: Any module; an OpenMMLab model is run in tensor mode.
        input_shape: ``(C, H, W)`` or ``(H, W)`` of one sample, or a function that takes the model
            and runs it once. By default the size that the backbone states, else 224 x 224.
        flops: Whether to run mmengine's analysis too, which takes longer than the count itself.

    Raises:
        PruningError: If the shape is malformed or the model does not run on it.
    """
    counter = MacCounter(model)
    own_pass = callable(input_shape)
    shape = None if own_pass else sample_shape(model, input_shape)
    with untouched(model):
        batch = None if own_pass else sample_batch(model, shape, 1)
        forward = eval_pass(model, input_shape if own_pass else batch)
        try:
            with counter.counting():
                forward(model)
        except Exception as error:  # the model's code may fail in any way
            raise PruningError(
                f'{type(model).__name__} does not run on '
                f'{"the given demo pass" if own_pass else f"an input of shape {shape}"}: '
                f'{type(error).__name__}: {error}. Give an input_shape that it accepts, or a '
                'function that takes the model and runs it') from error
        total = mmengine_flops(model, batch) if flops and batch is not None else None
    path = backbone_path(model)
    inside = f'{path}.' if path else ''
    return Complexity(
        params=_count(model), macs=sum(counter.per_layer.values()),
        backbone_params=_count(model.get_submodule(path)),
        backbone_macs=sum(macs for layer, macs in counter.per_layer.items()
                          if layer.startswith(inside) or layer == path),
        per_layer=counter.per_layer, matmul_macs=counter.matmul_macs, flops=total,
        input_shape=shape)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def mmengine_flops(model: nn.Module, batch: Tensor) -> int | None:
    """Return the total of mmengine's ``FlopAnalyzer``, ``None`` where it cannot trace the model.

    Args:
        model: The model, in eval mode.
        batch: The input of its forward, ``(N, C, H, W)``.
    """
    from mmengine.analysis import FlopAnalyzer
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter('ignore')
            analyzer = FlopAnalyzer(model, (batch,))
            # It lists the operators that it does not count; what it counts is its convention.
            analyzer.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
            return int(analyzer.total())
    except Exception:  # jit tracing runs the model's code and fails in any way
        return None
