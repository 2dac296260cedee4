"""Files of numbers by channel unit, scores or sensitivities: whether they are of the model at hand."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from mmengine.logging import print_log
from torch import nn

from mmprune_ext.errors import UnitFileError
from mmprune_ext.units.parameters.fingerprint import weights_digest
from mmprune_ext.units.unit_set import UnitSet


@dataclass(frozen=True)
class Origin:
    """What the numbers in a file were taken from.

    Attributes:
        source: Name of the file, for messages.
        kind: What the numbers are, ``scores``.
        tool: The tool that writes them.
        method: Short name of the method that they are of.
        architecture: Fingerprint of the dense model.
        weights: Digest of its weights.
    """

    source: str
    kind: str
    tool: str
    method: str
    architecture: str
    weights: str

    def check_method(self, method: str) -> None:
        """Check that the numbers are of a method.

        Raises:
            UnitFileError: If not.
        """
        if self.method != method:
            raise UnitFileError(f'{self.source}: holds {self.kind} of method "{self.method}", not of "{method}"; '
                                f'write them with {self.tool} --algorithm {method}')

    def check_units(self, channels: Mapping[str, int], units: UnitSet) -> None:
        """Check that there are numbers of all prunable units of a model, and of no others.

        Args:
            channels: How many channels each unit has in the file.
            units: The units of the dense model, as traced.

        Raises:
            UnitFileError: If they are of another model, or of other units.
        """
        again = f'write the file anew with {self.tool} for this config'
        for name, number in channels.items():
            if name not in units:
                raise units.unknown(name, self.source)
            if number != units[name].num_channels:
                raise UnitFileError(f'{self.source}: unit "{name}" has {number} channels, in the model it has '
                                    f'{units[name].num_channels}; {again}')
        for name in units.prunable:
            if name not in channels:
                raise UnitFileError(f'{self.source}: lacks unit "{name}", which can be pruned in this model; {again} '
                                    '(with the same --scope), or leave the unit whole (--exclude)')
        if self.architecture != units.architecture:
            raise UnitFileError(f'{self.source}: was written for another model (fingerprint {self.architecture}, this '
                                f'model\'s is {units.architecture}); {again}')

    def compare_weights(self, model: nn.Module) -> None:
        """Warn if the numbers are of other weights than a dense model's."""
        if self.weights != weights_digest(model):
            print_log(f'{self.source}: these {self.kind} are of other weights of this model than the present ones; if '
                      f'that is not meant, write the file anew with {self.tool} for this config and checkpoint',
                      logger='current', level=logging.WARNING)
