"""The whole way on data made on the spot: train, prune, fine-tune, export, test, draw.

Everything is done by the tools that a user would call, with configs of ``configs/demo``; the
commands are printed before they run.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from mmprune_ext.analysis import compare_latency
from mmprune_ext.analysis.tables import render
from mmprune_ext.atomic import atomic_write
from mmprune_ext.datasets import write_digits, write_scenes
from mmprune_ext.errors import PruningError, StepError
from mmprune_ext.paths import check_output_folder
from mmprune_ext.settings import reading
from mmprune_ext.settings.libraries import shipped
from mmprune_ext.units.demo_inputs import counting_inputs

DATA_VARIABLE = 'MMPRUNE_DATA'  # in the configs, the folder of the data sets
DRAWN = 8  # pictures of each network


@dataclass(frozen=True)
class Demo:
    """One demonstration.

    Attributes:
        config: Name of a file in ``configs/demo``. Its one learning rate schedule has a peak
            ``eta_max``; fine-tuning takes half the epochs at half the peak.
        metric: The metric of the closing table, as the evaluator names it.
        title: The same in words.
        write: Writes the data that the config reads into a folder of data sets.
    """

    config: str
    metric: str
    title: str
    write: Callable[[Path], None]


def _write_digits(data: Path) -> None:
    write_digits(data / 'digits')


def _write_scenes(data: Path) -> None:
    write_scenes(data / 'scenes')


DEMOS: Mapping[str, Demo] = {
    'digits': Demo('digits_resnet20.py', 'accuracy/top1', 'top-1 (%)', _write_digits),
    'classification': Demo('scenes_classification.py', 'accuracy/top1', 'top-1 (%)',
                           _write_scenes),
    'detection': Demo('scenes_detection.py', 'coco/bbox_mAP', 'box mAP', _write_scenes),
    'segmentation': Demo('scenes_segmentation.py', 'mIoU', 'mIoU (%)', _write_scenes),
    'pose': Demo('scenes_pose.py', 'coco/AP', 'keypoint AP', _write_scenes),
}


@dataclass(frozen=True)
class Settings:
    """What a user chooses.

    Attributes:
        work_dir: Folder of everything that is written.
        flops: Share of the backbone's multiply-accumulates that remains.
        epochs: Of the dense training; the config's by default.
        finetune_epochs: Of the fine-tuning; half the config's by default.
        resume: Go on with an interrupted run instead of starting anew.

    Raises:
        PruningError: If the share is not one.
    """

    work_dir: str | Path
    flops: float = 0.5
    epochs: int | None = None
    finetune_epochs: int | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.flops <= 1:
            raise PruningError(f'flops is the share that remains, above 0 and at most 1, but got '
                               f'{self.flops}')


class Steps:
    """Run the steps one after another, each a command that is shown and logged to a file.

    Args:
        folder: Where logs go.
        total: Number of steps, for the progress line.
        variables: Added to the environment of the commands.
    """

    def __init__(self, folder: Path, total: int, variables: Mapping[str, str]) -> None:
        self.folder, self.total, self.number = folder, total, 0
        self.environment = {**os.environ, **variables}

    def announce(self, text: str) -> None:
        """Print which step begins."""
        self.number += 1
        print(f'[{self.number}/{self.total}] {text}', flush=True)

    def run(self, text: str, tool: str, *arguments: str | Path) -> None:
        """Run one of the tools; on failure show the end of its log.

        Raises:
            StepError: With the tool's own exit code.
        """
        self.announce(text)
        command = [_shown(shipped(f'tools/{tool}')), *map(str, arguments)]
        print(f'      python {shlex.join(command)}', flush=True)
        log, began = self.folder / f'step{self.number}.log', time.monotonic()
        with log.open('w') as file, subprocess.Popen(
                [sys.executable, '-u', *command],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                env=self.environment) as process:
            for line in process.stdout:
                file.write(line)
                progress = re.search(r'Epoch\((train|val)\) .*', line)
                if progress:
                    print(f'      {progress[0][:90].rstrip()}', flush=True)
        code = process.returncode
        if code:
            print(''.join(log.read_text().splitlines(keepends=True)[-15:]), file=sys.stderr)
            raise StepError(f'step {self.number} ended with exit code {code}; its whole output: {log}', code)
        print(f'      done in {time.monotonic() - began:.0f} s', flush=True)


def _shown(path: Path) -> str:
    """Return a path as a user would type it: from the present folder if it lies in there."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def run_demo(task: str, settings: Settings) -> str:
    """Run a demonstration and return its closing table.

    Args:
        task: Name of an entry of :data:`DEMOS`.
        settings: What the user chose.

    Raises:
        PruningError: If the output folder cannot be written to, or the configs and tools of this package are not
            there.
        StepError: If a step fails, with its exit code.
    """
    demo = DEMOS[task]
    source = shipped(f'configs/demo/{demo.config}')
    folder = check_output_folder(settings.work_dir).resolve()
    config = reading.read_config(str(source))
    folder.mkdir(parents=True, exist_ok=True)
    exported = _run_steps(demo, source, config, settings, folder)
    results = _results(demo, config, folder, exported)
    atomic_write(json.dumps(results, indent=1) + '\n', folder / 'summary.json')
    return _summary(demo, results, folder, exported)


def _run_steps(demo: Demo, source: Path, config: Config, settings: Settings, folder: Path) -> Path:
    """Run all steps; return the folder of the compact network."""
    epochs = settings.epochs or config.train_cfg.max_epochs
    finetune_epochs = settings.finetune_epochs or max(1, config.train_cfg.max_epochs // 2)
    data = folder / 'data'
    steps = Steps(folder, 7, {DATA_VARIABLE: str(data)})
    steps.announce('write the data')
    print(f'      export {DATA_VARIABLE}={shlex.quote(str(data))}', flush=True)
    demo.write(data)
    resume = ['--resume'] if settings.resume else []
    dense, pruned, tuned, exported = (folder / n for n in ('dense', 'pruned', 'tuned', 'compact'))
    steps.run('train the dense network', 'train.py', source, '--work-dir', dense, *resume,
              '--cfg-options', f'train_cfg.max_epochs={epochs}')
    weights = dense / f'epoch_{epochs}.pth'
    steps.run('test it and draw predictions', 'test.py', source, weights,
              *_test_arguments(folder, 'dense', dense))
    steps.run(f'prune it to {settings.flops:.0%} of the backbone\'s FLOPs', 'prune.py', source,
              weights, '--algorithm', 'l1', '--flops', str(settings.flops), '--budget-scope',
              'backbone', '--repair', '0', '-o', pruned, '--overwrite')
    peak = config.param_scheduler.eta_max / 2
    steps.run('fine-tune the compact network', 'train.py', pruned / 'compact_config.py',
              '--work-dir', tuned, *resume, '--cfg-options',
              f'train_cfg.max_epochs={finetune_epochs}', f'param_scheduler.eta_max={peak:g}')
    steps.run('export it', 'export_compact.py', pruned / 'compact_config.py',
              tuned / f'epoch_{finetune_epochs}.pth', '-o', exported, '--overwrite')
    steps.run('test the compact network and draw predictions', 'test.py',
              exported / 'compact_config.py', *_test_arguments(folder, 'compact', tuned))
    return exported


def _test_arguments(folder: Path, name: str, work_dir: Path) -> list[str | Path]:
    return ['--work-dir', work_dir, '--json', folder / f'{name}.json',
            '--show-dir', folder / 'drawn' / name, '--show-number', str(DRAWN)]


def _results(demo: Demo, config: Config, folder: Path, exported: Path) -> dict[str, Any]:
    """Return what the closing table tells, of the dense and the compact network."""
    compact = reading.read_config(str(exported / 'compact_config.py'))
    models = [MODELS.build({**c.model, 'data_preprocessor': c.get('data_preprocessor')})
              for c in (config, compact)]
    speed = compare_latency(*models, input_shape=counting_inputs(config))
    report = json.loads((exported / 'report.json').read_text())
    results = {}
    for name, latency in (('dense', speed.dense), ('compact', speed.compact)):
        costs = {key: report[name][key]
                 for key in ('params', 'macs', 'backbone_params', 'backbone_macs', 'input_shape')}
        # COCO's evaluators report nothing where nothing was found.
        metric = json.loads((folder / f'{name}.json').read_text()).get(demo.metric, 0.0)
        results[name] = {'metric': metric, **costs, 'latency_ms': latency.median_ms}
    return results


def _summary(demo: Demo, results: Mapping[str, Any], folder: Path, exported: Path) -> str:
    """Return the closing table and the paths of what was written."""
    keys = ('params', 'macs', 'backbone_params', 'backbone_macs')
    rows = [[name, f'{r["metric"]:.4g}', *(f'{r[key]:,}' for key in keys),
             f'{r["latency_ms"]:.1f}'] for name, r in results.items()]
    table = render(['network', demo.title, 'parameters', 'MACs', 'backbone parameters',
                    'backbone MACs', 'ms an image'], rows, numbers=range(1, 7))
    dense, compact = results['dense'], results['compact']
    shape = ' x '.join(map(str, dense['input_shape']))
    files = [folder / 'summary.json', folder / 'drawn',
             *(exported / n for n in ('compact.pth', 'compact_config.py', 'units.json',
                                      'report.txt', 'widths.png'))]
    return '\n'.join([
        '', table, f'compact keeps {compact["metric"] / max(dense["metric"], 1e-9):.1%} of the '
        f'metric and takes {compact["latency_ms"] / dense["latency_ms"]:.0%} of the time',
        f'(MACs: multiply-accumulates of convolution and linear layers, one {shape} image; '
        f'latency on the CPU, {torch.get_num_threads()} threads)', '', 'written:',
        *(f'  {path}' for path in files)])
