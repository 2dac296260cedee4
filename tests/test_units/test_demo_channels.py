"""Demo images have the channels that a model's first layer reads."""
import pytest
import torch
from mmengine.registry import MODELS
from torch import nn
from torch.nn import functional as F

from mmprune_ext.units import trace_units
from mmprune_ext.units.demo_inputs import image_shape
from tests.in_process import run_tool
from tests.test_units.test_task_models import task_config

CHANNELS = (1, 4, 5, 12)
TASKS = {
    'mmpretrain': 'resnet/resnet18_8xb32_in1k.py',
    'mmdet': 'retinanet/retinanet_r18_fpn_1x_coco.py',
    'mmseg': 'bisenetv2/bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024.py',
    'mmpose': 'body_2d_keypoint/rtmpose/coco/rtmpose-t_8xb256-420e_coco-256x192.py'}


class OfParts(nn.Module):
    """The head comes first, a layer of words second; what reads the image makes several channels of each before."""

    def __init__(self, channels: int, first: str) -> None:
        super().__init__()
        self.head, self.words = nn.Conv2d(6, 2, 1), nn.Embedding(4, 6)
        self.stem = {'convolution': nn.Conv2d(channels, 6, 3, groups=channels if channels == 1 else 1),
                     'transposed': nn.ConvTranspose2d(channels, 6, 2), 'focus': nn.Conv2d(4 * channels, 6, 3),
                     'patches': nn.Linear(16 * channels, 6), 'own': nn.Conv2d(channels, 6, 3)}[first]
        self.first = first

    def forward(self, x):
        if self.first == 'focus':
            x = torch.cat([x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)], 1)
        if self.first == 'patches':
            x = F.unfold(x, 4, stride=4).transpose(1, 2)
            return self.head(self.stem(x).transpose(1, 2)[..., None])
        own = F.conv2d(x, self.stem.weight * 2, self.stem.bias) if self.first == 'own' else self.stem(x)
        return self.head(own.relu() + self.words.weight[0].view(-1, 1, 1))


@pytest.mark.parametrize('channels', (*CHANNELS, 3))
@pytest.mark.parametrize('first', ['convolution', 'transposed', 'focus', 'patches', 'own'])
def test_channels_that_the_first_layer_reads(first, channels):
    model = OfParts(channels, first).train()
    assert image_shape(model, (16, 24)) == (channels, 16, 24)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(('library', 'channels'), [
    pytest.param(library, channels, marks=[] if i == j else pytest.mark.e2e)
    for i, library in enumerate(TASKS) for j, channels in enumerate(CHANNELS)])
def test_backbones_of_the_four_tasks(library, channels):
    config = task_config(library, TASKS[library])
    config.backbone.update(init_cfg=None, **({} if library == 'mmpose' else {'in_channels': channels}))
    config.data_preprocessor.update(mean=None, std=None)
    config.data_preprocessor['to_rgb' if library == 'mmpretrain' else 'bgr_to_rgb'] = False
    model = MODELS.build(config)
    if library == 'mmpose':  # CSPNeXt has no argument for it
        stem = model.backbone.stem[0].conv
        stem.weight = nn.Parameter(torch.zeros(stem.out_channels, channels, 3, 3))
        stem.in_channels = channels
    assert image_shape(model, (64, 64))[0] == channels


def test_values_of_a_preprocessor_do_not_count():
    """One mean for the three channels of an image, and three means that a backbone of four does not care for."""
    model = nn.Module()
    model.backbone, model.data_preprocessor = nn.Conv2d(4, 2, 1), nn.Module()
    model.data_preprocessor.mean = torch.zeros(1, 1, 1)
    model.forward = lambda inputs, data_samples, mode: None
    assert image_shape(model) == (4, 224, 224)


class NeedsWords(nn.Module):
    """Does not run on an image alone: what its preprocessor states is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(5, 2, 1)

    def forward(self, x, words):
        return self.conv(x) + words


def test_what_does_not_run_on_an_image():
    assert image_shape(NeedsWords(), (8, 8)) == (5, 8, 8)


def test_traces_five_channels():
    units = trace_units(OfParts(5, 'own'), (16, 16))
    assert units


@pytest.mark.e2e
@pytest.mark.parametrize('tool', ['get_channel_units', 'get_flops'])
def test_tools_on_five_channels(tool, capsys):
    run_tool(tool, 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py', '--cfg-options', 'model.backbone.in_channels=5',
             'model.backbone.init_cfg=None', 'model.data_preprocessor.mean=None', 'model.data_preprocessor.std=None',
             'model.data_preprocessor.bgr_to_rgb=False')
    out = capsys.readouterr().out
    assert {'get_channel_units': 'backbone.layer1.0.conv1', 'get_flops': '5 x'}[tool] in out, out
