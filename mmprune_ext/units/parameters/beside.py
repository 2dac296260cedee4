"""What a layer of a user's own class keeps beside its weight: masks, gains, matrices of low rank."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from mmprune_ext.units.parameters.computed import NAMES, is_computed


def beside_weight(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Yield what lies along a dimension of a layer's weight: a name, and which of the first two dimensions.

    That is told by sizes: a tensor of as many dimensions has that of the weight there, a vector as many values as
    the weight has rows. Whether that is so shows in the check by execution.
    """
    if type(module).__module__.startswith(('torch.', 'mmprune_ext.')):
        return
    weight = module.weight
    # What a hook computes a weight from is known.
    computed = tuple(f'{name}_' for name in NAMES if is_computed(module, name))
    for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        if name in NAMES or name.startswith(computed) or not isinstance(tensor, Tensor):
            continue
        if tensor.dim() == weight.dim():
            for dim in range(min(2, tensor.dim())):
                if tensor.shape[dim] == weight.shape[dim] > 1:
                    yield name, dim
        elif tensor.dim() == 1 and len(tensor) == len(weight) > 1:
            yield name, 0
