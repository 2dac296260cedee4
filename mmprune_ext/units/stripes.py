"""What stripe-wise pruning leaves of convolutions and blocks, as it stands in a channel-unit file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from mmprune_ext.errors import UnitFileError
from mmprune_ext.ops.stripe_conv2d import FORMS


@dataclass(frozen=True, eq=False)
class LayerStripes:
    """Which stripes of a convolution's filters stay (Meng et al., arXiv 2009.14410).

    Attributes:
        keep: Bool ``(C_out, kH, kW)``, of the dense model's filters and kernel positions.
        form: How the compact layer computes, ``'dense'`` or ``'stripes'``; ``None`` where that is not chosen yet.
    """

    keep: np.ndarray
    form: str | None = None

    @property
    def kernel_size(self) -> tuple[int, int]:
        """Height and width of the dense model's kernel."""
        return self.keep.shape[1:]

    def in_form(self, form: str | None) -> LayerStripes:
        """Return the same stripes in another form."""
        return replace(self, form=form)

    def to_dict(self) -> dict[str, Any]:
        """Return the record of a file: one integer a filter, whose bit ``a * kW + b`` is kernel position (a, b)."""
        rows = self.keep.reshape(len(self.keep), -1)
        bits = [sum(1 << place for place in np.flatnonzero(row).tolist()) for row in rows]
        record = {'kernel_size': list(self.kernel_size), 'keep': bits}
        return record if self.form is None else {**record, 'form': self.form}

    @classmethod
    def from_dict(cls, record: Any, where: str) -> LayerStripes:
        """Read a record.

        Raises:
            UnitFileError: If it is malformed.
        """
        try:
            height, width = (int(size) for size in record['kernel_size'])
            bits, form = record['keep'], record.get('form')
            if form not in (None, *FORMS):
                raise UnitFileError(f'{where}: form should be one of {", ".join(FORMS)}, got {form!r}')
            if not bits or not all(type(b) is int and 0 <= b < 1 << height * width for b in bits):
                raise UnitFileError(f'{where}: keep should hold an integer of {height * width} bits for each filter')
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UnitFileError(f'{where} is malformed: {type(error).__name__}: {error}') from error
        keep = np.array([[b >> place & 1 for place in range(height * width)] for b in bits], dtype=bool)
        return cls(keep.reshape(len(bits), height, width), form)


def same_stripes(first: Mapping[str, LayerStripes], second: Mapping[str, LayerStripes]) -> bool:
    """Whether the same stripes stay of the same layers, in whatever form."""
    return first.keys() == second.keys() and all(
        np.array_equal(layer.keep, second[path].keep) for path, layer in first.items())


@dataclass(frozen=True)
class Shortcut:
    """A block that is only its shortcut any more (:class:`mmprune_ext.ops.ShortcutBlock`).

    Attributes:
        layer: Name, in the block, of the layer of the shortcut; empty for the identity.
        activation: Name of the activation after it; empty for none.
    """

    layer: str = ''
    activation: str = ''

    def leaves_out(self, block: str, path: str) -> bool:
        """Whether a layer of the dense model is gone, because it lies in this block and not in its shortcut."""
        kept = f'{block}.{self.layer}.' if self.layer else None
        return path.startswith(f'{block}.') and not (kept and f'{path}.'.startswith(kept))

    def to_dict(self) -> dict[str, str]:
        """Return the record of a file."""
        return {'layer': self.layer, 'activation': self.activation}

    @classmethod
    def from_dict(cls, record: Any, where: str) -> Shortcut:
        """Read a record.

        Raises:
            UnitFileError: If it is malformed.
        """
        if not isinstance(record, Mapping) or not record.keys() <= {'layer', 'activation'} or not all(
                isinstance(name, str) for name in record.values()):
            raise UnitFileError(f'{where}: expected the names of a layer and an activation, got {record!r:.100}')
        return cls(**record)


def read_records(content: Mapping[str, Any], key: str, kind: type, source: str) -> dict[str, Any]:
    """Return a section of a channel-unit file, ``stripes`` or ``shortcuts``, by path; empty where there is none.

    Raises:
        UnitFileError: If it is malformed.
    """
    section = content.get(key, {})
    if not isinstance(section, Mapping):
        raise UnitFileError(f'{source}: {key} should be an object, got {type(section).__name__}')
    return {path: kind.from_dict(record, f'{source}: {key} of "{path}"') for path, record in section.items()}


def check_records(stripes: Mapping[str, LayerStripes], shortcuts: Mapping[str, Shortcut], model: nn.Module,
                  source: str) -> None:
    """Check that stripes and shortcuts are those of a dense model.

    Args:
        stripes: The stripes that stay, by path of a convolution.
        shortcuts: What is left of blocks, by their paths.
        model: The dense model.
        source: Where they come from, for messages.

    Raises:
        UnitFileError: Naming the layer that does not fit.
    """
    modules = dict(model.named_modules())
    for path, layer in stripes.items():
        conv = modules.get(path)
        where = f'{source}: stripes of "{path}"'
        if not isinstance(conv, nn.Conv2d):
            found = 'the model has no such layer' if conv is None else f'it is a {type(conv).__name__} in the model'
            raise UnitFileError(f'{where}: {found}, a convolution is needed; was the file written for another model?')
        if tuple(conv.kernel_size) != tuple(layer.kernel_size):
            raise UnitFileError(f'{where}: its kernel is {"x".join(map(str, layer.kernel_size))} there, '
                                f'{"x".join(map(str, conv.kernel_size))} in the model; was the file written for '
                                'another model, or is this model already compact?')
        if conv.out_channels != len(layer.keep):
            raise UnitFileError(f'{where}: it has {len(layer.keep)} filters there, {conv.out_channels} in the model')
        if conv.groups != 1:
            raise UnitFileError(f'{where}: it is a grouped convolution in the model')
    for path, shortcut in shortcuts.items():
        block = modules.get(path)
        names = {name for name, _ in block.named_children()} if block is not None else set()
        if block is None or shortcut.layer and shortcut.layer not in names:
            raise UnitFileError(f'{source}: shortcut of block "{path}": the model has no '
                                f'"{path}{"." if shortcut.layer else ""}{shortcut.layer}"')
