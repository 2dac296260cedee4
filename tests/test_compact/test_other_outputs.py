"""A compact folder's model with another number of classes: a head that starts anew, and a warning."""
import copy

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import nn
from torch.nn import functional as F

from mmprune_ext.compact import CompactModel
from mmprune_ext.errors import CheckpointError, UnitFileError
from mmprune_ext.units import slim, trace_units


@MODELS.register_module()
class OfKinds(BaseModule):
    """A backbone that holds an attention layer, a layer that never runs, or a recurrent layer."""

    def __init__(self, kind: str, classes: int = 6, width: int = 8) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.a, self.backbone.b = nn.Conv2d(3, width, 3), nn.Conv2d(width, 12, 3)
        self.backbone.c = {'attention': lambda: nn.MultiheadAttention(12, 2, batch_first=True),
                           'idle': lambda: nn.Linear(12, 12),
                           'encoder': lambda: nn.TransformerEncoderLayer(12, 2, 16, batch_first=True),
                           'recurrent': lambda: nn.GRU(12, 12, batch_first=True)}[kind]()
        self.kind, self.head = kind, nn.Linear(12, classes)

    def forward(self, x):
        x = self.backbone.b(F.relu(self.backbone.a(x))).flatten(2).transpose(1, 2)
        if self.kind == 'attention':
            x = self.backbone.c(x, x, x)[0]
        elif self.kind == 'recurrent':
            x = self.backbone.c(x)[0]
        elif self.kind == 'encoder':
            x = self.backbone.c(x)
        return self.head(x.mean(1))


KINDS = ('attention', 'encoder', 'idle', 'recurrent')


@pytest.fixture(params=KINDS)
def folder(request, tmp_path):
    """Return the config of a compact model and its weights, of six classes."""
    config = dict(type='OfKinds', kind=request.param)
    model = MODELS.build(copy.deepcopy(config))
    units = trace_units(model, (8, 8))
    units['backbone.a'].choose(range(5))
    torch.save(dict(state_dict=slim(model, units).state_dict()), tmp_path / 'compact.pth')
    return dict(architecture=config, units=units.to_json(),
                init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'compact.pth')))


def test_a_fresh_head_and_a_warning(folder, caplog):
    MMLogger.get_instance('other_outputs').addHandler(caplog.handler)
    config = copy.deepcopy(folder)
    config['architecture']['classes'] = 4
    model = CompactModel(**config)
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 4)
    stored = torch.load(folder['init_cfg']['checkpoint'], weights_only=False)['state_dict']
    assert all(torch.equal(value, stored[name]) for name, value in model.state_dict().items() if 'head' not in name)
    assert '2 tensors of the outputs start anew' in caplog.text
    config['init_cfg']['strict'] = True
    with pytest.raises(CheckpointError, match=r'other shapes: head\.weight has shape \(6, 12\), the model \(4, 12\)'):
        CompactModel(**config)


def test_another_network_is_still_refused(folder):
    config = copy.deepcopy(folder)
    config['architecture'].update(classes=4, width=10)
    with pytest.raises(UnitFileError, match=r'backbone\.a'):
        CompactModel(**config)


def test_a_layer_that_the_file_does_not_know(folder, monkeypatch):
    """One more in the backbone, of a network that has other outputs too: what to do is said."""
    build = OfKinds.__init__

    def with_more(self, *args, **kwargs):
        build(self, *args, **kwargs)
        self.backbone.d = nn.Conv2d(12, 12, 1)
    monkeypatch.setattr(OfKinds, '__init__', with_more)
    config = copy.deepcopy(folder)
    config['architecture']['classes'] = 4
    with pytest.raises(UnitFileError, match=r'does not describe layer "backbone\.\w".*replace its last layers'):
        CompactModel(**config)
