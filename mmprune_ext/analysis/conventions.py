"""What published tables count beside multiply-accumulates.

Two counters that much of the literature printed its FLOPs by add work that is no multiply-accumulate
of a layer. Here is what they add for one call of one module.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from torch import Tensor, nn
from torch.nn.modules.activation import ELU, LeakyReLU, PReLU, ReLU, ReLU6
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.pooling import (
    _AdaptiveAvgPoolNd,
    _AdaptiveMaxPoolNd,
    _AvgPoolNd,
    _MaxPoolNd,
)

from mmprune_ext.ops import StripeConv2d

CONVENTIONS: Mapping[str, str] = MappingProxyType({
    'params': 'learned parameters, each counted once; no buffers; of a convolution that has lost stripes, the stripes '
              'that are left',
    'macs': 'multiply-accumulates of all convolution and linear layers for one sample; no bias, '
            'normalisation, activation or pooling; of a convolution that has lost stripes those of the '
            'stripes that are left, also where it is computed with zeros in their place',
    'matmul_macs': 'multiply-accumulates of matrix products of two activations (attention), '
                   'not part of macs',
    'volume': 'output values of all convolution and linear layers for one sample, summed over calls; '
              'no matrix products of two activations',
    'flops': "mmengine's FlopAnalyzer: a multiply-accumulate is one, normalisation, pooling and "
             'interpolation count, matrix products included; null where it cannot run',
    'flops_mm': "OpenMMLab's counter before mmengine: macs, and 1 per output of a convolution with "
                'bias, 2 per element of normalisation, 1 per output of ReLU and its kin, 1 per input '
                'of pooling, 1 per output of upsampling layers; functions are not seen',
    'flops_thop': 'thop 0.0.31: macs, and 1 per output of a convolution with bias, 2 per element of '
                  'batch normalisation, 1 per output of average pooling (adaptive: 1 more than the '
                  'window); functions are not seen',
    'backbone': 'the part of the model named "backbone"; the whole model where there is none',
    'pass': 'inference with all heads of it, before post-processing; a two-stage detector on as many '
            'proposals an image as test_cfg.rpn.max_per_img keeps, its masks on as many as '
            'test_cfg.rcnn.max_per_img; a cascade of segmentation heads (PointRend) on the points '
            'that its test_cfg subdivides',
})

_RECTIFIERS = (ReLU, ReLU6, PReLU, ELU, LeakyReLU)
_NORMS = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm)
_AVERAGES = (_AvgPoolNd, _AdaptiveAvgPoolNd)
_POOLS = (*_AVERAGES, _MaxPoolNd, _AdaptiveMaxPoolNd)
KINDS = (_ConvNd, StripeConv2d, *_RECTIFIERS, *_NORMS, *_POOLS, nn.Upsample)


def mm_extra(module: nn.Module, source: Tensor, output: Tensor) -> int:
    """Return what OpenMMLab's former counter adds to the multiply-accumulates of one call."""
    if isinstance(module, (_ConvNd, StripeConv2d)):
        return 0 if module.bias is None else output.numel()
    if isinstance(module, _NORMS):
        learned = getattr(module, 'affine', getattr(module, 'elementwise_affine', False))
        return source.numel() * (2 if learned else 1)
    return (source if isinstance(module, _POOLS) else output).numel()


def thop_extra(module: nn.Module, source: Tensor, output: Tensor) -> int:
    """Return what thop 0.0.31 adds to the multiply-accumulates of one call."""
    if isinstance(module, (_ConvNd, StripeConv2d)):
        return 0 if module.bias is None else output.numel()
    if isinstance(module, _BatchNorm):
        return 2 * source.numel()
    if isinstance(module, _AdaptiveAvgPoolNd):
        window = 1
        for before, after in zip(source.shape[2:], output.shape[2:]):
            window *= before // after
        return (window + 1) * output.numel()
    return output.numel() if isinstance(module, _AVERAGES) else 0
