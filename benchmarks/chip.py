#!/usr/bin/env python3
"""Measure how long the channel independence of a whole network takes, and by its definition.

The scores are those of a calibration on one batch: one forward pass, all layers. The definition,
C + 1 singular value decompositions an image and layer, is timed on a few channels of one image of
each shape of feature maps, and extrapolated; the values are compared on the same channels.

Example: python benchmarks/chip.py
Example: python benchmarks/chip.py --network mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py
--size 800 1333 --batch 1 --no-definition
"""

from __future__ import annotations

import argparse
import logging
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.machine import Spent, bytes_written, header, memory, timed
from benchmarks.networks import NETWORKS, read
from mmprune_ext.analysis.tables import render
from mmprune_ext.cli import arguments
from mmprune_ext.cli.errors import user_errors
from mmprune_ext.compact.checkpoint import load_weights
from mmprune_ext.compact.compact_model import build_architecture
from mmprune_ext.mutators.calibration import Calibrator, feature_pass
from mmprune_ext.scores import channel_independence
from mmprune_ext.settings import reading
from mmprune_ext.units import trace_units
from mmprune_ext.units.task_samples import data_samples

COLUMNS = ('maps', 'C', 'H x W', 'ours: ms', 'definition: s', 'ratio', 'single: s', 'ratio', 'error')


class Shape(NamedTuple):
    """What was measured on the feature maps of one shape; seconds are for one image of one layer."""

    layers: int
    channels: int
    pixels: int
    ours: float
    definition: float
    single: float
    error: float


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--network', default='ResNet-50',
                        help=f'a config, or one of {", ".join(NETWORKS)}')
    parser.add_argument('--checkpoint', help='weights (default: random ones)')
    parser.add_argument('--data', metavar='DIR', help='data_root of the validation images (default: smooth noise)')
    parser.add_argument('--size', nargs=2, type=arguments.positive, default=[224, 224], metavar=('H', 'W'))
    parser.add_argument('--batch', type=arguments.positive, default=16)
    parser.add_argument('--channels', type=arguments.positive, default=4,
                        help='of each shape, on which the definition is timed and compared')
    parser.add_argument('--no-definition', action='store_true', help='measure time and memory alone')
    parser.add_argument('--threads', type=arguments.positive, default=1)
    return parser.parse_args()


def build(args: argparse.Namespace) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network in eval mode and a batch for it."""
    config = read(args.network) if args.network in NETWORKS else reading.read_config(args.network)
    torch.manual_seed(0)
    model = build_architecture(config.model.to_dict(), config.get('data_preprocessor'))
    if args.data:
        loader = config.val_dataloader
        loader.dataset.data_root, loader.batch_size = args.data, args.batch
        loader.update(num_workers=0, persistent_workers=False, sampler=dict(type='DefaultSampler', shuffle=True))
        batch = next(iter(Runner.build_dataloader(loader, seed=0)))
    else:
        batch = smooth_noise(model, args.batch, args.size)
    if args.checkpoint:
        load_weights(model, args.checkpoint)
    else:
        normalise(model, batch)
    return model.eval(), batch


def smooth_noise(model: nn.Module, count: int, size: list[int]) -> dict[str, Any]:
    """Return a batch of random pictures whose neighbouring pixels are alike."""
    coarse = torch.rand(count, 3, *(side // 8 + 1 for side in size))
    images = 255 * F.interpolate(coarse, size, mode='bilinear')
    return {'inputs': list(images.byte()), 'data_samples': data_samples(model, images)}


def normalise(model: nn.Module, batch: dict[str, Any]) -> None:
    """Take about the batch's own statistics, so that random weights give maps of ordinary spread."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
        norm.requires_grad_(False).train()
    with torch.no_grad():
        model.extract_feat(model.data_preprocessor(batch)['inputs'])


def definition(rows: Tensor, channels: list[int]) -> Tensor:
    """Return the nuclear norms of a map ``(C, L)`` without each of some channels."""
    norms = []
    for channel in channels:
        masked = rows.clone()
        masked[channel] = 0
        norms.append(torch.linalg.svdvals(masked).sum())
    return torch.stack(norms)


def compare(maps: Tensor, layers: int, count: int, ours: float) -> Shape:
    """Time the definition on some channels of one feature map ``(C, L)`` and compare the values."""
    channels, pixels = maps.shape
    picked = torch.linspace(0, channels - 1, min(count, channels)).long().tolist()
    rows = maps.double()
    norms, double = timed(partial(definition, rows, picked))
    _, single = timed(partial(definition, maps.float(), picked))
    expected = torch.linalg.svdvals(rows).sum() - norms
    found = channel_independence(maps[None])[0, picked]
    # A channel of zeros has the value 0 in both.
    error = ((found - expected).abs() / expected.where(expected > 0, 1.0)).max()
    share = (channels + 1) / len(picked)
    return Shape(layers, channels, pixels, ours, double.cpu * share, single.cpu * share, float(error))


def shapes(model: nn.Module, units: Any, batch: dict[str, Any], count: int) -> list[Shape]:
    """Measure each shape of feature maps, on the first layer that has it."""
    kept: dict[tuple[int, int], Tensor] = {}
    times: dict[tuple[int, int], list[float]] = {}

    def score(values: Tensor) -> Tensor:
        result, spent = timed(partial(channel_independence, values))
        shape = (values.shape[1], values[0, 0].numel())
        kept.setdefault(shape, values[0].flatten(1).clone())
        times.setdefault(shape, []).append(spent.cpu / len(values))
        return result
    Calibrator(model, units, score).run([batch], 1)
    return [compare(maps, len(times[shape]), count, sum(times[shape]) / len(times[shape]))
            for shape, maps in kept.items()]


def cells(row: Shape) -> list[str]:
    """Return a row of the table."""
    return [str(row.layers), str(row.channels), str(row.pixels), f'{row.ours * 1e3:.2f}',
            f'{row.definition:.3g}', f'{row.definition / row.ours:.0f}', f'{row.single:.3g}',
            f'{row.single / row.ours:.0f}', f'{row.error:.0e}']


def summary(rows: list[Shape], batch: int, spent: Spent) -> str:
    """Return the totals over all layers and images."""
    double = sum(row.layers * row.definition for row in rows) * batch
    single = sum(row.layers * row.single for row in rows) * batch
    return (f'definition, extrapolated: {double:.0f} s in double precision, {single:.0f} s in single; '
            f'ratio to the calibration: {double / spent.cpu:.0f} and {single / spent.cpu:.0f} (cpu)\n'
            f'largest relative error on the channels compared: {max(row.error for row in rows):.1e}')


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    logging.disable(logging.WARNING)
    with user_errors():
        title = header('benchmarks/chip.py')
        model, batch = build(args)
        units = trace_units(model, args.size if not args.data else None)
        calibrator = Calibrator(model, units)
        before, written = memory('VmRSS'), bytes_written()
        _, spent = timed(partial(calibrator.run, [batch], 1))
        extra, written = memory('VmHWM') - before, bytes_written() - written
        with torch.no_grad():
            _, forward = timed(partial(feature_pass(model, calibrator.sums), model.data_preprocessor(batch)))
        print(f'{title}\n')
        print(f'calibration on a batch of {args.batch}, {len(calibrator.sums)} layers: {spent.cpu:.2f} s cpu, '
              f'{spent.wall:.1f} s wall\nof that the forward pass: about {forward.cpu:.2f} s cpu; extra memory at most '
              f'{extra / 1024:.0f} MiB; {written:.0f} bytes written, the progress bar\'s')
        if not args.no_definition:
            rows = shapes(model, units, batch, args.channels)
            print(summary(rows, args.batch, spent), end='\n\n')
            print(render(COLUMNS, [cells(row) for row in rows], numbers=range(len(COLUMNS))), end='')


if __name__ == '__main__':
    main()
