"""Gram matrices of what the layers that read channels are given, from one pass over some batches of data."""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice

import torch
from mmengine.device import get_device
from mmengine.dist import all_reduce, broadcast, get_rank, get_world_size, is_main_process
from mmengine.logging import print_log
from mmengine.runner import set_random_seed
from rich.progress import track
from torch import Tensor, nn

from mmprune_ext.draws import preserved_random_state
from mmprune_ext.errors import ConfigError, PruningError
from mmprune_ext.mutators.calibration import Calibration, evaluating, feature_pass
from mmprune_ext.scores.least_squares import Moments
from mmprune_ext.units.layer_matrix import LayerMatrix


def input_moments(model: nn.Module, layers: Collection[str], calibration: Calibration,
                  positions: float = 1.0) -> dict[str, Moments]:
    """Return the second moments of the inputs and outputs of layers, summed over batches of data.

    Args:
        model: The dense model, on any device; weights, flags and random state stay as they were.
        layers: Paths of convolution and linear layers.
        calibration: The data; ``partial`` has no effect.
        positions: Share of the positions of an output that is looked at, drawn.

    Returns:
        By path, those of all processes, on the device of the run. A layer that is called several times has the sum
        over its calls, one that the pass does not reach has none.

    Raises:
        ConfigError: If there is no data, or too little.
        PruningError: If a layer reads NaN or infinity.
    """
    world = get_world_size()
    share = calibration.num_batches // world + (get_rank() < calibration.num_batches % world)
    generator = torch.Generator().manual_seed(calibration.seed)
    forward = feature_pass(model, layers)
    preprocess = getattr(model, 'data_preprocessor', None)
    with preserved_random_state(), evaluating(model, get_device()):
        set_random_seed(calibration.seed)
        found: dict[str, Moments] = {}
        handles = []
        for path in layers:
            matrix = LayerMatrix(model.get_submodule(path))
            found[path] = Moments(matrix.groups, matrix.inputs, matrix.outputs, matrix.layer.weight.device)

            def add(_: nn.Module, args: tuple, output: Tensor, matrix: LayerMatrix = matrix,
                    moments: Moments = found[path]) -> None:
                for samples in matrix.samples(args[0], [output], positions, generator):
                    moments.add(samples)
            handles.append(matrix.layer.register_forward_hook(add))
        seen = 0
        try:
            for batch in track(islice(calibration.build_dataloader(), share), 'calibration', total=share,
                               transient=True, disable=not is_main_process()):
                forward(batch if preprocess is None else preprocess(batch, True))
                seen += 1
        finally:
            for handle in handles:
                handle.remove()
    if seen < share:
        raise ConfigError(f'calibration: the dataloader ended after {seen} of {share} batches; lower num_batches')
    print_log(f'inputs of {len(found)} layers summed up over {calibration.num_batches} batches', logger='current')
    return {path: moments for path, moments in found.items() if _summed(path, moments)}


def _summed(path: str, moments: Moments) -> bool:
    """Sum moments up over processes, and return whether there is a sample."""
    all_reduce(moments.sums)
    broadcast(moments.sums)  # to the last bit: all processes must choose the same channels
    if not bool(moments.sums.isfinite().all()):
        raise PruningError(f'layer "{path}": its inputs hold NaN or infinity; check the checkpoint and the images')
    return bool(moments.sums[0, -1, -1] > 0)
