"""Unpack tiled image sheets with labels.npz to class folders for mmpretrain's CustomDataset.

Example: python tools/datasets/unpack_sheets.py SHEETS data/cifar10 --limit 500
"""
import argparse
import sys

from mmprune_ext.datasets import unpack_sheets
from mmprune_ext.errors import PruningError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('source', help='folder with labels.npz, train_00.webp, ..., test_00.webp')
    parser.add_argument('root', help='folder to make: train/<class>/*.png and val/<class>/*.png')
    parser.add_argument('--limit', type=int, metavar='N',
                        help='the first N images of each class and split; default: all')
    parser.add_argument('--tile', type=int, default=32, metavar='PIXELS', help='side of a tile')
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    try:
        root = unpack_sheets(args.source, args.root, args.limit, args.tile)
    except PruningError as error:
        print(f'unpack_sheets: {error}', file=sys.stderr)
        return 2
    print(f'images are in {root}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
