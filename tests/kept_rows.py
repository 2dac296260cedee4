"""What is left of the tiny classifier (tests/data/digits_tiny.py) when its channels are chosen, layer by layer."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

# The unit of a convolution's outputs and of its inputs. The stem and the block of the first stage add to one sum.
CONVOLUTIONS = {
    'backbone.conv1': ('backbone.conv1', None),
    'backbone.layer1.0.conv1': ('backbone.layer1.0.conv1', 'backbone.conv1'),
    'backbone.layer1.0.conv2': ('backbone.conv1', 'backbone.layer1.0.conv1'),
    'backbone.layer2.0.conv1': ('backbone.layer2.0.conv1', 'backbone.conv1'),
    'backbone.layer2.0.conv2': ('backbone.layer2.0.conv2', 'backbone.layer2.0.conv1'),
    'backbone.layer3.0.conv1': ('backbone.layer3.0.conv1', 'backbone.layer2.0.conv2'),
    'backbone.layer3.0.conv2': ('backbone.layer3.0.conv2', 'backbone.layer3.0.conv1')}
LAST = 'backbone.layer3.0.conv2'
OF_NORM = ('weight', 'bias', 'running_mean', 'running_var')


def kept_rows(dense: Mapping[str, Tensor], kept: Mapping[str, Sequence[int]],
              reader: str = 'head.fc.weight') -> dict[str, Tensor]:
    """Return the weights of the compact network, taken from the dense ones by plain indexing.

    Args:
        dense: State dict of the dense network.
        kept: The channels that stay, by unit.
        reader: The weight of the head that reads the last stage.
    """
    found = {}
    for layer, (outputs, inputs) in CONVOLUTIONS.items():
        weight = dense[f'{layer}.weight'][list(kept[outputs])]
        found[f'{layer}.weight'] = weight if inputs is None else weight[:, list(kept[inputs])]
        norm = layer.replace('conv', 'bn')
        found.update({f'{norm}.{key}': dense[f'{norm}.{key}'][list(kept[outputs])] for key in OF_NORM})
    found[reader] = dense[reader][:, list(kept[LAST])]
    for key, value in dense.items():
        if key not in found and 'num_batches' not in key:
            found[key] = value
    return found


def assert_kept(compact: Mapping[str, Tensor], dense: Mapping[str, Tensor], kept: Mapping[str, Sequence[int]],
                reader: str = 'head.fc.weight', statistics: bool = True) -> None:
    """Check that a state dict holds the dense weights of the kept channels, and nothing else."""
    want = kept_rows(dense, kept, reader)
    assert any(want[key].shape != dense[key].shape for key in want)
    assert {key for key in compact if 'num_batches' not in key} == set(want)
    for key, value in want.items():
        if statistics or 'running' not in key:
            torch.testing.assert_close(compact[key], value, rtol=0, atol=0, msg=key)
