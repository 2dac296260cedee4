"""Toy nets: deformable convolutions, whose offsets are computed from what they read."""

from __future__ import annotations

from mmcv.ops import (
    DeformConv2d,
    DeformConv2dPack,
    ModulatedDeformConv2d,
    ModulatedDeformConv2dPack,
)
from torch import Tensor, nn

from tests.test_units.toy_base import Reason, Wrapped, conv

OUT = (5, Reason.OUTPUT)


class _Deformed(Wrapped):
    """A deformable convolution with an offset convolution of its own."""

    def build_layer(self) -> nn.Module:
        raise NotImplementedError

    def make(self) -> None:
        self.mid, self.bn = self.build_layer(), nn.BatchNorm2d(self.head_inputs)
        nn.init.normal_(self.mid.conv_offset.weight, 0, 0.2)

    def middle(self, x: Tensor) -> Tensor:
        return self.bn(self.mid(x)).relu()


class DeformablePack(_Deformed):
    units = {'stem.0': (8, None), 'mid': (6, None), 'mid.conv_offset': (18, Reason.LAYER), 'head': OUT}
    members = {'stem.0': 'stem.0[0:8] | stem.1[0:8] | mid.conv_offset[0:8] mid[0:8]',
               'mid': 'mid[0:6] | bn[0:6] | head[0:6]'}
    head_inputs = 6

    def build_layer(self) -> nn.Module:
        return DeformConv2dPack(8, 6, 3, padding=1)


class ModulatedPack(_Deformed):
    units = {'stem.0': (8, None), 'mid': (6, None), 'mid.conv_offset': (27, Reason.LAYER), 'head': OUT}
    head_inputs = 6

    def build_layer(self) -> nn.Module:
        return ModulatedDeformConv2dPack(8, 6, 3, padding=1, bias=True)


class DeformGroups(_Deformed):
    """Each half of the inputs is sampled at places of its own: the halves stay equally wide."""

    units = {'stem.0': (4, None), 'mid': (6, None), 'mid.conv_offset': (54, Reason.LAYER), 'head': OUT}
    members = {'stem.0': 'stem.0[0:8/2]~ | stem.1[0:8/2]~ | mid.conv_offset[0:8/2]~ mid[0:8/2]~'}
    head_inputs = 6

    def build_layer(self) -> nn.Module:
        return ModulatedDeformConv2dPack(8, 6, 3, padding=1, deform_groups=2)


class DeformGroupsAndGroups(_Deformed):
    """Four groups of the weight across two groups of the offsets."""

    units = {'stem.0': (2, None), 'mid': (3, None), 'mid.conv_offset': (36, Reason.LAYER), 'head': OUT}
    members = {'mid': 'mid[0:12/4]~ | bn[0:12/4]~ | head[0:12/4]~'}
    head_inputs = 12

    def build_layer(self) -> nn.Module:
        return DeformConv2dPack(8, 12, 3, padding=1, groups=4, deform_groups=2)


class DeformableWithOffsets(Wrapped):
    """The offsets come from a layer elsewhere, which reads what is pruned but stays whole."""

    units = {'stem.0': (8, None), 'places': (18, Reason.LAYER), 'mid': (6, None), 'head': OUT}
    members = {'stem.0': 'stem.0[0:8] | stem.1[0:8] | mid[0:8] places[0:8]'}
    head_inputs = 6

    def make(self) -> None:
        self.places, self.mid = conv(8, 18), DeformConv2d(8, 6, 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        return self.mid(x, 0.3 * self.places(x))


class ModulatedWithOffsets(Wrapped):
    """Mask and offsets from two layers."""

    units = {'stem.0': (8, None), 'places': (18, Reason.LAYER), 'mask': (9, Reason.LAYER),
             'mid': (6, None), 'head': OUT}
    head_inputs = 6

    def make(self) -> None:
        self.places, self.mask = conv(8, 18), conv(8, 9)
        self.mid = ModulatedDeformConv2d(8, 6, 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        return self.mid(x, 0.3 * self.places(x), self.mask(x).sigmoid())
