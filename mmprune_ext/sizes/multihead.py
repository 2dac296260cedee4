"""``nn.MultiheadAttention`` whose input, heads and output have widths of their own."""
from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmprune_ext.sizes.heads import heads_left

_SEPARATE = ('q_proj_weight', 'k_proj_weight', 'v_proj_weight')


def is_followed(module: nn.Module) -> bool:
    """Whether an attention layer computes what torch's own does, with weights that are plain parameters."""
    forward = vars(module).get('forward')
    names = ('in_proj_weight',) if module.in_proj_weight is not None else _SEPARATE
    return (type(module).forward is nn.MultiheadAttention.forward
            and (forward is None or isinstance(forward, OwnWidths))
            and all(isinstance(module._parameters.get(name), nn.Parameter) for name in names))


def projections(module: nn.MultiheadAttention) -> list[tuple[str, int, int]]:
    """Return where queries, keys and values are made: the name of a parameter, the first of its rows, how many.

    Heads lie one after the other in each of the three. Those of values have the width that ``out_proj`` reads.
    """
    values = module.out_proj.in_features
    if module.in_proj_weight is None:
        return [(name, 0, len(getattr(module, name))) for name in _SEPARATE]
    keys = (len(module.in_proj_weight) - values) // 2
    return [('in_proj_weight', 0, keys), ('in_proj_weight', keys, keys), ('in_proj_weight', 2 * keys, values)]


class OwnWidths:
    """The ``forward`` of a slimmed ``nn.MultiheadAttention``: what torch's computes, for any widths.

    Its parameters keep their names: ``in_proj_weight`` is ``(2 * heads * width of keys + heads * width of values,
    width of the input)``. The scale stays that of the dense layer.

    Args:
        module: The layer, slimmed.
        scale: What products of queries and keys are multiplied by.
        heads: Which heads of the dense layer are left; a mask of each head of that is given for all of them.
        dense_heads: How many that has.
    """

    def __init__(self, module: nn.MultiheadAttention, scale: float, heads: list[int], dense_heads: int) -> None:
        self.module, self.scale, self.heads, self.dense_heads = module, scale, heads, dense_heads

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
                 need_weights: bool = True, attn_mask: Tensor | None = None, average_attn_weights: bool = True,
                 is_causal: bool = False) -> tuple[Tensor, Tensor | None]:
        """Compute attention; arguments, results and their shapes are those of ``nn.MultiheadAttention``."""
        module, batched = self.module, query.dim() == 3
        if is_causal and attn_mask is None:
            raise RuntimeError('Need attn_mask if specifying the is_causal hint.')
        q, k, v = self._projected(query, key, value)
        if not batched:
            q, k, v = q[None], k[None], v[None]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not module.batch_first:
            q, k, v = q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)
        k, v, more = self._with_extra_places(k, v)
        q, k, v = (x.unflatten(-1, (len(self.heads), -1)).transpose(1, 2) for x in (q, k, v))
        mask = self._mask(attn_mask, key_padding_mask, len(q), q.dtype)
        mask = None if mask is None else F.pad(mask, (0, more))
        dropout, weights = module.dropout if module.training else 0.0, None
        if need_weights:
            products = q * self.scale @ k.transpose(-2, -1)
            weights = F.dropout((products if mask is None else products + mask).softmax(-1), dropout)
            out = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            out = F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=self.scale)
        out = F.linear(out.transpose(1, 2).flatten(2), module.out_proj.weight, module.out_proj.bias)
        if not batched:
            return out[0], None if weights is None else weights[0]
        return out if module.batch_first else out.transpose(0, 1), weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        module, parts = self.module, projections(self.module)
        counts = [count for _, _, count in parts]
        if module.in_proj_weight is not None and query is key and key is value:
            return list(F.linear(query, module.in_proj_weight, module.in_proj_bias).split(counts, -1))
        weights = [getattr(module, name)[first:first + count] for name, first, count in parts]
        biases = [None] * 3 if module.in_proj_bias is None else module.in_proj_bias.split(counts)
        return [F.linear(x, weight, bias) for x, weight, bias in zip((query, key, value), weights, biases)]

    def _with_extra_places(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, int]:
        """Return keys and values, ``(N, S, C)``, with those that the layer adds itself, and how many these are."""
        module, more = self.module, 0
        if module.bias_k is not None:
            k = torch.cat([k, module.bias_k.expand(len(k), -1, -1)], 1)
            v = torch.cat([v, module.bias_v.expand(len(v), -1, -1)], 1)
            more += 1
        if module.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
            more += 1
        return k, v, more

    def _mask(self, mask: Tensor | None, padding: Tensor | None, images: int, dtype: torch.dtype) -> Tensor | None:
        """Return what is added to the products, to be broadcast over ``(N, heads, L, S)``."""
        added = []
        if mask is not None:
            if mask.dim() == 3:
                mask = mask.unflatten(0, (images, self.dense_heads))
                mask = mask if len(self.heads) == self.dense_heads else mask[:, self.heads]
            added.append(_as_term(mask, dtype))
        if padding is not None:
            added.append(_as_term(padding, dtype)[:, None, None])
        return sum(added[1:], added[0]) if added else None


def _as_term(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype is not torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, float('-inf'))


class Multihead:
    """An attention layer that is about to be slimmed.

    Args:
        module: The layer, of a kind told by :func:`is_followed`.
    """

    def __init__(self, module: nn.MultiheadAttention) -> None:
        self.module = module
        self.count, self.inner = module.num_heads, module.out_proj.in_features
        self._shapes = self._sizes()

    def _sizes(self) -> list[torch.Size]:
        return [parameter.shape for parameter in self.module.parameters()]

    def renew(self, removed: np.ndarray | None) -> None:
        """Let the layer compute with the widths that it has, after it was slimmed.

        Args:
            removed: Which channels ``out_proj`` does not read any more, bool, ``None`` for none.
        """
        module, before = self.module, vars(self.module).get('forward')
        if self._sizes() == self._shapes:
            return
        left = heads_left(removed, self.count)
        if before is None:
            scale, heads, dense_heads = module.head_dim ** -0.5, left, self.count
        else:
            scale, heads, dense_heads = before.scale, [before.heads[i] for i in left], before.dense_heads
        module.forward = OwnWidths(module, scale, heads, dense_heads)
        module.num_heads = len(left)
        module.head_dim = module.out_proj.in_features // len(left)
        (query, *_), (key, *_), (value, *_) = projections(module)
        module.embed_dim, module.kdim, module.vdim = (getattr(module, name).shape[1] for name in (query, key, value))
        # TransformerEncoderLayer hands the weights to a fused operator of one width unless it reads this.
        module._qkv_same_embed_dim = False


def renew_encoders(model: nn.Module) -> None:
    """Keep encoders from packing their sequences for that fused operator, where layers of them were slimmed."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and getattr(module, 'use_nested_tensor', False) and any(
                isinstance(vars(part).get('forward'), OwnWidths) for part in module.modules()):
            module.use_nested_tensor = False
