#!/usr/bin/env python3
"""Top-1 accuracy of classifiers, and of the ensemble that they are as teachers, on the test data of a config."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch.nn import functional

from mmprune_ext.cli.errors import user_errors
from mmprune_ext.distillation.losses import mean
from mmprune_ext.distillation.teachers import build_teachers
from mmprune_ext.settings.reading import read_config, require_sections
from mmprune_ext.settings.teaching import teacher_entry


def parse_args() -> argparse.Namespace:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', metavar='CONFIG', help='whose test data, and model, the members belong to')
    parser.add_argument('teachers', nargs='+', metavar='CONFIG[:CHECKPOINT]', help='the members')
    parser.add_argument('--temperature', type=float, default=5.0, help='of the probabilities (default: 5)')
    return parser.parse_args()


@torch.no_grad()
def main() -> None:
    """Print a line a member, and one of all together."""
    args = parse_args()
    with user_errors():
        config = read_config(args.config)
        require_sections(config, ['test_dataloader'], 'to measure')
        model = MODELS.build({**config.model, 'data_preprocessor': config.get('data_preprocessor')})
        teachers = build_teachers([teacher_entry(text) for text in args.teachers], model)
        right, total = [0] * (len(teachers) + 1), 0
        for data in Runner.build_dataloader(config.test_dataloader, seed=0):
            data = model.data_preprocessor(data, False)
            labels = torch.cat([sample.gt_label for sample in data['data_samples']])
            members = [functional.softmax(t.results(['head'], data['inputs'])['head'] / args.temperature, 1)
                       for t in teachers]
            for number, scores in enumerate([*members, mean(members)]):
                right[number] += int((scores.argmax(1) == labels).sum())
            total += len(labels)
    for name, count in zip([*args.teachers, 'ensemble'], right):
        print(f'{100 * count / total:6.2f}  {count}/{total}  {name}')


if __name__ == '__main__':
    main()
