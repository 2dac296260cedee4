#!/usr/bin/env python3
"""Prune the same networks to half their channels with Torch-Pruning and with this package.

Torch-Pruning is no dependency. Put it in a folder of its own and name that folder:
    python -m pip install --no-deps --target FOLDER torch-pruning==1.6.1
    PYTHONPATH=FOLDER python benchmarks/torch_pruning.py --models ResNet-50
"""

from __future__ import annotations

import argparse
import copy
import signal
import sys
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.remove(str(Path(__file__).resolve().parent))  # this file has the name of the library

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from benchmarks.machine import header, timed
from benchmarks.networks import CIFAR, ZOO, read, select
from mmprune_ext.analysis.tables import render
from mmprune_ext.cli.errors import fail, user_errors
from mmprune_ext.units import UnitSet, slim, trace_units
from mmprune_ext.units.demo_inputs import image_size_from_config

COLUMNS = ('network', 'tool', 'find groups: cpu s', 'find and prune: cpu s', 'params left (%)',
           'result')


class TimeLimit(Exception):
    """A tool did not end in time."""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--models', nargs='+', metavar='NAME',
                        help='networks by the beginning of their names; default: all')
    parser.add_argument('--limit', type=int, default=120, metavar='SECONDS', help='of one tool')
    parser.add_argument('--threads', type=int, default=1)
    return parser.parse_args()


def prune_theirs(model: nn.Module, images: Tensor) -> None:
    """Prune by Torch-Pruning's own defaults; the classifier's last layer is left out."""
    import torch_pruning
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    torch_pruning.pruner.BasePruner(
        model, images, importance=torch_pruning.importance.MagnitudeImportance(p=1),
        pruning_ratio=0.5, ignored_layers=[last]).step()


def graph_theirs(model: nn.Module, images: Tensor) -> None:
    """Build Torch-Pruning's dependency graph and search its groups."""
    import torch_pruning
    graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=images)
    for _ in graph.get_all_groups():
        pass


def prune_ours(model: nn.Module, images: Tensor) -> None:
    """Trace and slim; which channels go makes no difference to the time."""
    units: UnitSet = trace_units(model, tuple(images.shape[-2:]), scope='all')
    for unit in units.prunable.values():
        unit.choose(range(unit.kept_number(0.5)))
    slim(model, units)


def graph_ours(model: nn.Module, images: Tensor) -> None:
    """Find and verify the channel units."""
    trace_units(model, tuple(images.shape[-2:]), scope='all')


class OneArgument(nn.Module):
    """A classifier that is called with images alone, as Torch-Pruning does it."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Any:
        """Return the scores of all classes."""
        return self.classifier(images, None, mode='tensor')


def attempt(function: Callable[[], Any], limit: int) -> tuple[str, str]:
    """Return seconds of processor time and, where it failed, the error."""
    def late(*_: Any) -> None:
        raise TimeLimit(f'not done after {limit} s')
    signal.signal(signal.SIGALRM, late)
    signal.alarm(limit)
    try:
        _, spent = timed(function)
    except Exception as error:  # a tool may fail in any way; that is a result
        return '-', f'{type(error).__name__}: {" ".join(str(error).split())[:80]}'
    finally:
        signal.alarm(0)
    return f'{spent.cpu:.2f}', ''


def outcome(model: nn.Module, images: Tensor) -> str:
    """Tell whether a pruned classifier runs and gives finite numbers of the same shape."""
    try:
        with torch.no_grad():
            out = model(images)
    except Exception as error:  # the same
        return f'does not run: {" ".join(str(error).split())[:80]}'
    scores = out[0] if isinstance(out, (list, tuple)) else out
    return 'runs' if bool(torch.isfinite(scores).all()) else 'runs, not finite'


def measure(name: str, limit: int) -> list[list[str]]:
    """Return the rows of one network, one a tool."""
    config = read(name)
    height, width = image_size_from_config(config) or (224, 224)
    dense = MODELS.build({**config.model.to_dict(),
                          'data_preprocessor': config.get('data_preprocessor')})
    dense.eval()
    images = torch.randn(1, 3, height, width)
    params = sum(p.numel() for p in dense.parameters())
    rows = []
    for tool, graph, prune in (('Torch-Pruning', graph_theirs, prune_theirs),
                               ('mmprune_ext', graph_ours, prune_ours)):
        model = OneArgument(copy.deepcopy(dense)) if tool == 'Torch-Pruning' else dense
        first, _ = attempt(partial(graph, model, images), limit)
        second, error = attempt(partial(prune, model, images), limit)
        left = sum(p.numel() for p in model.parameters()) / params
        run = model if isinstance(model, OneArgument) else OneArgument(model)
        rows.append([name, tool, first, second, f'{left:.1%}',
                     error or outcome(run.eval(), images)])
    return rows


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter('ignore')
    if find_spec('torch_pruning') is None:
        fail('Torch-Pruning is not installed; the head of this file says how')
    with user_errors():
        title = header('benchmarks/torch_pruning.py')
        rows = []
        for name in select(args.models, [*ZOO, *CIFAR]):
            rows += measure(name, args.limit)
            for row in rows[-2:]:
                print(*row, sep='  ', file=sys.stderr, flush=True)
    print(f'{title}\n')
    print(render(COLUMNS, rows, numbers=(2, 3, 4)), end='')
    print('whole model, one pass at the image size of the config; Torch-Pruning by its defaults, '
          'without the settings a user can give it for one model;\nmmprune_ext: with its check by '
          'execution; "runs" says nothing about whether the outputs are right')


if __name__ == '__main__':
    main()
