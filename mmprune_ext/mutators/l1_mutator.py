"""L1 filter pruning (Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from mmprune_ext.mutators.base import ChannelMutator
from mmprune_ext.ops import StripeConv2d
from mmprune_ext.registry import MODELS
from mmprune_ext.scores import l1_norm
from mmprune_ext.units import ChannelUnit


@MODELS.register_module()
class L1Mutator(ChannelMutator):
    """Score a channel by the L1 norm of its filters, summed over the unit's producers.

    Source: arXiv 1608.08710, section 3.1 (one layer) and 3.3 (coupled layers).
    """

    takes_parameters = True

    def score(self, model: nn.Module, unit: ChannelUnit) -> Tensor:
        """Return the sum of ``|W|`` of each channel, ``(num_channels,)``, float64."""
        total = torch.zeros(unit.num_channels, dtype=torch.float64)
        for member in unit.producers:
            places = torch.from_numpy(member.positions(unit.num_channels))
            if member.dim is not None:
                total += l1_norm(model.get_parameter(member.module).detach().cpu(), member.dim)[places].sum(1)
                continue
            module = model.get_submodule(member.module)
            if isinstance(module, StripeConv2d):
                module = module.to_conv()
            weight = getattr(module, 'weight', None)
            if weight is None:
                continue  # a shortcut without weights
            total += _filter_norms(module, weight.detach().cpu())[places].sum(1)
        return total


def _filter_norms(module: nn.Module, weight: Tensor) -> Tensor:
    if not isinstance(module, _ConvTransposeNd):
        return l1_norm(weight)
    # (C_in, C_out / groups, ...): the filters of each group's output channels lie in its inputs.
    grouped = weight.unflatten(0, (module.groups, -1))
    return torch.cat([l1_norm(group, dim=1) for group in grouped])
