"""The convolution of a network that stripe-wise pruning (arXiv 2009.14410) has made small."""
from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmprune_ext.ops.in_place import conv_with
from mmprune_ext.ops.stripe_layout import StripeLayout
from mmprune_ext.ops.stripe_sum import StripeSum, filled, sum_traced

FORMS = ('dense', 'stripes')
# Of inputs whose sizes differ from pass to pass, that many are prepared for.
MOST_SIZES = 32


class _Baked(NamedTuple):
    """A weight with its zeros, and what tells that the weight it was made of is still the same.

    Attributes:
        dense: The weight of the box, `(C_out, C_in, kH', kW')`.
        source: The stripes that it was made of, held so that no other weight can lie at their address.
        address: Theirs.
        version: How often they had been written.
    """

    dense: Tensor
    source: Tensor
    address: int
    version: int


class StripeConv2d(nn.Module):
    """A convolution of which some stripes, filters at one kernel position, are left.

    Input `(N, C_in, H, W)`, output `(N, C_out, H', W')`: that of the convolution with zeros in the place of the
    stripes that are gone. It computes this in one of two forms, of the same weights and state dict:

    * `dense`: by a convolution with these zeros, over the smallest part of the kernel that holds all stripes;
    * `stripes`: all stripes at a kernel position are a matrix product with the plane of the input, which is added,
      shifted by the position, to the outputs of their filters. Less is multiplied, more is moved.

    Training takes the dense form. Only stripes that are left have weights: none can come back.

    In the dense form and eval mode, the weight with its zeros is kept until the mode is set, weights are loaded or
    written, or the layer is moved. A write through `weight.data` goes unnoticed: call `eval()` after it.

    Args:
        conv: The convolution, with `groups=1`. Its bias becomes this layer's.
        keep: The stripes that are left, bool `(C_out, kH, kW)`.
        form: `dense` or `stripes`.

    Attributes:
        weight: Stripes that are left, `(num_stripes, C_in)`, ordered by kernel position, row by row, then by filter;
            `None` if there are none.
        bias: One value a filter, `(C_out,)`, or `None`.
        keep: As given.
        num_stripes: How many are left.
        form: As given, or as set by :meth:`set_form`.

    Raises:
        ValueError: If the convolution is grouped, `keep` does not fit it, or there is no such form.
    """

    keep: Tensor

    def __init__(self, conv: nn.Conv2d, keep: Tensor, form: str = 'stripes') -> None:
        super().__init__()
        shape = (conv.out_channels, *conv.kernel_size)
        if conv.groups != 1:
            raise ValueError(f'StripeConv2d takes a convolution with groups=1, got {conv}')
        if keep.dtype != torch.bool or tuple(keep.shape) != shape:
            raise ValueError(f'StripeConv2d: keep should be bool {shape}, got {keep.dtype} {tuple(keep.shape)}')
        self.in_channels, self.out_channels, self.groups = conv.in_channels, conv.out_channels, 1
        self.kernel_size, self.stride, self.dilation = conv.kernel_size, conv.stride, conv.dilation
        self.padding, self.padding_mode = conv.padding, conv.padding_mode
        keep = keep.cpu()
        rows = conv.weight.detach().permute(2, 3, 0, 1).flatten(0, 2)
        self._take_weight(rows.index_select(0, _places(keep).to(rows.device)), conv.weight.requires_grad)
        self.register_parameter('bias', conv.bias)
        self._set_stripes(keep.to(conv.weight.device, copy=True))
        self.training = conv.training
        self.set_form(form)

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, keep: Tensor, form: str = 'stripes') -> StripeConv2d:
        """Return the layer for a convolution (arguments and errors: see the class)."""
        return cls(conv, keep, form)

    def set_form(self, form: str) -> None:
        """Compute in another form from now on.

        Raises:
            ValueError: If there is no such form.
        """
        if form not in FORMS:
            raise ValueError(f'StripeConv2d: form should be one of {", ".join(FORMS)}, got {form!r}')
        self.form = form
        self._bake()

    @torch.no_grad()
    def slim(self, in_keep: Tensor | None, out_keep: Tensor | None) -> None:
        """Keep some input channels and filters, in place; parameters are new objects.

        Args:
            in_keep: int64, `(n,)`: the input channels that stay, `None` for all.
            out_keep: int64, `(m,)`: the filters that stay, `None` for all.
        """
        keep = self.keep.cpu()
        rows = torch.arange(self.num_stripes)
        if out_keep is not None:
            out_keep = out_keep.cpu()
            numbers = torch.full(keep.permute(1, 2, 0).shape, -1)
            numbers.view(-1)[_places(keep)] = rows
            rows, keep = numbers[:, :, out_keep].flatten(), keep[out_keep]
            rows = rows[rows >= 0]
            self.out_channels = len(out_keep)
            if self.bias is not None:
                self.bias = nn.Parameter(self.bias.index_select(0, out_keep.to(self.bias.device)),
                                         self.bias.requires_grad)
        if in_keep is not None:
            self.in_channels = len(in_keep)
        if self.weight is not None:
            weight = self.weight.index_select(0, rows.to(self.weight.device))
            if in_keep is not None:
                weight = weight.index_select(1, in_keep.to(weight.device))
            self._take_weight(weight, self.weight.requires_grad)
        self._set_stripes(keep.to(self.keep.device))
        self._bake()

    @torch.no_grad()
    def to_conv(self) -> nn.Conv2d:
        """Return a plain convolution that computes the same, with zeros and the whole kernel; it shares no memory."""
        bias = None if self.bias is None else nn.Parameter(self.bias.clone(), self.bias.requires_grad)
        if self.weight is None:
            like = self.keep if bias is None else bias
            dtype = torch.get_default_dtype() if bias is None else bias.dtype
            shape = self.out_channels, self.in_channels, *self.kernel_size
            return conv_with(self, nn.Parameter(torch.zeros(shape, dtype=dtype, device=like.device)), bias)
        (top, bottom), (left, right) = ((s.start, size - s.stop) for s, size in
                                        zip(self._layout.box, self.kernel_size, strict=True))
        weight = F.pad(self._box_weight(), (left, right, top, bottom))
        return conv_with(self, nn.Parameter(weight, self.weight.requires_grad), bias)

    def reset_parameters(self) -> None:
        """Draw weights as `nn.Conv2d` does."""
        bound = (self.in_channels * self.kernel_size[0] * self.kernel_size[1]) ** -0.5
        for values in (self.weight, self.bias):
            if values is not None:
                nn.init.uniform_(values, -bound, bound)
        self._bake()

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution with the stripes that are left (shapes: see the class)."""
        baked = self._baked
        # What a small layer takes longer than `nn.Conv2d` are the questions before it, and each call to ask one.
        if baked is not None and self._is_plain and not _is_compiling():
            parameters = self._parameters  # as attributes they are looked up here after everything else
            weight = parameters['weight']
            if (weight.data_ptr() == baked.address and weight._version == baked.version
                    and not (torch.is_grad_enabled() and weight.requires_grad)):
                return F.conv2d(input, baked.dense, parameters['bias'], self.stride, self._even_pads, self.dilation)
        if input.dim() == 3:  # one image, as `nn.Conv2d` takes it
            return self.forward(input[None])[0]
        if self._mode_pads is not None:
            input = F.pad(input, self._mode_pads, self.padding_mode)
        if self.num_stripes == 0:
            return self._no_stripes(input)
        if self.form == 'stripes':
            if _traced():
                if not self.training:
                    return sum_traced(input, self.weight, self.bias, self._filters, self._layout)
            elif len(input) and not (torch.is_grad_enabled() and (input.requires_grad or self.weight.requires_grad)):
                return self._sum(input)
        return self._convolve(input)

    def _convolve(self, x: Tensor) -> Tensor:
        """Return the output by a dense convolution."""
        if self._uneven_pads is not None:
            x = F.pad(x, self._uneven_pads)
        return F.conv2d(x, self._dense_weight(), self.bias, self.stride, self._even_pads, self.dilation)

    def _sum(self, x: Tensor) -> Tensor:
        """Return the output by products of stripes, without gradients."""
        number, _, *size = x.shape
        key = number if StripeSum.folds(number, size) else 1, *size
        if key not in self._sums:
            if len(self._sums) == MOST_SIZES:
                self._sums.clear()
            self._sums[key] = StripeSum(self._layout, self._filters, tuple(size), key[0])
        return self._sums[key](x, self.weight, self.bias)

    def _no_stripes(self, x: Tensor) -> Tensor:
        output = filled(x, (len(x), self.out_channels, *self._layout.output_size(tuple(x.shape[2:]))), self.bias, 1)
        if torch.is_grad_enabled() and x.requires_grad:
            # Layers before this one get a gradient of zeros, as from weights of zeros: none is without.
            output = output + x[:0].sum()
        return output

    def _dense_weight(self) -> Tensor:
        """Return the weight of the box, with zeros."""
        weight, baked = self.weight, self._baked
        learns = self.training or torch.is_grad_enabled() and weight.requires_grad and not _exporting()
        if learns or self.form != 'dense':
            return self._box_weight()
        if _is_compiling():
            return self._box_weight() if baked is None else baked.dense
        if baked is None or weight.data_ptr() != baked.address or _version(weight) != baked.version:
            self._bake()
        return self._baked.dense

    def _box_weight(self) -> Tensor:
        height, width = (s.stop - s.start for s in self._layout.box)
        rows = self.weight.new_zeros(height * width * self.out_channels, self.in_channels)
        rows = rows.index_copy(0, self._box_places, self.weight)
        return rows.view(height, width, self.out_channels, self.in_channels).permute(2, 3, 0, 1).contiguous()

    def _take_weight(self, rows: Tensor, requires_grad: bool) -> None:
        self.register_parameter('weight', nn.Parameter(rows, requires_grad) if len(rows) else None)

    def _set_stripes(self, keep: Tensor) -> None:
        """Set which stripes there are, and what the forward pass derives from it."""
        self.num_stripes = int(keep.sum())
        self._layout = StripeLayout.of(self, keep)
        self._sums: dict[tuple[int, ...], StripeSum] = {}
        self._mode_pads = None
        if self.padding_mode != 'zeros':
            above, below, left, right = self._layout.pads
            self._mode_pads = left, right, above, below
            self._layout = replace(self._layout, pads=(0, 0, 0, 0))
        box = keep
        if self.num_stripes:
            box = keep[(slice(None), *self._layout.box)]
            self._even_pads, self._uneven_pads = self._layout.box_pads()
        self.register_buffer('keep', keep, persistent=False)
        self.register_buffer('_filters', _places(keep) % self.out_channels, persistent=False)
        self.register_buffer('_box_places', _places(box), persistent=False)

    def _bake(self) -> None:
        """Keep the weight with its zeros at hand, where it does not change and is used."""
        self._baked = None
        if self.form != 'dense' or self.training or self.weight is None:
            return
        # What inference mode makes could never again be part of a graph with gradients.
        with torch.inference_mode(False), torch.no_grad():
            weight = self.weight.detach()
            self._baked = _Baked(self._box_weight(), weight, weight.data_ptr(), _version(weight))
        # The output is a convolution with that weight and nothing else, and the weight tells when it is written.
        self._is_plain = self._mode_pads is None and self._uneven_pads is None and not self.weight.is_inference()

    def train(self, mode: bool = True) -> StripeConv2d:
        super().train(mode)
        self._bake()
        return self

    def _apply(self, *args: Any, **kwargs: Any) -> StripeConv2d:
        super()._apply(*args, **kwargs)
        self._sums.clear()
        self._bake()
        return self

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._bake()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_baked': None, '_sums': {}}

    def extra_repr(self) -> str:
        sizes = f'{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}'
        if self.padding not in ((0, 0), 'valid'):
            sizes += f', padding={self.padding}'
        if self.dilation != (1, 1):
            sizes += f', dilation={self.dilation}'
        if self.bias is None:
            sizes += ', bias=False'
        if self.padding_mode != 'zeros':
            sizes += f', padding_mode={self.padding_mode}'
        return f'{sizes}, stripes={self.num_stripes}/{self.keep.numel()}, form={self.form}'


def _places(keep: Tensor) -> Tensor:
    """Return where the stripes of `keep`, `(C_out, kH, kW)`, are among all, by kernel position, then by filter."""
    return keep.permute(1, 2, 0).flatten().nonzero().flatten()


def _version(weight: Tensor) -> int:
    """Return how often a weight has been written; of one made in inference mode this is not known."""
    return 0 if weight.is_inference() else weight._version


# Versions of torch that do not know a question answer it with no.
_COMPILER = getattr(torch, 'compiler', None)
_is_compiling = getattr(_COMPILER, 'is_compiling', bool)
_is_exporting = getattr(_COMPILER, 'is_exporting', bool)
_is_dynamo_compiling = getattr(_COMPILER, 'is_dynamo_compiling', bool)


def _traced() -> bool:
    return _is_compiling() or torch.jit.is_tracing()


def _exporting() -> bool:
    """Whether the graph is for inference alone; Dynamo, which compiles for training too, calls both exporting."""
    return torch.jit.is_tracing() or _is_exporting() and not _is_dynamo_compiling()
