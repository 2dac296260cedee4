#!/usr/bin/env python3
"""Convert a public CIFAR ResNet checkpoint for the configs of this project.

Example: python tools/convert_checkpoint.py resnet56.th resnet56_cifar10.pth --model resnet56
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmprune_ext.engine import cli
from mmprune_ext.models.convert import MODELS, convert_checkpoint


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('source', help='checkpoint with names such as module.layer1.0.conv1.weight')
    parser.add_argument('target', help='checkpoint to write')
    # No `choices`: argparse would spread the error over a usage text.
    parser.add_argument('--model', help=f'one of {", ".join(MODELS)}; default: found from the file')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with cli.user_errors():
        model = convert_checkpoint(args.source, args.target, args.model)
    print(f'{model}: wrote {args.target}')


if __name__ == '__main__':
    main()
