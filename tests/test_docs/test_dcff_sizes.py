"""docs/dcff_sizes.md holds the exact counts of the published models, and those of every DCFF config."""
from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LINE = re.compile(r'\| [^|]+ \| \[(\w+)\]\(\.\./([^)]+)\) \| ([\d,]+) \| [^|]+ \| ([\d,]+) \| ([\d,]+) \| [^|]+ \|')


def page() -> dict[str, tuple[int, int, int]]:
    """Return parameters, MACs and FLOPs by config."""
    found = {}
    for match in LINE.finditer((ROOT / 'docs' / 'dcff_sizes.md').read_text()):
        assert (ROOT / match[2]).is_file()
        found[match[1]] = tuple(int(match[n].replace(',', '')) for n in (3, 4, 5))
    return found


def published(name: str) -> dict[str, dict]:
    return {row['row']: row for row in json.loads((ROOT / 'tests' / 'data' / name).read_text())}


def test_exact_counts():
    sizes = page()
    tasks = published('published_task_models.json')
    for row, config in (('DCFF classification R50', 'dcff_resnet50_8xb32_in1k'),
                        ('DCFF Faster R-CNN R50-FPN', 'dcff_faster_rcnn_resnet50_8xb4_coco'),
                        ('DCFF PointRend R50-V1c', 'dcff_pointrend_resnet50_8xb2_cityscapes'),
                        ('DCFF TopDown Heatmap R50', 'dcff_topdown_heatmap_resnet50_coco')):
        assert sizes[config] == (tasks[row]['params'], tasks[row]['macs'], tasks[row]['flops_mm'])
    lists = published('published_dcff.json')
    for network in ('vgg16', 'resnet56', 'googlenet'):
        row = lists[f'DCFF repo CIFAR-10 {network}']
        params, macs, flops = sizes[f'dcff_{network}_cifar10']
        assert (params, macs) == (row['params'], row['macs'])
        # The last pooling is adaptive here, which thop counts higher.
        assert 0 <= flops - row['flops_thop'] <= 2e-4 * flops


def test_every_config_has_its_line():
    configs = {path.stem for path in (ROOT / 'configs' / 'pruning').glob('*/dcff/dcff_*.py')}
    trained = {name for name in configs if not name.startswith('dcff_compact')}
    assert page().keys() == trained
