"""Convert a public CIFAR ResNet checkpoint for the configs of this project.

Example: python tools/convert_checkpoint.py resnet56.th resnet56_cifar10.pth --model resnet56
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mmprune_ext.cli.errors import user_errors
from mmprune_ext.paths import check_output_file, require_file

# Those of `mmprune_ext.models.convert`, which takes long to import.
NETWORKS = ('resnet20', 'resnet32', 'resnet44', 'resnet56', 'resnet110')


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Read the arguments."""
    parser = argparse.ArgumentParser(prog, description=__doc__.splitlines()[0])
    parser.add_argument('source', help='checkpoint with names such as module.layer1.0.conv1.weight')
    parser.add_argument('target', help='checkpoint to write')
    # No `choices`: argparse would spread the error over a usage text.
    parser.add_argument('--model', help=f'one of {", ".join(NETWORKS)}; default: found from the file')
    parser.add_argument('--overwrite', action='store_true', help='replace an earlier TARGET')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command; by default with the arguments of the process, under its name."""
    args = parse_args(argv, prog)
    with user_errors():
        require_file(args.source, 'checkpoint')
        check_output_file(args.target, args.overwrite)
        from mmprune_ext.models.convert import convert_checkpoint
        model = convert_checkpoint(args.source, args.target, args.model)
    print(f'{model}: wrote {args.target}')
