"""Parameters, multiply-accumulates and volume of a model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mmprune_ext.analysis.conventions import CONVENTIONS
from mmprune_ext.analysis.counting import MacCounter, ShapesOnly
from mmprune_ext.analysis.passes import InferencePass, inference_pass
from mmprune_ext.analysis.preserve import untouched
from mmprune_ext.units.demo_inputs import DemoInputs, Forward, OnImages
from mmprune_ext.units.labels import tensors_in


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
        flops_missing: Why ``flops`` could not be made.
        flops_mm: The count of OpenMMLab's former counter, which many tables print.
        flops_thop: The count of thop 0.0.31, which others print.
        input_shape: ``(C, H, W)`` of the sample, ``None`` for a demo pass of the user's own.
        proposals: Proposals that the second stage of a detector was run on, else ``None``.
        masks: Detections that its mask head was run on, else ``None``.
        volume: Output values of the convolution and linear layers (the activation count of fvcore
            and mmengine, without matrix products of two activations).
        per_layer_outputs: The same by layer path, in the keys of ``per_layer``.
    """

    params: int
    macs: int
    backbone_params: int
    backbone_macs: int
    per_layer: Mapping[str, int] = field(repr=False)
    matmul_macs: int = 0
    flops: int | None = None
    flops_missing: str = ''
    flops_mm: int = 0
    flops_thop: int = 0
    input_shape: tuple[int, ...] | None = None
    proposals: int | None = None
    masks: int | None = None
    volume: int = 0
    per_layer_outputs: Mapping[str, int] = field(default_factory=dict, repr=False)

    @property
    def conventions(self) -> Mapping[str, str]:
        """What each number counts, in words."""
        return CONVENTIONS

    @property
    def sample(self) -> str:
        """What the numbers are for, in words."""
        if self.input_shape is None:
            return 'the given demo pass'
        words = f'one sample of {" x ".join(map(str, self.input_shape))}'
        words += f' with {self.proposals} proposals' if self.proposals else ''
        return words + (f' and {self.masks} masks' if self.masks else '')

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers as plain values for JSON, with the words for what they count."""
        return {**asdict(self), 'conventions': dict(CONVENTIONS)}


def backbone_path(model: nn.Module) -> str:
    """Return the path of the outermost submodule named ``backbone``, ``''`` if there is none."""
    found = [path for path, _ in model.named_modules() if path.split('.')[-1] == 'backbone']
    return min(found, key=lambda path: path.count('.'), default='')


def complexity(model: nn.Module, input_shape: DemoInputs = None, flops: bool = True) -> Complexity:
    """Return parameters, multiply-accumulates and volume of a model for one sample.

    ``macs`` is counted by hooks on the layers while the model runs once. mmengine's analysis is not
    used for it: it adds normalisation, pooling and attention, sees no layer inside a custom
    operator, and needs a forward that ``torch.jit`` can trace. The hooks count every model that
    runs, so dense and compact models of all tasks go by one rule. Products are left out of the run
    (:class:`mmprune_ext.analysis.counting.ShapesOnly`): numbers follow from shapes alone.

    The model stays as it was: flags, buffers and random number generators are restored.

    Args:
        model: Any module; an OpenMMLab model is run in tensor mode, a two-stage detector on as many
            regions as its ``test_cfg`` keeps.
        input_shape: ``(C, H, W)`` or ``(H, W)`` of one sample, a batch, a function that takes the
            model and runs it once, or ``dict(type=...)`` naming one. By default the size that the
            model states, else 224 x 224.
        flops: Whether to run mmengine's analysis too, which takes longer than the count itself.

    Raises:
        PruningError: If the shape is malformed or the model does not run on it.
    """
    with untouched(model):
        measured = inference_pass(model, input_shape)
        counter = _count_macs(model, measured)
        total, missing = mmengine_flops(model, measured.forward) if flops else (None, '')
    path = backbone_path(model)
    inside = f'{path}.' if path else ''
    macs, regions = sum(counter.per_layer.values()), measured.regions
    return Complexity(
        params=_count(model), macs=macs,
        backbone_params=_count(model.get_submodule(path)),
        backbone_macs=sum(macs for layer, macs in counter.per_layer.items()
                          if layer.startswith(inside) or layer == path),
        per_layer=counter.per_layer, matmul_macs=counter.matmul_macs, flops=total,
        flops_missing=missing, flops_mm=macs + counter.extra['mm'],
        flops_thop=macs + counter.extra['thop'], input_shape=measured.shape,
        proposals=regions.proposals if regions else None,
        masks=(regions.masks or None) if regions else None,
        volume=sum(counter.per_layer_outputs.values()), per_layer_outputs=counter.per_layer_outputs)


def _count_macs(model: nn.Module, measured: InferencePass) -> MacCounter:
    try:
        with ShapesOnly(), (counter := MacCounter(model)).counting():
            measured.forward(model)
    except Exception:  # zeros may be no values for it (an inverse); it then runs on real ones
        with (counter := MacCounter(model)).counting():
            measured.run(model)
    return counter


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def mmengine_flops(model: nn.Module, forward: Forward) -> tuple[int | None, str]:
    """Return the total of mmengine's ``FlopAnalyzer``, or ``None`` and why there is none.

    Args:
        model: The model, in eval mode.
        forward: The pass to analyse.
    """
    from mmengine.analysis import FlopAnalyzer
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter('ignore')
            images = forward.images if isinstance(forward, OnImages) else torch.zeros(1)
            analyzer = FlopAnalyzer(_Traceable(model, forward), (images,))
            # It lists the operators that it does not count; what it counts is its convention.
            analyzer.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
            return int(analyzer.total()), ''
    except Exception as error:  # jit tracing runs the model's code and fails in any way
        return None, f'torch.jit: {type(error).__name__}: {" ".join(str(error).split())[:200]}'


class _Traceable(nn.Module):
    """What ``torch.jit`` traces: images in, a tuple of tensors out, whatever the model returns."""

    def __init__(self, model: nn.Module, forward: Forward) -> None:
        super().__init__()
        self.model = model
        self.pass_of_model = forward

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        on_images = isinstance(self.pass_of_model, OnImages)
        found = tensors_in(self.pass_of_model.run(self.model, images) if on_images
                           else self.pass_of_model(self.model))
        if not found:  # all that leads to no output is left out of a graph
            raise ValueError('the model returned no tensor')
        return tuple(found)
