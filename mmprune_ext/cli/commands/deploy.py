"""Write a model for another runtime (ONNX Runtime, OpenVINO, torch.export), and check it against PyTorch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mmprune_ext.cli import arguments
from mmprune_ext.cli.errors import user_errors
from mmprune_ext.paths import check_result_folder
from mmprune_ext.trust import checkpoints


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Read the arguments."""
    parser = argparse.ArgumentParser(prog, description=__doc__)
    arguments.config_arguments(parser)
    parser.add_argument('checkpoint', nargs='?', metavar='CHECKPOINT',
                        help='weights (default: those that a compact config names)')
    arguments.output_folder_arguments(parser)
    parser.add_argument('--backend', choices=['onnxruntime', 'openvino', 'torch-export'], default='onnxruntime',
                        help='what is to run the model (default: %(default)s)')
    parser.add_argument('--shape', nargs=2, type=arguments.positive, metavar=('H', 'W'),
                        help='image size (default: the size in the config)')
    parser.add_argument('--batch-size', type=arguments.positive, default=1, metavar='N',
                        help='images of a pass (default: 1)')
    parser.add_argument('--dynamic', nargs='+', choices=['batch', 'size'], default=[],
                        help='what may differ from that in each pass')
    parser.add_argument('--metric', nargs='?', type=arguments.not_negative, const=0, metavar='N',
                        help="compute the metric of the config's test set, or of N samples of it, in PyTorch and "
                        'through the exported model')
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command; by default with the arguments of the process, under its name."""
    args = parse_args(argv, prog)
    with user_errors(), checkpoints(args.trust_checkpoint):
        arguments.require_inputs(args)
        check_result_folder(args.output_dir, args.overwrite)
        from mmprune_ext.deploy.exporting import require_backend
        from mmprune_ext.settings import reading
        from mmprune_ext.workflows.deploying import Form, deploy, summary
        require_backend(args.backend)
        config = reading.read_config(args.config, args.cfg_options)
        form = Form(args.backend, args.shape, args.batch_size, tuple(args.dynamic))
        print(summary(deploy(config, args.checkpoint, args.output_dir, form, args.metric)), end='')
        print(f'written to {args.output_dir}')
