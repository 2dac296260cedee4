"""Unpack tiled image sheets with labels.npz to class folders for mmpretrain's CustomDataset.

Example: python tools/datasets/unpack_sheets.py SHEETS data/cifar10 --limit 500
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mmprune_ext.cli.errors import user_errors


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Read the arguments."""
    parser = argparse.ArgumentParser(prog, description=__doc__.splitlines()[0])
    parser.add_argument('source', help='folder with labels.npz, train_00.webp, ..., test_00.webp')
    parser.add_argument('root', help='folder to make: train/<class>/*.png and val/<class>/*.png')
    parser.add_argument('--limit', type=int, metavar='N',
                        help='the first N images of each class and split; default: all')
    parser.add_argument('--tile', type=int, default=32, metavar='PIXELS', help='side of a tile')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command; by default with the arguments of the process, under its name."""
    args = parse_args(argv, prog)
    with user_errors():
        from mmprune_ext.datasets import unpack_sheets
        root = unpack_sheets(args.source, args.root, args.limit, args.tile)
    print(f'images are in {root}')
