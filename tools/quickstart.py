#!/usr/bin/env python3
"""The whole way on embedded data: train, prune to half the FLOPs, fine-tune, export, test.

Everything is done by the tools that a user would call, on scikit-learn's handwritten digits; the
commands are printed before they run.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mmprune_ext.engine import checks, cli  # noqa: E402

CONFIG = 'configs/demo/digits_resnet20.py'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--work-dir', default='work_dirs/quickstart', metavar='DIR')
    parser.add_argument('--flops', type=float, default=0.5, metavar='SHARE',
                        help='share of the multiply-accumulates that remains (default: 0.5)')
    parser.add_argument('--epochs', type=int, default=10, help='of the dense training')
    parser.add_argument('--finetune-epochs', type=int, default=5)
    parser.add_argument('--resume', action='store_true',
                        help='go on with an interrupted run instead of starting anew')
    args = parser.parse_args()
    for name in ('epochs', 'finetune_epochs'):
        if getattr(args, name) < 1:
            parser.error(f'--{name.replace("_", "-")} should be at least 1')
    return args


class Steps:
    """Run the steps one after another, each a command that is shown and logged to a file.

    Args:
        folder: Where logs go.
        total: Number of steps, for the progress line.
    """

    def __init__(self, folder: Path, total: int) -> None:
        self.folder, self.total, self.number = folder, total, 0

    def announce(self, text: str) -> None:
        """Print which step begins."""
        self.number += 1
        print(f'[{self.number}/{self.total}] {text}', flush=True)

    def run(self, text: str, tool: str, *arguments: str | Path) -> None:
        """Run one of the tools; on failure show the end of its log.

        Raises:
            SystemExit: With the tool's own exit code.
        """
        self.announce(text)
        command = [f'tools/{tool}', *map(str, arguments)]
        print(f'      python {shlex.join(command)}', flush=True)
        log, began = self.folder / f'step{self.number}.log', time.monotonic()
        with log.open('w') as file, subprocess.Popen(
                [sys.executable, '-u', str(ROOT / command[0]), *command[1:]],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            for line in process.stdout:
                file.write(line)
                progress = re.search(r'Epoch\((train|val)\) .*', line)
                if progress:
                    print(f'      {progress[0][:90].rstrip()}', flush=True)
        code = process.returncode
        if code:
            print(''.join(log.read_text().splitlines(keepends=True)[-15:]), file=sys.stderr)
            cli.fail(f'step {self.number} ended with exit code {code}; its whole output: {log}',
                     code)
        print(f'      done in {time.monotonic() - began:.0f} s', flush=True)


def main() -> None:
    args = parse_args()
    began = time.monotonic()
    with cli.user_errors():
        folder = checks.check_output_folder(args.work_dir).resolve()
        run_steps(args, folder)
    print(f'took {time.monotonic() - began:.0f} s')


def run_steps(args: argparse.Namespace, folder: Path) -> None:
    """Run all steps and print the summary."""
    from mmprune_ext.datasets import write_digits
    steps = Steps(folder, 7)
    steps.announce('write the digits as image folders')
    data = write_digits(folder / 'digits')
    options = [f'{split}_dataloader.dataset.data_root={data}' for split in ('train', 'val', 'test')]
    resume = ['--resume'] if args.resume else []
    dense, pruned, tuned, exported = (folder / n for n in ('dense', 'pruned', 'tuned', 'compact'))
    steps.run('train the dense network', 'train.py', ROOT / CONFIG, '--work-dir', dense, *resume,
              '--cfg-options', *options, f'train_cfg.max_epochs={args.epochs}')
    weights = dense / f'epoch_{args.epochs}.pth'
    steps.run('test it', 'test.py', ROOT / CONFIG, weights, '--work-dir', dense,
              '--json', folder / 'dense.json', '--cfg-options', *options)
    steps.run(f'prune it to {args.flops:.0%} of its FLOPs', 'prune.py', ROOT / CONFIG, weights,
              '--algorithm', 'l1', '--flops', str(args.flops), '-o', pruned,
              '--cfg-options', *options)
    steps.run('fine-tune the compact network', 'train.py', pruned / 'compact_config.py',
              '--work-dir', tuned, *resume, '--cfg-options',
              f'train_cfg.max_epochs={args.finetune_epochs}', 'param_scheduler.eta_max=0.05')
    steps.run('export it', 'export_compact.py', pruned / 'compact_config.py',
              tuned / f'epoch_{args.finetune_epochs}.pth', '-o', exported)
    steps.run('test the compact network', 'test.py', exported / 'compact_config.py',
              '--work-dir', tuned, '--json', folder / 'compact.json')
    print(summary(folder, weights, exported))


def summary(folder: Path, dense_weights: Path, exported: Path) -> str:
    """Return the closing table: accuracy, parameters, multiply-accumulates, latency."""
    import torch
    from mmengine.registry import MODELS

    from mmprune_ext.analysis import compare_latency
    from mmprune_ext.analysis.tables import render
    config = cli.read_config(str(ROOT / CONFIG))
    compact_config = cli.read_config(str(exported / 'compact_config.py'))
    models = [MODELS.build({**c.model, 'data_preprocessor': c.data_preprocessor})
              for c in (config, compact_config)]
    report = json.loads((exported / 'report.json').read_text())
    speed = compare_latency(*models, input_shape=(32, 32), batch_size=16)
    rows = []
    for name, latency in (('dense', speed.dense), ('compact', speed.compact)):
        cost = report[name]
        accuracy = json.loads((folder / f'{name}.json').read_text())['accuracy/top1']
        rows.append([name, f'{accuracy:.2f}', f'{cost["params"]:,}', f'{cost["macs"]:,}',
                     f'{latency.median_ms:.1f}'])
    files = [dense_weights, *(exported / n for n in ('compact.pth', 'compact_config.py',
                                                     'units.json', 'report.txt', 'widths.png'))]
    table = render(['network', 'top-1 (%)', 'parameters', 'MACs', 'ms a batch of 16'], rows)
    return '\n'.join([
        '', table, f'(MACs: multiply-accumulates of convolution and linear layers, one 3 x 32 x 32 '
        f'image; latency on the CPU, {torch.get_num_threads()} threads)', '', 'written:',
        *(f'  {path}' for path in files)])


if __name__ == '__main__':
    main()
