#!/usr/bin/env python3
"""Unpack tiled image sheets with labels.npz to class folders for mmpretrain's CustomDataset.

Example: python tools/datasets/unpack_sheets.py SHEETS data/cifar10 --limit 500
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mmprune_ext.datasets import unpack_sheets
from mmprune_ext.engine import cli


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('source', help='folder with labels.npz, train_00.webp, ..., test_00.webp')
    parser.add_argument('root', help='folder to make: train/<class>/*.png and val/<class>/*.png')
    parser.add_argument('--limit', type=int, metavar='N',
                        help='the first N images of each class and split; default: all')
    parser.add_argument('--tile', type=int, default=32, metavar='PIXELS', help='side of a tile')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with cli.user_errors():
        root = unpack_sheets(args.source, args.root, args.limit, args.tile)
    print(f'images are in {root}')


if __name__ == '__main__':
    main()
