#!/usr/bin/env python3
"""Measure convolutions that have lost stripes, at random or in training: each form of a layer, and whole networks.

Example: python benchmarks/stripe.py --networks "VGG-16-BN (CIFAR)" --densities 0.25 --batch 8
         python benchmarks/stripe.py --compact out/compact_config.py
"""

from __future__ import annotations

import argparse
import copy
import io
import logging
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from benchmarks.machine import header, timed
from benchmarks.networks import read, select
from mmprune_ext.analysis.stripe_forms import fastest_forms
from mmprune_ext.analysis.tables import render
from mmprune_ext.cli import arguments
from mmprune_ext.cli.errors import user_errors
from mmprune_ext.compact.compact_model import load_units
from mmprune_ext.errors import PruningError
from mmprune_ext.model_config import architecture_of, is_compact
from mmprune_ext.ops import StripeConv2d
from mmprune_ext.settings import reading
from mmprune_ext.units.demo_inputs import image_size_from_config

NETWORKS = ('VGG-16-BN (CIFAR)', 'ResNet-56 (CIFAR)', 'ResNet-18')
KINDS = ('convolutions', 'dense', 'stripes', 'chosen')
UNPRUNED = 'unpruned'
Models = dict[str, nn.Module]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--networks', nargs='+', metavar='NAME',
                        help='networks for classification by the beginnings of their names, which lose stripes at '
                        f'random (default, without --compact: {", ".join(NETWORKS)})')
    parser.add_argument('--compact', nargs='+', metavar='CONFIG', default=[],
                        help='compact configs of classifiers that were trained to lose stripes')
    parser.add_argument('--densities', nargs='+', type=float, default=[0.5, 0.25, 0.1], metavar='SHARE',
                        help='shares of the stripes that are left in each layer')
    parser.add_argument('--batch', type=arguments.positive, default=1)
    parser.add_argument('--repeats', type=arguments.positive, default=30, help='passes of each kind, in turn')
    parser.add_argument('--seconds', type=float, default=20, metavar='S',
                        help='whole networks are run for so long at least: single passes of small ones say little')
    parser.add_argument('--threads', type=arguments.positive, default=1)
    parser.add_argument('--no-onnx', dest='onnx', action='store_false',
                        help='leave out ONNX Runtime, which is measured where onnxruntime and onnxscript are installed')
    parser.add_argument('--quick', action='store_true', help='a density of 0.25, 5 passes, PyTorch alone')
    args = parser.parse_args()
    if args.networks is None:
        args.networks = [] if args.compact else list(NETWORKS)
    if args.quick:
        args.densities, args.repeats, args.seconds, args.onnx = [0.25], 5, 0, False
    args.onnx = args.onnx and all(find_spec(module) for module in ('onnxruntime', 'onnxscript'))
    return args


class ImagesOnly(nn.Module):
    """A classifier of OpenMMLab that takes images alone and gives its features."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.model(inputs, mode='tensor')


def network(name: str) -> tuple[nn.Module, tuple[int, int]]:
    """Return a network with fresh weights in eval mode, and the size of its images."""
    config = read(name)
    model = MODELS.build(config.model.to_dict())
    model.init_weights()
    return ImagesOnly(model).eval(), image_size_from_config(config)


def with_stripes(model: nn.Module, density: float) -> Models:
    """Return a network whose convolutions are masked, and the same in both forms of what is left.

    Args:
        model: The network. Of each convolution with a kernel above 1x1 and one group, the same share of stripes stays.
        density: That share.
    """
    models = {kind: copy.deepcopy(model) for kind in ('convolutions', 'dense', 'stripes')}
    generator = torch.Generator().manual_seed(0)
    for path, layer in model.named_modules():
        if not isinstance(layer, nn.Conv2d) or layer.groups > 1 or max(layer.kernel_size) == 1:
            continue
        keep = random_skeleton(layer, density, generator)
        models['convolutions'].get_submodule(path).weight.data.mul_(keep[:, None])
        for form in ('dense', 'stripes'):
            replace(models[form], path, StripeConv2d.from_conv(layer, keep, form))
    return models


def trained(path: str) -> tuple[Models, tuple[int, int], float]:
    """Return a compact network in all forms and the dense one it was, the size of its images, the stripes left.

    Args:
        path: Its compact config.

    Raises:
        PruningError: If the config is none of a compact model that has lost stripes.
    """
    config = reading.read_config(path)
    if not is_compact(config.model):
        raise PruningError(f'{path} is no compact config; give the one that tools/export_compact.py wrote')
    compact = MODELS.build(config.model)
    compact.init_weights()
    stripes = load_units(config.model.units).stripes
    if not stripes:
        raise PruningError(f'{path}: no convolution has lost stripes')
    models = {kind: ImagesOnly(copy.deepcopy(compact)).eval() for kind in KINDS[:3]}
    models[UNPRUNED] = ImagesOnly(MODELS.build(architecture_of(config.model))).eval()
    for form in KINDS[1:3]:
        for layer in stripe_layers(models[form]).values():
            layer.set_form(form)
    for place, layer in stripe_layers(models[KINDS[0]]).items():
        replace(models[KINDS[0]], place, layer.to_conv())
    left = sum(int(layer.keep.sum()) for layer in stripes.values()) / sum(layer.keep.size for layer in stripes.values())
    return models, image_size_from_config(config), left


def stripe_layers(model: nn.Module) -> dict[str, StripeConv2d]:
    """Return the layers with stripes, by path."""
    return {path: layer for path, layer in model.named_modules() if isinstance(layer, StripeConv2d)}


def replace(model: nn.Module, path: str, layer: nn.Module) -> None:
    """Put a layer in the place of another."""
    parent, _, child = path.rpartition('.')
    setattr(model.get_submodule(parent), child, layer)


def random_skeleton(conv: nn.Conv2d, density: float, generator: torch.Generator) -> Tensor:
    """Return which stripes stay, bool `(C_out, kH, kW)`, a random choice of a given share."""
    keep = torch.zeros(conv.out_channels, *conv.kernel_size, dtype=torch.bool)
    chosen = torch.randperm(keep.numel(), generator=generator)[:round(density * keep.numel())]
    keep.view(-1)[chosen] = True
    return keep


def images(batch: int, size: tuple[int, int]) -> Tensor:
    """Return what networks are timed on, `(batch, 3, height, width)`."""
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0))


def time_in_turn(runs: Mapping[str, Callable[[], object]], repeats: int,
                 seconds: float = 0) -> dict[str, tuple[float, float]]:
    """Return milliseconds of processor time of each run, and the ratio to the first of the same round, both medians.

    In each round the order is drawn anew: a run finds in the caches what the one before it has left. There are more
    rounds than ``repeats`` where these take less than ``seconds``.
    """
    first = next(iter(runs))
    spent: dict[str, list[float]] = {kind: [] for kind in runs}
    order, draw = list(runs), random.Random(0)
    for kind in order * 2:
        runs[kind]()
    start = time.perf_counter()
    while len(spent[first]) < repeats or time.perf_counter() - start < seconds:
        draw.shuffle(order)
        for kind in order:
            spent[kind].append(timed(runs[kind])[1].cpu * 1e3)
    return {kind: (statistics.median(values), statistics.median(
                value / base for value, base in zip(values, spent[first], strict=True)))
            for kind, values in spent.items()}


def input_sizes(model: nn.Module, inputs: Tensor) -> dict[str, tuple[int, ...]]:
    """Return the shape of the input of each layer with stripes, by path."""
    sizes = {}
    handles = [layer.register_forward_hook(
                   lambda _, args, output, path=path: sizes.__setitem__(path, tuple(args[0].shape)))
               for path, layer in stripe_layers(model).items()]
    model(inputs)
    for handle in handles:
        handle.remove()
    return sizes


def layer_rows(models: Mapping[float, Models], inputs: Tensor, repeats: int) -> dict[tuple, list[str]]:
    """Time each kind of layer: one row each, with the ratios at each density."""
    rows: dict[tuple, list[str]] = {}
    for path, size in input_sizes(next(iter(models.values()))['stripes'], inputs).items():
        conv = next(iter(models.values()))['convolutions'].get_submodule(path)
        kind = size, conv.out_channels, conv.kernel_size, conv.stride
        if kind in rows:
            continue
        x = torch.randn(size, generator=torch.Generator().manual_seed(0))
        times = [time_in_turn({form: partial(by_form[form].get_submodule(path), x) for form in KINDS[:3]}, repeats)
                 for by_form in models.values()]
        kernel, stride = ('x'.join(map(str, numbers)) for numbers in (conv.kernel_size, conv.stride))
        rows[kind] = [f'{conv.in_channels} to {conv.out_channels}', kernel, stride, f'{size[2]}x{size[3]}',
                      f'{times[0][KINDS[0]][0]:.2f}',
                      *(f'{ratios[form][1]:.2f}' for ratios in times for form in KINDS[1:3])]
    return rows


def choose(models: Models, inputs: Tensor) -> tuple[nn.Module, tuple[int, int]]:
    """Return the network in the forms measured to be the fastest, and how many layers, of how many, are in stripes."""
    forms = fastest_forms(models['dense'], lambda model: model(inputs))
    chosen = copy.deepcopy(models['dense'])
    for path, times in forms.items():
        chosen.get_submodule(path).set_form(times.form)
    return chosen, (sum(times.form == 'stripes' for times in forms.values()), len(forms))


def session_of(model: nn.Module, inputs: Tensor, threads: int) -> Callable[[], list]:
    """Return a function that runs a network in ONNX Runtime."""
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        program = torch.onnx.export(model, (inputs,), dynamo=True, verbose=False)
    file = io.BytesIO()
    program.save(file)
    session = onnxruntime.InferenceSession(file.getvalue(), options, providers=['CPUExecutionProvider'])
    feed = {session.get_inputs()[0].name: inputs.numpy()}
    return lambda: session.run(None, feed)


def network_rows(name: str, left: float, models: Models, inputs: Tensor, args: argparse.Namespace) -> list[list[str]]:
    """Time a network in all forms, in PyTorch and in ONNX Runtime."""
    chosen, (count, total) = choose(models, inputs)
    models = {**models, 'chosen': chosen}
    rows = [_row(name, left, 'PyTorch', {kind: partial(model, inputs) for kind, model in models.items()}, args,
                 f'{count}/{total}')]
    if args.onnx:
        runs = {kind: session_of(model, inputs, args.threads) for kind, model in models.items() if kind != 'chosen'}
        runs['chosen'] = session_of(chosen, inputs, args.threads) if count else runs['dense']
        # What is faster in PyTorch need not be so here: as there, the whole network decides.
        if count and time_in_turn({kind: runs[kind] for kind in ('dense', 'chosen')}, args.repeats,
                                  args.seconds)['chosen'][1] >= 1:
            runs['chosen'], count = runs['dense'], 0
        rows.append(_row(name, left, 'ONNX Runtime', runs, args, f'{count}/{total}'))
    return rows


def _row(name: str, left: float, runtime: str, runs: Mapping[str, Callable[[], object]],
         args: argparse.Namespace, count: str) -> list[str]:
    times = time_in_turn(runs, args.repeats, args.seconds)
    unpruned = f'{times[UNPRUNED][1]:.2f}' if UNPRUNED in times else ''
    return [name, f'{left:.0%}', runtime, f'{times[KINDS[0]][0]:.2f}', unpruned,
            *(f'{times[kind][1]:.2f}' for kind in KINDS[1:]), count]


@torch.no_grad()
def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    logging.disable(logging.INFO)  # init_weights logs every layer
    with user_errors():
        names = select(args.networks)
        compact = {path: trained(path) for path in args.compact}
        print(f'{header("benchmarks/stripe.py")}\n')
        layers: dict[tuple, list[str]] = {}
        networks: list[list[str]] = []

        def measure(name: str, left: float, models: Models, inputs: Tensor) -> None:
            networks.extend(network_rows(name, left, models, inputs, args))
            print(*networks[-1], file=sys.stderr, flush=True)
        for name in names:
            model, size = network(name)
            inputs = images(args.batch, size)
            by_density = {density: with_stripes(model, density) for density in args.densities}
            layers |= layer_rows(by_density, inputs, args.repeats)
            for density, models in by_density.items():
                measure(name, density, models, inputs)
        for path, (models, size, left) in compact.items():
            measure(path, left, models, images(args.batch, size))
    shares = [f'{form} {density:.0%}' for density in args.densities for form in KINDS[1:3]]
    if layers:
        print(render(('convolution', 'kernel', 'stride', 'map', 'ms', *shares), list(layers.values()),
                     numbers=range(4, 5 + len(shares))))
    print(render(('network', 'left', 'in', 'ms', UNPRUNED, *KINDS[1:], 'in stripes'), networks, numbers=range(3, 9)),
          end='')
    print(f'batch {args.batch}; processor time, {args.repeats} passes of each kind in turn, of whole networks for '
          f'{args.seconds:g} s\nand more, medians; ms: of the plain convolutions, and behind it ratios to them in the '
          'same round;\nleft: share of the stripes, drawn at random or left by training; unpruned: the dense network '
          'that was\ntrained; chosen: the forms that fastest_forms measured to be the fastest in PyTorch, and how '
          'many layers\nare in stripes')


if __name__ == '__main__':
    main()
