"""Layers that cut regions out of a pyramid of feature maps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmprune_ext.units.labels import compress
from mmprune_ext.units.layers import RULES, LayerRule
from mmprune_ext.units.reasons import Reason

if TYPE_CHECKING:
    from mmprune_ext.units.tracing.tracer import Tracer


class RoIExtractorRule(LayerRule):
    """mmdet's RoI extractor: takes every region from one level of a pyramid, and stores its width."""

    names = frozenset({'SingleRoIExtractor'})

    def widths(self, module: nn.Module) -> dict[str, int]:
        return {'follower': module.out_channels}

    def trace(self, tracer: Tracer, module: nn.Module, inputs: list[Tensor], output: Any) -> None:
        *features, regions = inputs
        tracer.freeze_inputs(regions, Reason.LAYER, f'regions of {tracer.path_of(module)}')
        labels, *others = [tracer.channel_labels(x, 1, Reason.SPACE) for x in features]
        for other in others:
            tracer.space.tie(labels, other)
        tracer.follow(module, labels, output, 1)

    def slim(self, module: nn.Module, in_keep: Tensor | None, out_keep: Tensor | None) -> None:
        if out_keep is not None:
            module.out_channels = len(out_keep)


class MultiScaleRule(LayerRule):
    """torchvision's pooler: takes every region from one level of a pyramid, and has no width of its own.

    All levels are tied, whichever the demo regions lie on.
    """

    names = frozenset({'MultiScaleRoIAlign'})

    def widths(self, module: nn.Module) -> dict[str, int]:
        return {}

    def trace(self, tracer: Tracer, module: nn.Module, inputs: list[Tensor], output: Any) -> None:
        width = output.shape[1]
        levels = [x for x in inputs if x.dim() == 4 and x.shape[1] == width]
        tracer.freeze_inputs([x for x in inputs if x.dim() != 4], Reason.LAYER, f'regions of {tracer.path_of(module)}')
        labels, *others = [tracer.channel_labels(x, 1, Reason.SPACE) for x in levels]
        for other in others:
            tracer.space.tie(labels, other)
        tracer.write(output, compress(torch.from_numpy(labels.copy()).reshape(1, -1, 1, 1)))

    def slim(self, module: nn.Module, in_keep: Tensor | None, out_keep: Tensor | None) -> None:
        raise AssertionError('a layer of this kind has nothing to slim')


RULES.extend([RoIExtractorRule(), MultiScaleRule()])
