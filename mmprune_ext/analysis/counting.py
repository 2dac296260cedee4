"""Count the multiply-accumulates and output values of one forward pass, layer by layer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from mmprune_ext.analysis.conventions import KINDS, mm_extra, thop_extra
from mmprune_ext.ops import StripeConv2d

FUNCTIONAL = '(functional)'


def is_counted_layer(module: nn.Module) -> bool:
    """Whether a module is a layer whose multiply-accumulates are those of one weight.

    mmcv's deformable convolutions derive from ``nn.Module`` and are told by their class name, so
    that mmcv's compiled operators need not be installed.
    """
    return isinstance(module, (_ConvNd, nn.Linear, StripeConv2d)) or any(
        'DeformConv' in cls.__name__ for cls in type(module).__mro__) and isinstance(
            getattr(module, 'weight', None), Tensor)


def layer_macs(module: nn.Module, source: Tensor, output: Tensor) -> int:
    """Return the multiply-accumulates of one call of a convolution or linear layer."""
    if isinstance(module, StripeConv2d):
        return output.numel() // module.out_channels * module.num_stripes * module.in_channels
    # A transposed convolution multiplies once per input element, the others once per output one.
    positions = source if isinstance(module, _ConvTransposeNd) else output
    return positions.numel() * module.weight[0].numel()


class ShapesOnly(TorchDispatchMode):
    """Leave out what a network's time goes into: products give zeros of the right shape.

    All else runs, on the values there are, so that operators that know no meta tensors (RoIAlign,
    deformable convolution) do as well.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        if _operator(func) not in _PRODUCTS:
            return func(*args, **(kwargs or {}))
        device = next(v.device for v in args if isinstance(v, Tensor))
        out = func(*tree_map_only(Tensor, lambda t: t.to('meta'), args), **(kwargs or {}))
        return torch.zeros(out.shape, dtype=out.dtype, device=device)


_PRODUCTS = {'convolution', 'mm', 'addmm', 'bmm', 'baddbmm'}


def _operator(func: Any) -> str:
    return func._schema.name.removeprefix('aten::')


class MacCounter(TorchDispatchMode):
    """Count a model's multiply-accumulates while it runs, inside :meth:`counting`.

    Attributes:
        per_layer: Multiply-accumulates of each convolution and linear layer, summed over calls, by
            path. A product with a parameter outside such a layer (the projections of
            ``nn.MultiheadAttention``) counts for the module that owns the parameter, a convolution
            with computed weights for ``'(functional)'``.
        per_layer_outputs: Values that each of these layers gave out, summed over calls, by path. This
            is the activation count of fvcore and mmengine without products of two activations.
        matmul_macs: Multiply-accumulates of matrix products of two activations (attention).
        extra: What published counters add to the multiply-accumulates (``'mm'``, ``'thop'``).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.per_layer: dict[str, int] = {}
        self.per_layer_outputs: dict[str, int] = {}
        self.matmul_macs = 0
        self.extra = {'mm': 0, 'thop': 0}
        self._inside = 0
        self._owners = {p.untyped_storage().data_ptr(): name.rpartition('.')[0]
                        for name, p in model.named_parameters() if p.dim() > 1}

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Count everything that the model does in the block."""
        handles = []
        for path, module in self.model.named_modules():
            if is_counted_layer(module):
                handles.append(module.register_forward_pre_hook(self._enter, prepend=True))
                handles.append(module.register_forward_hook(self._leave(path), with_kwargs=True))
            if isinstance(module, KINDS):
                handles.append(module.register_forward_hook(self._add_extra, with_kwargs=True))
        try:
            with _no_fused_attention(), self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, args: tuple) -> None:
        self._inside += 1

    def _leave(self, path: str) -> Callable[..., None]:
        def leave(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
            self._inside -= 1
            result = output if isinstance(output, Tensor) else output[0]
            self._add(path, layer_macs(module, _source(args, kwargs), result), result)
        return leave

    def _add_extra(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        source, result = _source(args, kwargs), output if isinstance(output, Tensor) else output[0]
        self.extra['mm'] += mm_extra(module, source, result)
        self.extra['thop'] += thop_extra(module, source, result)

    def _add(self, path: str, macs: int, output: Tensor) -> None:
        self.per_layer[path] = self.per_layer.get(path, 0) + macs
        self.per_layer_outputs[path] = self.per_layer_outputs.get(path, 0) + output.numel()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not self._inside:
            name = _operator(func)
            if name == 'convolution':
                weight, owner = args[1], self._owner(args[1])
                positions = args[0] if args[6] else out
                self._add(FUNCTIONAL if owner is None else owner,
                          positions.numel() * weight[0].numel(), out)
            elif name in ('mm', 'addmm', 'bmm', 'baddbmm', 'mv', 'addmv'):
                first, second = args[-2:] if not name.startswith(('add', 'badd')) else args[1:3]
                self._matrix_product(first, second, out)
            elif name.startswith('_scaled_dot_product'):
                query, key, value = args[:3]
                pairs = query[..., 0].numel() * key.shape[-2]
                self.matmul_macs += pairs * (query.shape[-1] + value.shape[-1])
        return out

    def _owner(self, weight: Tensor) -> str | None:
        return self._owners.get(weight.untyped_storage().data_ptr())

    def _matrix_product(self, first: Tensor, second: Tensor, out: Tensor) -> None:
        macs = first.numel() * (second.shape[-1] if second.dim() > 1 else 1)
        owner = self._owner(second) if second.dim() == 2 else None
        if owner is None:
            self.matmul_macs += macs
        else:
            self._add(owner, macs, out)


def _source(args: tuple, kwargs: dict[str, Any]) -> Tensor:
    """Return what a layer was called on."""
    return next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))


@contextlib.contextmanager
def _no_fused_attention() -> Iterator[None]:
    """Keep ``nn.MultiheadAttention`` from one fused operator that hides its products."""
    switch = getattr(torch.backends, 'mha', None)
    if switch is None:
        yield
        return
    before = switch.get_fastpath_enabled()
    switch.set_fastpath_enabled(False)
    try:
        yield
    finally:
        switch.set_fastpath_enabled(before)
