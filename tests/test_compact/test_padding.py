"""Zero channels up to a multiple: other widths, the same outputs."""
from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mmprune_ext.compact.padding import pad_widths
from mmprune_ext.errors import PruningError
from mmprune_ext.units import UnitSet, slim, trace_units
from tests.in_process import run_tool

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A residual sum, a depthwise convolution, and a flatten."""

    def __init__(self, norm: type[nn.Module] | None = None) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 10, 3, padding=1), nn.BatchNorm2d(10), nn.PReLU(10))
        self.inner = nn.Conv2d(10, 12, 3, padding=1)
        self.norm = norm(2, 12) if norm else nn.BatchNorm2d(12)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.outer = nn.Conv2d(12, 10, 1)
        self.fc = nn.Linear(10 * 4, 5)
        self.mean = False

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        y = torch.relu(self.depthwise(self.norm(self.inner(x))))
        if self.mean:
            y = y / (1 + y.mean(1, keepdim=True))
        return self.fc(nn.functional.adaptive_avg_pool2d(torch.relu(x + self.outer(y)), 2).flatten(1))


def pruned(net: nn.Module) -> tuple[nn.Module, UnitSet, nn.Module]:
    """Return a slimmed copy of a network, its units, and the network: 5 of 10 and 7 of 12 stay, or 3 of 6 pairs."""
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean)
            nn.init.normal_(module.bias)
    units = trace_units(net.eval(), IMAGES, scope='all')
    grouped = isinstance(net.norm, nn.GroupNorm)
    units['stem.0'].choose([0, 2, 3, 7, 9])
    units['inner'].choose([0, 2, 3] if grouped else [0, 1, 4, 5, 6, 9, 11])
    return slim(copy.deepcopy(net), units), units, net


@pytest.mark.parametrize(('multiple', 'widths'), [(1, (5, 7)), (4, (8, 8)), (8, (8, 8)), (16, (10, 12))])
def test_wider_and_the_same(multiple, widths):
    """A unit has no more channels than the dense one, whatever the multiple."""
    compact, units, dense = pruned(Net())
    before = copy.deepcopy(dense.state_dict())
    padded, wider, padding = pad_widths(compact, units, dense, multiple, IMAGES)
    assert (padded.stem[0].out_channels, padded.inner.out_channels) == widths
    assert (wider['stem.0'].keep, wider['inner'].keep) == widths and units['stem.0'].keep == 5
    assert set(units['inner'].indices) <= set(wider['inner'].indices)
    torch.testing.assert_close(padded(IMAGES), compact(IMAGES), rtol=0, atol=1e-6)
    assert sum(padding.channels.values()) == sum(widths) - 12
    # The units alone build a model of these widths.
    assert slim(copy.deepcopy(dense), wider).fc.in_features == 4 * widths[0] == padded.fc.in_features
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())


def test_groups_of_a_normalisation_stay_as_they_are():
    padded, _, padding = pad_widths(*pruned(Net(nn.GroupNorm)), 4, IMAGES)
    assert padding.channels == {'stem.0': 3} and padded.inner.out_channels == 6
    assert padding.left == {'inner': 'norm is a GroupNorm'}


def test_what_computes_over_channels_is_noticed():
    """A mean is smaller with zero channels; tracing leaves such units alone, but a file may say anything."""
    compact, units, dense = pruned(Net())
    compact.mean = dense.mean = True
    with pytest.raises(PruningError, match='--pad-to: zero channels would change the outputs'):
        pad_widths(compact, units, dense, 4, IMAGES)


def test_export_pads(pruning_run: Path, tmp_path: Path):
    """The tool: the same metric from a folder whose widths are multiples."""
    for name, further in (('plain', []), ('padded', ['--pad-to', 4])):
        run_tool('export_compact', pruning_run / 'run.py', pruning_run / 'epoch_1.pth', '-o', tmp_path / name, *further)
        run_tool('test', tmp_path / name / 'compact_config.py', '--work-dir', tmp_path / 'work', '--json',
                 tmp_path / f'{name}.json')
    units = json.loads((tmp_path / 'padded' / 'units.json').read_text())['units'].values()
    assert all(unit['keep'] % 4 == 0 for unit in units if unit['keep'] < unit['num_channels'])
    plain, padded = (json.loads((tmp_path / f'{name}.json').read_text()) for name in ('plain', 'padded'))
    assert padded['accuracy/top1'] == plain['accuracy/top1']
    report = json.loads((tmp_path / 'padded' / 'report.json').read_text())
    assert 'zero channels in' in report['padding'][0]
    smaller = json.loads((tmp_path / 'plain' / 'report.json').read_text())
    assert smaller['padding'] == [] and smaller['compact']['macs'] < report['compact']['macs'] < report['dense']['macs']
