"""The layers that are traced as a whole: how labels pass through each, and how each is slimmed.

A rule knows one kind of layer. ``trace`` reports to the tracer which labels the layer reads
(consumer), emits (producer) or carries through (follower); ``slim`` keeps the given positions of
its input and output dimension, in place, and updates the sizes that the layer stores.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm

from mmprune_ext.ops import StripeConv2d, ZeroPadShortcut
from mmprune_ext.units.labels import varying
from mmprune_ext.units.parameters.beside import beside_weight
from mmprune_ext.units.parameters.computed import is_computed, select_computed
from mmprune_ext.units.reasons import Reason

if TYPE_CHECKING:
    from mmprune_ext.units.tracing.tracer import Tracer


def select_parameter(module: nn.Module, name: str, dim: int, keep: Tensor | None) -> None:
    """Keep positions of one dimension of a parameter or buffer; ``None`` keeps all."""
    tensor = None if keep is None else getattr(module, name, None)
    if tensor is None:
        return
    if is_computed(module, name):
        select_computed(module, name, dim, keep)
    else:
        replace_parameter(module, name, tensor.detach().index_select(dim, keep.to(tensor.device)))


def replace_parameter(module: nn.Module, name: str, value: Tensor) -> None:
    """Put a tensor in the place of a parameter, as trainable as that, or of a buffer."""
    before = getattr(module, name)
    if isinstance(before, nn.Parameter):
        value = nn.Parameter(value, requires_grad=before.requires_grad)
    for store in (module._parameters, module._buffers):
        if name in store:
            # What setattr would do, without its checks, which cost more than copying a small tensor.
            store[name] = value
            return
    setattr(module, name, value)


class LayerRule:
    """How one kind of layer is traced and slimmed."""

    types: tuple[type[nn.Module], ...] = ()
    # Classes of the task libraries, told by their names, so that none of these need be installed.
    names: frozenset[str] = frozenset()

    def widths(self, module: nn.Module) -> dict[str, int]:
        """Return the size of the dimension each role refers to."""
        raise NotImplementedError

    def trace(self, tracer: Tracer, module: nn.Module, inputs: list[Tensor], output: Any) -> None:
        """Report the labels of one call to the tracer and attach labels to ``output``."""
        raise NotImplementedError

    def slim(self, module: nn.Module, in_keep: Tensor | None, out_keep: Tensor | None) -> None:
        """Keep positions of the input and output dimension; ``None`` keeps all."""
        raise NotImplementedError

    def applies(self, kind: type[nn.Module]) -> bool:
        """Whether this rule is for a type of layer."""
        return issubclass(kind, self.types) or any(base.__name__ in self.names for base in kind.__mro__)

    def parts(self, module: nn.Module) -> tuple[str, ...]:
        """Return the names of layers inside the layer whose labels :meth:`trace` reports with it."""
        return ()


class ConvRule(LayerRule):
    """Convolution and transposed convolution, dense, grouped and depthwise."""

    types = (_ConvNd,)

    @staticmethod
    def groups(module: nn.Module) -> int:
        """Return the number of groups; a convolution that knows of none has one."""
        return getattr(module, 'groups', 1)

    @classmethod
    def depthwise(cls, module: nn.Module) -> bool:
        """Whether each input channel makes its own output channels (with or without multiplier)."""
        return cls.groups(module) > 1 and module.groups == module.in_channels

    def widths(self, module: nn.Module) -> dict[str, int]:
        return {'producer': module.out_channels, 'consumer': module.in_channels, 'follower': module.out_channels}

    def trace(self, tracer: Tracer, module: nn.Module, inputs: list[Tensor], output: Any) -> None:
        x, spatial = inputs[0], len(module.kernel_size)
        labels = tracer.channel_labels(x, x.dim() - 1 - spatial, Reason.SPACE)
        positions = (x if isinstance(module, _ConvTransposeNd) else output).numel()
        tracer.count(module, positions * module.weight[0].numel())
        dim = output.dim() - 1 - spatial
        if self.depthwise(module):
            carried = np.repeat(labels, module.out_channels // module.in_channels)
            if (labels == 0).any():
                tracer.space.freeze(labels, (Reason.LAYER, 'depthwise convolution of other inputs'))
            else:
                return tracer.follow(module, carried, output, dim)
        elif self.groups(module) > 1:
            rows = labels.reshape(module.groups, -1)
            tracer.space.tie(rows, rows[:1])
        tracer.consume(module, labels)
        own = tracer.produce(module, module.out_channels, output, dim)
        if self.groups(module) > 1:
            rows = own.reshape(module.groups, -1)
            tracer.space.tie(rows, rows[:1])

    def slim(self, module: nn.Module, in_keep: Tensor | None, out_keep: Tensor | None) -> None:
        transposed = isinstance(module, _ConvTransposeNd)
        groups, beside = self.groups(module), list(beside_weight(module))
        multiplier = module.out_channels // module.in_channels if self.depthwise(module) else 0
        # Where it makes channels of inputs that stay, such as an image, each group loses some of its own.
        if multiplier and out_keep is not None and torch.equal(
                out_keep // multiplier, (out_keep[::multiplier] // multiplier).repeat_interleave(multiplier)):
            in_keep = out_keep[::multiplier] // multiplier
            module.groups = len(in_keep)
            rows, columns = (in_keep, torch.arange(multiplier)) if transposed else (out_keep, None)
        else:
            rows, columns = (in_keep, out_keep) if transposed else (out_keep, in_keep)
            if columns is not None and groups > 1:
                columns = columns[:len(columns) // groups]
        for name, dim in [('weight', 0), ('weight', 1), *beside]:
            select_parameter(module, name, dim, columns if dim else rows)
        select_parameter(module, 'bias', 0, out_keep)
        if in_keep is not None:
            module.in_channels = len(in_keep)
        if out_keep is not None:
            module.out_channels = len(out_keep)


class StripeConvRule(ConvRule):
    """Convolution that has lost stripes of its filters."""

    types = (StripeConv2d,)

    def trace(self, tracer: Tracer, module: nn.Module, inputs: list[Tensor], output: Any) -> None:
        dim = output.dim() - 3
        tracer.count(module, output.numel() // module.out_channels * module.num_stripes * module.in_channels)
        tracer.consume(module, tracer.channel_labels(inputs[0], dim, Reason.SPACE))
        tracer.produce(module, module.out_channels, output, dim)

    def slim(self, module: nn.Module, in_keep: Tensor | None, out_keep: Tensor | None) -> None:
        module.slim(in_keep, out_keep)


class DeformConvRule(ConvRule):
    """Deformable convolution of mmcv or torchvision, with or without its offset convolution."""

    types = ()
    names = frozenset({'DeformConv2d', 'ModulatedDeformConv2d'})
    offset = 'conv_offset'

    @classmethod
    def depthwise(cls, module: nn.Module) -> bool:
        return False

    def parts(self, module: nn.Module) -> tuple[str, ...]:
        return (self.offset,) if hasattr(module, self.offset) else ()

    def trace(self, tracer: Tracer, module: nn.Module, inputs: list[Tensor], output: Any) -> None:
        labels = tracer.channel_labels(inputs[0], 1, Reason.SPACE)
        tracer.count(module, output.numel() * module.weight[0].numel())
        # Where the kernel samples: its places are no channels.
        tracer.freeze_inputs(inputs[1:], Reason.LAYER, f'offsets of {tracer.path_of(module)}')
        sampled = getattr(module, 'deform_groups', 0) or (
            inputs[1].shape[1] // (2 * module.weight[0, 0].numel()))
        for groups in (module.groups, sampled):
            rows = labels.reshape(groups, -1)
            tracer.space.tie(rows, rows[:1])
        tracer.consume(module, labels)
        rows = tracer.produce(module, module.out_channels, output, 1).reshape(module.groups, -1)
        tracer.space.tie(rows, rows[:1])
        for name in self.parts(module):
            part = module.get_submodule(name)
            tracer.consume(part, labels)
            own = tracer.own(part, part.out_channels)
            tracer.space.freeze(own, (Reason.LAYER, f'offsets of {tracer.path_of(module)}'))
            tracer.count(part, output[:, 0].numel() * part.weight.numel())


class TridentConvRule(ConvRule):
    """TridentNet's convolution: one weight for several inputs."""

    types = ()
    names = frozenset({'TridentConv'})

    def trace(self, tracer: Tracer, module: nn.Module, inputs: list[Tensor], output: Any) -> None:
        for x, out in zip(inputs, output):
            super().trace(tracer, module, [x], out)


class LinearRule(LayerRule):
    """Fully connected layer over the last dimension."""

    types = (nn.Linear,)

    def widths(self, module: nn.Module) -> dict[str, int]:
        return {'producer': module.out_features, 'consumer': module.in_features}

    def trace(self, tracer: Tracer, module: nn.Module, inputs: list[Tensor], output: Any) -> None:
        x = inputs[0]
        tracer.count(module, output.numel() * module.in_features)
        core = tracer.core(x)
        if core is not None and varying(core) and x.dim() - 1 not in varying(core):
            # The positions that this layer reads are not channels; the channels lie in another
            # dimension and pass through.
            own = tracer.produce(module, module.out_features, output, output.dim() - 1)
            tracer.space.freeze(own, (Reason.SPACE, tracer.path_of(module)))
            return tracer.write(output, core)
        labels = tracer.channel_labels(x, x.dim() - 1, Reason.SPACE)
        tracer.consume(module, labels)
        tracer.produce(module, module.out_features, output, output.dim() - 1)

    def slim(self, module: nn.Module, in_keep: Tensor | None, out_keep: Tensor | None) -> None:
        for name, dim in [*beside_weight(module), ('weight', 0), ('weight', 1)]:
            select_parameter(module, name, dim, in_keep if dim else out_keep)
        select_parameter(module, 'bias', 0, out_keep)
        module.out_features, module.in_features = module.weight.shape


class BatchNormRule(LayerRule):
    """Batch, synchronised and instance normalisation: every channel by itself."""

    types = (_BatchNorm, _InstanceNorm)

    def widths(self, module: nn.Module) -> dict[str, int]:
        return {'follower': module.num_features}

    def trace(self, tracer: Tracer, module: nn.Module, inputs: list[Tensor], output: Any) -> None:
        labels = tracer.channel_labels(inputs[0], 1, Reason.SPACE)
        tracer.follow(module, labels, output, 1)

    def slim(self, module: nn.Module, in_keep: Tensor | None, out_keep: Tensor | None) -> None:
        for name in ('weight', 'bias', 'running_mean', 'running_var'):
            select_parameter(module, name, 0, out_keep)
        if out_keep is not None:
            module.num_features = len(out_keep)


class GroupNormRule(LayerRule):
    """Group normalisation: the same number of channels must stay in every group."""

    types = (nn.GroupNorm,)

    def widths(self, module: nn.Module) -> dict[str, int]:
        return {'follower': module.num_channels}

    def trace(self, tracer: Tracer, module: nn.Module, inputs: list[Tensor], output: Any) -> None:
        labels = tracer.channel_labels(inputs[0], 1, Reason.SPACE)
        if 1 < module.num_groups < module.num_channels:
            rows = labels.reshape(module.num_groups, -1)
            tracer.space.tie(rows, rows[:1])
        tracer.follow(module, labels, output, 1)

    def slim(self, module: nn.Module, in_keep: Tensor | None, out_keep: Tensor | None) -> None:
        if out_keep is None:
            return
        if module.num_groups == module.num_channels:
            module.num_groups = len(out_keep)
        for name in ('weight', 'bias'):
            select_parameter(module, name, 0, out_keep)
        module.num_channels = len(out_keep)


class LayerNormRule(LayerRule):
    """Layer normalisation over the channels, in the last or (LayerNorm2d) the second dimension."""

    types = (nn.LayerNorm, *((nn.RMSNorm,) if hasattr(nn, 'RMSNorm') else ()))

    def widths(self, module: nn.Module) -> dict[str, int]:
        return {'follower': int(np.prod(module.normalized_shape))}

    def trace(self, tracer: Tracer, module: nn.Module, inputs: list[Tensor], output: Any) -> None:
        x, core = inputs[0], tracer.core(inputs[0])
        if core is None:
            return tracer.write(output, None)
        size, *others = module.normalized_shape
        if any(other > 1 for other in others):
            return tracer.freeze_inputs(x, Reason.STATISTICS, tracer.path_of(module))
        fits = [d for d in varying(core) if x.shape[d] == size]
        plain = type(module).forward in (kind.forward for kind in self.types)
        dim = fits[0] if len(fits) == 1 and not plain else x.dim() - 1 - len(others)
        labels = tracer.channel_labels(x, dim, Reason.SPACE)
        tracer.follow(module, labels, output, dim)

    def slim(self, module: nn.Module, in_keep: Tensor | None, out_keep: Tensor | None) -> None:
        if out_keep is None:
            return
        for name in ('weight', 'bias'):
            select_parameter(module, name, 0, out_keep)
        module.normalized_shape = (len(out_keep), *module.normalized_shape[1:])
        if hasattr(module, 'num_channels'):
            module.num_channels = len(out_keep)


class PReLURule(LayerRule):
    """PReLU with one slope a channel (one slope for all is element-wise)."""

    types = (nn.PReLU,)

    def widths(self, module: nn.Module) -> dict[str, int]:
        return {'follower': module.num_parameters}

    def trace(self, tracer: Tracer, module: nn.Module, inputs: list[Tensor], output: Any) -> None:
        if module.num_parameters == 1:
            return tracer.write(output, tracer.core(inputs[0]))
        labels = tracer.channel_labels(inputs[0], 1, Reason.SPACE)
        tracer.follow(module, labels, output, 1)

    def slim(self, module: nn.Module, in_keep: Tensor | None, out_keep: Tensor | None) -> None:
        if out_keep is not None:
            select_parameter(module, 'weight', 0, out_keep)
            module.num_parameters = len(out_keep)


class ZeroPadShortcutRule(LayerRule):
    """Option-A shortcut: a layer without weights whose two sides shrink independently."""

    types = (ZeroPadShortcut,)

    def widths(self, module: nn.Module) -> dict[str, int]:
        return {'producer': module.out_channels, 'consumer': module.in_channels}

    def trace(self, tracer: Tracer, module: nn.Module, inputs: list[Tensor], output: Any) -> None:
        tracer.consume(module, tracer.channel_labels(inputs[0], 1, Reason.SPACE))
        tracer.produce(module, module.out_channels, output, 1)

    def slim(self, module: nn.Module, in_keep: Tensor | None, out_keep: Tensor | None) -> None:
        module.prune(torch.arange(module.in_channels) if in_keep is None else in_keep,
                     torch.arange(module.out_channels) if out_keep is None else out_keep)


class OpaqueRule(LayerRule):
    """Layers whose inside is not followed: what enters cannot be pruned."""

    types = (nn.Bilinear,)

    def widths(self, module: nn.Module) -> dict[str, int]:
        return {}

    def trace(self, tracer: Tracer, module: nn.Module, inputs: list[Tensor], output: Any) -> None:
        tracer.freeze_inputs(inputs, Reason.LAYER, f'{type(module).__name__} {tracer.path_of(module)}')

    def slim(self, module: nn.Module, in_keep: Tensor | None, out_keep: Tensor | None) -> None:
        raise AssertionError('a layer of this kind is never slimmed')


RULES: list[LayerRule] = [
    ConvRule(), StripeConvRule(), DeformConvRule(), TridentConvRule(),
    LinearRule(), BatchNormRule(), GroupNormRule(), LayerNormRule(),
    PReLURule(), ZeroPadShortcutRule(), OpaqueRule()]


def rule_for(module: nn.Module) -> LayerRule | None:
    """Return the rule of a layer, ``None`` for a module that is traced operator by operator."""
    return _rule_for_type(type(module))


@functools.cache
def _rule_for_type(kind: type[nn.Module]) -> LayerRule | None:
    return next((layer_rule for layer_rule in RULES if layer_rule.applies(kind)), None)
