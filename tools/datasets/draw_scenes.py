#!/usr/bin/env python3
"""Draw scenes of shapes and stick figures with ground truth for all four tasks.

Example: python tools/datasets/draw_scenes.py data/scenes
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mmprune_ext.datasets import write_scenes
from mmprune_ext.engine import cli


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('root', help='folder to make: images, annotations, segmentation, classes')
    parser.add_argument('--train', type=int, default=400, metavar='N', help='scenes to train on')
    parser.add_argument('--val', type=int, default=100, metavar='N', help='scenes to validate on')
    parser.add_argument('--size', type=int, nargs=2, default=(128, 128), metavar=('H', 'W'),
                        help='pixels of a scene')
    parser.add_argument('--seed', type=int, default=0)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with cli.user_errors():
        root = write_scenes(args.root, args.train, args.val, tuple(args.size), args.seed)
    print(f'scenes are in {root}')


if __name__ == '__main__':
    main()
