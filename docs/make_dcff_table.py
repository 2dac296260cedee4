#!/usr/bin/env python3
"""Write docs/dcff_sizes.md: sizes of the DCFF configs' compact networks, beside the published ones.

Weights make no difference to sizes, so none are loaded. Takes a few minutes on one core.
Example: python docs/make_dcff_table.py --check
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmprune_ext.analysis import Complexity, complexity
from mmprune_ext.atomic import atomic_write
from mmprune_ext.cli.errors import fail, user_errors
from mmprune_ext.compact import slim
from mmprune_ext.compact.compact_model import build_architecture
from mmprune_ext.settings import reading
from mmprune_ext.workflows.pruning import trace_config

PAGE = Path(__file__).resolve().with_name('dcff_sizes.md')
CONFIGS = Path(__file__).resolve().parents[1] / 'configs' / 'pruning'


@dataclass(frozen=True)
class Row:
    """A config, the input that its table was counted on, and what that table prints."""

    network: str
    config: str
    size: tuple[int, int]
    params: str
    flops: str


TASKS = (
    Row('ResNet-50', 'mmcls/dcff/dcff_resnet50_8xb32_in1k.py', (224, 224), '15.16M', '2260M'),
    Row('Faster R-CNN R50-FPN', 'mmdet/dcff/dcff_faster_rcnn_resnet50_8xb4_coco.py', (800, 1280),
        '33.31M', '168320M'),
    Row('PointRend R50-V1c', 'mmseg/dcff/dcff_pointrend_resnet50_8xb2_cityscapes.py', (512, 1024),
        '18.43M', '74410M'),
    Row('top-down heatmap R50', 'mmpose/dcff/dcff_topdown_heatmap_resnet50_coco.py', (256, 192),
        '26.95M', '4290M'),
)
PAPER = (
    Row('VGG-16', 'mmcls/dcff/dcff_vgg16_cifar10.py', (32, 32), '1.06M', '72.77M'),
    Row('ResNet-56', 'mmcls/dcff/dcff_resnet56_cifar10.py', (32, 32), '0.38M', '55.84M'),
    Row('ResNet-110', 'mmcls/dcff/dcff_resnet110_cifar10.py', (32, 32), '0.56M', '85.30M'),
    Row('GoogLeNet', 'mmcls/dcff/dcff_googlenet_cifar10.py', (32, 32), '2.08M', '457.22M'),
    Row('ResNet-50', 'mmcls/dcff/dcff_resnet50_8xb32_in1k_s45.py', (224, 224), '15.16M', '2.25B'),
    Row('ResNet-50', 'mmcls/dcff/dcff_resnet50_8xb32_in1k_s64.py', (224, 224), '10.58M', '1.49B'),
    Row('ResNet-50', 'mmcls/dcff/dcff_resnet50_8xb32_in1k_s66.py', (224, 224), '11.81M', '1.38B'),
)
TOP = """\
# DCFF: sizes of the compact networks

Written by `python docs/make_dcff_table.py`. Do not edit. Whole models, one image;
[conventions](targets.md#what-the-numbers-count). *published* is what the tables of the method print, and
*FLOPs* is counted as those tables did.

## The four tasks
FLOPs by OpenMMLab's counter before mmengine (`flops_mm`). Faster R-CNN on 800 x 1280 with 1000 proposals,
PointRend on 512 x 1024 with 2 x 8196 points, pose on 256 x 192, classification on 224 x 224.

| network | config | parameters | published | MACs | FLOPs | published |
| --- | --- | ---: | ---: | ---: | ---: | ---: |
"""
SLIPS = """
Printed figures that are not those of the model they stand for:
* 33.31M of Faster R-CNN contains the classifier of ResNet-50, {classifier:,} parameters, which a detector
  does not have: {detector:,} + {classifier:,} = {total:,}.
* 74410M of PointRend leaves out batch normalisation.
* 168320M of Faster R-CNN is 0.06% above the count by the same counter; why is not known.

## The networks of the paper
FLOPs by thop 0.0.31 (`flops_thop`). ResNets on CIFAR-10 have shortcuts without weights.

| network | config | parameters | published | MACs | FLOPs | published |
| --- | --- | ---: | ---: | ---: | ---: | ---: |
"""
END = """
The printed 1.06M of VGG-16 is not its count, which is 1.07M. The last pooling here is adaptive, for which thop
counts more than for the published networks' pooling of fixed size: at most 0.02%, 65,536 for GoogLeNet.
"""


def measure(row: Row) -> Complexity:
    """Return what the compact network of a config costs."""
    config = reading.read_config(str(CONFIGS / row.config))
    model = build_architecture(config.model.architecture, config.get('data_preprocessor'))
    slim(model, trace_config(config))
    return complexity(model, row.size, flops=False)


def line(row: Row, params: int, macs: int, flops: int) -> str:
    """Return a row of a table."""
    name = Path(row.config)
    return (f'| {row.network} | [{name.stem}](../configs/pruning/{name}) | {params:,} | '
            f'{row.params} | {macs:,} | {flops:,} | {row.flops} |\n')


def page() -> str:
    """Return the page."""
    costs = {row: measure(row) for row in (*TASKS, *PAPER)}
    tasks = ''.join(line(row, costs[row].params, costs[row].macs, costs[row].flops_mm) for row in TASKS)
    paper = ''.join(line(row, costs[row].params, costs[row].macs, costs[row].flops_thop) for row in PAPER)
    detector = costs[TASKS[1]].params
    classifier = costs[TASKS[0]].params - costs[TASKS[0]].backbone_params
    return TOP + tasks + SLIPS.format(classifier=classifier, detector=detector,
                                      total=detector + classifier) + paper + END


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--check', action='store_true',
                        help='compare with docs/dcff_sizes.md instead of writing it')
    args = parser.parse_args()
    with user_errors():
        text = page()
        if not args.check:
            atomic_write(text, PAGE)
        elif not PAGE.is_file() or PAGE.read_text() != text:
            fail(f'{PAGE} is not what the configs give now; run this script without --check')


if __name__ == '__main__':
    main()
