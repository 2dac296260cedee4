"""Draw scenes of shapes and stick figures with ground truth for all four tasks.

Example: python tools/datasets/draw_scenes.py data/scenes
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mmprune_ext.cli.errors import user_errors


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Read the arguments."""
    parser = argparse.ArgumentParser(prog, description=__doc__.splitlines()[0])
    parser.add_argument('root', help='folder to make: images, annotations, segmentation, classes')
    parser.add_argument('--train', type=int, default=400, metavar='N', help='scenes to train on')
    parser.add_argument('--val', type=int, default=100, metavar='N', help='scenes to validate on')
    parser.add_argument('--size', type=int, nargs=2, default=(128, 128), metavar=('H', 'W'),
                        help='pixels of a scene')
    parser.add_argument('--seed', type=int, default=0)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command; by default with the arguments of the process, under its name."""
    args = parse_args(argv, prog)
    with user_errors():
        from mmprune_ext.datasets import write_scenes
        root = write_scenes(args.root, args.train, args.val, tuple(args.size), args.seed)
    print(f'scenes are in {root}')
