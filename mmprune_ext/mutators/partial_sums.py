"""What an interrupted calibration goes on from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmprune_ext.atomic import atomic_path
from mmprune_ext.errors import CheckpointError
from mmprune_ext.units.parameters.fingerprint import weights_digest


@dataclass(frozen=True)
class PartialSums:
    """The file of one calibration's sums so far.

    Attributes:
        path: The file; gone when the calibration is complete.
        every: After how many batches it is written.
        key: What the sums belong to (:func:`calibration_key`).
    """

    path: Path
    every: int
    key: str

    def load(self) -> Mapping[str, Any] | None:
        """Return the sums so far, ``None`` if there are none.

        Raises:
            CheckpointError: If the file is unreadable or of another calibration.
        """
        if not self.path.is_file():
            return None
        try:
            stored = torch.load(self.path, map_location='cpu', weights_only=True)
        except Exception as error:  # unpickling has no error of its own
            raise CheckpointError(f'{self.path}: sums of a calibration cannot be read '
                                  f'({type(error).__name__}); delete the file to start afresh') from error
        if stored.get('key') != self.key:
            raise CheckpointError(f'{self.path}: sums of a calibration of other weights, units or '
                                  'data; delete the file to start afresh')
        return stored['state']

    def save(self, state: Mapping[str, Any]) -> None:
        """Write the sums; the file appears whole or not at all."""
        with atomic_path(self.path) as temporary:
            torch.save({'key': self.key, 'state': dict(state)}, temporary)

    def remove(self) -> None:
        """Remove the file: the calibration is complete."""
        self.path.unlink(missing_ok=True)


def calibration_key(model: nn.Module, *settings: Any) -> str:
    """Return a text that differs for other weights and for other settings."""
    return f'{weights_digest(model)} {settings!r}'
