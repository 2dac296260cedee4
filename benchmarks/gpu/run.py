#!/usr/bin/env python3
"""Check the paths of every method on a GPU against the CPU, time them, and fine-tune the networks of the L1 paper.

Classification only; mmcv needs no compiled operators. What is there in the results folder is not found again, so that
a run can be stopped, continued and split by --parts. Exit code 1 says that a check failed or something was not run.

Example: bash benchmarks/gpu.sh --data data/cifar10 --weights checkpoints --out work_dirs/gpu
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import os
import platform
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

with contextlib.suppress(ImportError):
    import setuptools  # noqa: F401  brings distutils, which mmengine's Runner asks for and Python 3.12 has no more

import torch
from mmengine.registry import init_default_scope

from benchmarks.gpu import checks, finetune, speed
from benchmarks.gpu.bench import FULL, QUICK, Bench
from benchmarks.gpu.images import images_on
from benchmarks.gpu.results import ERROR, LATE, PARTS, Results
from benchmarks.machine import header
from mmprune_ext.cli import arguments
from mmprune_ext.cli.errors import fail, user_errors
from mmprune_ext.paths import check_output_folder

# Seconds after which a part begins nothing new, as a share of all.
SHARES = {'checks': 0.45, 'speed': 0.65, 'finetune': 1.0}
RESERVE = 15  # seconds for what comes after the last epoch


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data', required=True, metavar='DIR',
                        help='CIFAR-10: sheets with labels.npz, or class folders train and val')
    parser.add_argument('--weights', required=True, metavar='DIR',
                        help='folder of resnet20_cifar10.pth and resnet56_cifar10.pth')
    parser.add_argument('--out', required=True, metavar='DIR', help='folder of results.json, summary.md and the runs')
    parser.add_argument('--device', default='cuda', help='cuda (default), cuda:1, or cpu to try the script itself')
    parser.add_argument('--quick', action='store_true', help='small sizes, ResNet-20 alone: a minute or two on a CPU')
    parser.add_argument('--parts', nargs='+', choices=list(PARTS), default=list(PARTS))
    parser.add_argument('--only', nargs='+', metavar='TEXT', help='checks and times whose names have this in them')
    parser.add_argument('--finetune', nargs='+', choices=finetune.NETWORKS, metavar='NETWORK',
                        help=f'what to fine-tune (default: {", ".join(finetune.NETWORKS)}; in a quick run the first)')
    parser.add_argument('--seconds', type=arguments.positive_number, default=570,
                        help='for everything; what does not fit is named (default: 570)')
    return parser.parse_args()


def check_device(device: str) -> None:
    """Check that there is such a device."""
    if device == 'cpu':
        return
    if not device.startswith('cuda'):
        fail(f'--device {device}: not a device that this measures on; give cuda, or cpu to try the script')
    if not torch.cuda.is_available():
        fail(f'--device {device}: torch {torch.__version__} sees no GPU; give --device cpu --quick to try the script')


def driver() -> str:
    """Return the version of the GPU's driver, as nvidia-smi tells it."""
    try:
        asked = subprocess.run(['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader'],
                               capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return 'unknown'
    return asked.stdout.split('\n')[0].strip() or 'unknown'


def machine(device: str) -> dict[str, str]:
    """Return what results depend on."""
    if device == 'cpu':
        return {'card': 'none', 'torch': torch.__version__}
    return {'card': torch.cuda.get_device_name(device), 'torch': torch.__version__}


def title(device: str) -> str:
    """Return lines that name card, driver, versions and command."""
    gpu = '' if device == 'cpu' else (
        f'\nCUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, driver {driver()}, '
        f'{torch.cuda.get_device_properties(device).total_memory / 2 ** 30:.0f} GiB')
    try:
        import_module('mmcv._ext')
        operators = 'with'
    except ImportError:
        operators = 'without'
    return f'{header("benchmarks/gpu/run.py")}{gpu}\nmmcv {operators} compiled operators, {platform.platform()}'


class Clock:
    """The seconds of a run.

    Args:
        seconds: All.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._start = time.monotonic()

    def left(self, share: float = 1.0) -> float:
        """Return the seconds until a share of all is over."""
        return share * self.seconds - (time.monotonic() - self._start)


def run_all(measures: Mapping[str, Callable[[Bench], Mapping[str, Any]]], part: str, bench: Bench, results: Results,
            clock: Clock, args: argparse.Namespace) -> None:
    """Run what is not done yet; what fails or has no time is named, and the rest goes on."""
    share = SHARES[part] / max(SHARES[each] for each in args.parts)
    for name, measure in measures.items():
        if results.is_done(part, name) or args.only and not any(text.lower() in name.lower() for text in args.only):
            continue
        if clock.left(share) < 0:
            results.put(part, name, {'status': LATE, 'text': 'out of time'})
            continue
        results.put(part, name, attempt(lambda: measure(bench)))  # noqa: B023


def attempt(run: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return a result, also of what raises an error."""
    start = time.monotonic()
    try:
        found = run()
    except Exception as error:  # whatever a kernel, a driver or this script fails with
        traceback.print_exc()
        found = {'status': ERROR, 'text': f'{type(error).__name__}: {" ".join(str(error).split())[:300]}'}
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return {**found, 'took': round(time.monotonic() - start, 2)}


def fine_tuning(bench: Bench, results: Results, clock: Clock, args: argparse.Namespace) -> None:
    """Fine-tune networks, one after the other, as far as the time goes."""
    quick = {'epochs': 1, 'limit': 64} if args.quick else {}
    for network in args.finetune or (finetune.NETWORKS[:1] if args.quick else finetune.NETWORKS):
        if results.is_done('finetune', network):
            continue
        left = clock.left() - RESERVE
        if left < 0:
            results.put('finetune', network, {'status': LATE, 'text': 'out of time'})
            continue
        folder = Path(args.out) / network
        results.put('finetune', network, attempt(
            lambda: finetune.finetune(bench, network, folder, left, **quick)))  # noqa: B023


def main() -> None:
    args = parse_args()
    clock = Clock(args.seconds)
    warnings.simplefilter('ignore', FutureWarning)
    logging.disable(logging.WARNING)
    os.environ.setdefault('TQDM_DISABLE', '1')
    with user_errors():
        check_device(args.device)
        check_output_folder(args.out)
        init_default_scope('mmpretrain')
        bench = Bench(args.data, args.weights, args.device, QUICK if args.quick else FULL)
        for network in {bench.sizes.network, *(args.finetune or [])}:
            bench.checkpoint(network)
        text = title(args.device)
        setting = {'device': args.device.partition(':')[0], 'quick': args.quick, **machine(args.device)}
        results = Results(args.out, setting, text)
        for split in ('train', 'val'):
            images_on(args.data, split, args.device)
    print(text, flush=True)
    if 'checks' in args.parts:
        run_all(checks.CHECKS, 'checks', bench, results, clock, args)
    if 'speed' in args.parts:
        run_all(speed.measures(bench), 'speed', bench, results, clock, args)
    if 'finetune' in args.parts:
        fine_tuning(bench, results, clock, args)
    failed = results.failed()
    print(f'{args.out}: results.json, summary.md; ' + (f'not as it should be: {", ".join(failed)}' if failed
                                                        else 'all as it should be'))
    raise SystemExit(1 if failed else 0)


if __name__ == '__main__':
    main()
