"""Weights that are computed from other parameters: weight norm, masks, parametrisations, hooks.

A weight norm is exact for fewer channels when its gain follows the norm of what is left. The masks of
``torch.nn.utils.prune`` lose the places that their weight loses. Another parametrisation may lose channels where it
treats each place by itself. Spectral norm, and what is not known, may not.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

NAMES = ('weight', 'bias')


def hook_of(module: nn.Module, name: str) -> Any:
    """Return the hook that computes a layer's weight before each pass, ``None`` if there is none."""
    return next((hook for hook in module._forward_pre_hooks.values()
                 if name in (getattr(hook, 'name', None), getattr(hook, '_tensor_name', None))), None)


def is_computed(module: nn.Module, name: str) -> bool:
    """Whether a layer's weight is no parameter or buffer, but made of some."""
    return parametrize.is_parametrized(module, name) or isinstance(vars(module).get(name), Tensor)


def select_computed(module: nn.Module, name: str, dim: int, keep: Tensor) -> None:
    """Keep positions of one dimension of a weight that is computed: of what it is made of."""
    if parametrize.is_parametrized(module, name):
        made_of = module.parametrizations[name]
        if _is_weight_norm(made_of):
            _select_normed(made_of, 'original0', 'original1', made_of[0].dim, dim, keep)
        else:
            _select(made_of, 'original', dim, keep)
        return
    hook = hook_of(module, name)
    if isinstance(hook, WeightNorm):
        _select_normed(module, f'{name}_g', f'{name}_v', hook.dim, dim, keep)
    elif isinstance(hook, prune.BasePruningMethod):
        for part in (f'{name}_orig', f'{name}_mask'):
            _select(module, part, dim, keep)
    refresh(module, name)


def refresh(module: nn.Module, name: str) -> None:
    """Compute a weight anew that a hook computes before each pass, from the parameters as they are."""
    hook = hook_of(module, name)
    with torch.no_grad():
        if isinstance(hook, WeightNorm):
            setattr(module, name, hook.compute_weight(module))
        elif isinstance(hook, prune.BasePruningMethod):
            setattr(module, name, hook.apply_mask(module))


def refresh_all(model: nn.Module) -> None:
    """Compute all weights anew that hooks compute: they are those of the last pass, before weights were loaded."""
    for module in model.modules():
        hooks = [hook for hook in module._forward_pre_hooks.values()
                 if isinstance(hook, (prune.BasePruningMethod, WeightNorm))]
        # What is masked may be a part of what is normalised.
        for hook in sorted(hooks, key=lambda hook: isinstance(hook, WeightNorm)):
            refresh(module, hook._tensor_name if isinstance(hook, prune.BasePruningMethod) else hook.name)


def make_plain(module: nn.Module) -> None:
    """Put parameters in the place of a layer's weights that are computed."""
    if parametrize.is_parametrized(module):
        values = {name: getattr(module, name).detach() for name in module.parametrizations}
        # Not by torch's own function: it changes the class, which copies of the layer share.
        del module._modules['parametrizations']
        module.__class__ = type(module).__bases__[0]
        for name, value in values.items():
            module.register_parameter(name, nn.Parameter(value))
    for name in NAMES:
        if is_computed(module, name):
            hook = hook_of(module, name)
            for key in [key for key, known in module._forward_pre_hooks.items() if known is hook]:
                del module._forward_pre_hooks[key]
            value = vars(module).pop(name).detach()
            module.register_parameter(name, nn.Parameter(value))


def refusal(module: nn.Module, path: str, names: Sequence[str] = NAMES) -> str:
    """Return why a layer's weights cannot lose channels, and the line that mends it; empty if they can."""
    layer = f"model.get_submodule('{path}')"
    for name in names:
        if parametrize.is_parametrized(module, name):
            made_of = module.parametrizations[name]
            if not (_is_weight_norm(made_of) or _is_by_place(made_of)):
                kinds = ', '.join(type(part).__name__.lstrip('_') for part in made_of)
                return (f'{kinds} computes the {name} of {path} from all of it; torch.nn.utils.parametrize.'
                        f"remove_parametrizations({layer}, '{name}') makes it plain")
        elif is_computed(module, name):
            hook = hook_of(module, name)
            if isinstance(hook, SpectralNorm):
                return (f'SpectralNorm computes the {name} of {path} from all of it; '
                        f"torch.nn.utils.remove_spectral_norm({layer}, '{name}') makes it plain")
            if not isinstance(hook, (WeightNorm, prune.BasePruningMethod)):
                of = 'code of its own' if hook is None else type(hook).__name__
                clear = '' if hook is None else f'{layer}._forward_pre_hooks.clear(); '
                return (f'{of} computes the {name} of {path}; {clear}{layer}.{name} = '
                        f"torch.nn.Parameter(vars({layer}).pop('{name}').detach()) makes it plain")
    return ''


def remedy(module: nn.Module, path: str, names: Sequence[str]) -> str:
    """Return what computes a layer's weight, of whatever kind, and the line that makes that plain; empty if nothing."""
    layer = f"model.get_submodule('{path}')"
    for name in names:
        hook = hook_of(module, name) if is_computed(module, name) else None
        if parametrize.is_parametrized(module, name):
            line = f"torch.nn.utils.parametrize.remove_parametrizations({layer}, '{name}')"
        elif isinstance(hook, prune.BasePruningMethod):
            line = f"torch.nn.utils.prune.remove({layer}, '{name}')"
        elif isinstance(hook, WeightNorm):
            line = f"torch.nn.utils.remove_weight_norm({layer}, '{name}')"
        else:
            continue
        return f'the {name} of {path} is computed from others; {line} makes it plain'
    return refusal(module, path, names)


def _is_weight_norm(made_of: nn.Module) -> bool:
    return len(made_of) == 1 and type(made_of[0]).__name__ == '_WeightNorm'


@torch.no_grad()
def _is_by_place(made_of: nn.Module) -> bool:
    """Whether a parametrisation of a part of its tensor is that part of its result, in each dimension of channels."""
    if not made_of.is_tensor:
        return False
    parts = copy.deepcopy(list(made_of))
    for part in parts:
        part.eval()

    def computed(value: Tensor) -> Tensor:
        for part in parts:
            value = part(value)
        return value
    original = made_of.original.detach()
    try:
        whole = computed(original.clone())
        for dim in range(min(original.dim(), 2)):
            kept = torch.arange(0, original.shape[dim], 2)
            part, wanted = computed(original.index_select(dim, kept)), whole.index_select(dim, kept)
            if part.shape != wanted.shape or not torch.allclose(part, wanted, rtol=1e-5, atol=1e-7):
                return False
    except Exception:  # the user's code may fail in any way on another shape
        return False
    return whole.shape == original.shape


def _select(module: nn.Module, name: str, dim: int, keep: Tensor) -> None:
    if is_computed(module, name):
        return select_computed(module, name, dim, keep)
    before = getattr(module, name)
    _replace(module, name, before.detach().index_select(dim, keep.to(before.device)))


def _replace(module: nn.Module, name: str, value: Tensor) -> None:
    before = getattr(module, name)
    if isinstance(before, nn.Parameter):
        value = nn.Parameter(value, requires_grad=before.requires_grad)
    setattr(module, name, value)


def _select_normed(module: nn.Module, gain: str, direction: str, norm_dim: int | None, dim: int, keep: Tensor) -> None:
    """Keep positions of a direction; the gain changes as its norm, so that what is left keeps its values."""
    norm_dim = -1 if norm_dim is None else norm_dim
    before = torch.norm_except_dim(getattr(module, direction).detach(), 2, norm_dim)
    _select(module, direction, dim, keep)
    if before.dim() > dim and before.shape[dim] > 1:
        before = before.index_select(dim, keep.to(before.device))
        _select(module, gain, dim, keep)
    # A mask of the gain stays before it.
    stored = f'{gain}_orig' if is_computed(module, gain) else gain
    after = torch.norm_except_dim(getattr(module, direction).detach(), 2, norm_dim)
    _replace(module, stored, getattr(module, stored).detach() * after / before)
    refresh(module, gain)
