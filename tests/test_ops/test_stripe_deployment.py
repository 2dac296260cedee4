"""What else is asked of the convolution that has lost stripes: mixed precision, averages, memory, exporters."""
from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from mmprune_ext.ops import StripeConv2d
from tests.test_ops.stripes import FORMS, images, make, rows_of


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('training', [True, False])
def test_mixed_precision(form, training):
    conv, keep, layer = make('3x3', form)
    layer.train(training)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        with torch.set_grad_enabled(training):
            output = layer(images())
        expected = conv(images())
    assert output.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(output, expected, atol=0.04, rtol=0.04)
    if training:
        output.float().square().sum().backward()
        expected.float().square().sum().backward()
        torch.testing.assert_close(layer.weight.grad, rows_of(conv.weight.grad, keep), atol=0.5, rtol=0.1)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('optimizer', [
    lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.1)], ids=['sgd', 'adamw'])
@pytest.mark.parametrize('update_buffers', [False, True])
def test_stripes_that_are_gone_stay_gone(form, optimizer, update_buffers):
    _, keep, layer = make('3x3', form)
    start = layer.to_conv().weight
    average = ExponentialMovingAverage(layer, momentum=0.5, update_buffers=update_buffers)
    stepper = optimizer(layer.parameters())
    for _ in range(3):
        stepper.zero_grad()
        layer(images()).square().mean().backward()
        stepper.step()
        average.update_parameters(layer)
    for trained in (layer, average.module):
        weight = trained.to_conv().weight
        assert torch.equal((weight != 0).any(1), keep)
        assert not torch.isclose(weight, start)[keep[:, None].expand_as(weight)].any()
    with torch.no_grad():  # what the average computes is made of what it learned
        torch.testing.assert_close(average.eval()(images()), average.module.to_conv()(images()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('form', FORMS)
def test_every_parameter_gets_a_gradient(form):
    layer = make('dilated beyond the map', form)[2]
    layer(images(1, 1, 1)).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


def peak_bytes(layer: nn.Module, x: Tensor) -> int:
    """Return the most bytes that a forward pass has allocated at any moment."""
    with torch.no_grad():
        layer(x)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            layer(x)
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == '[memory]']
    events.sort(key=lambda event: event.start_ns())
    return max(np.cumsum([event.nbytes() for event in events]))


@pytest.mark.parametrize('density', [0.25, 0.5, 1.0])
@pytest.mark.parametrize(('batch', 'channels', 'size', 'sizes'), [
    (1, (16, 16), 32, dict(kernel_size=3, padding=1)),
    (8, (16, 16), 32, dict(kernel_size=3, padding=1)),
    (8, (64, 64), 4, dict(kernel_size=3, padding=1)),
    (2, (64, 128), 16, dict(kernel_size=3, padding=1, stride=2)),
    (1, (3, 64), 32, dict(kernel_size=3)),
    (1, (64, 16), 16, dict(kernel_size=5, padding=2)),
    (2, (16, 64), 9, dict(kernel_size=7)),
    (1, (64, 64), 12, dict(kernel_size=3)),
])
def test_memory_is_at_most_twice_that_of_the_dense_convolution(batch, channels, size, sizes, density):
    conv = nn.Conv2d(*channels, **sizes, bias=False)
    keep = torch.rand(channels[1], *conv.kernel_size, generator=torch.Generator().manual_seed(0)) <= density
    x = images(batch, size, size, channels=channels[0])
    dense = x.nbytes + conv(x).nbytes
    layer = StripeConv2d.from_conv(conv, keep, 'stripes').eval()
    assert x.nbytes + peak_bytes(layer, x) <= 2 * dense


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('kind', ['3x3', 'stride 2', 'dilated beyond the map', 'reflect', 'same, even'])
def test_export(kind, form):
    conv, _, layer = make(kind, form)
    layer.eval()
    program = torch.export.export(layer, (images(),))
    torch.testing.assert_close(program.module()(images()), conv(images()), atol=1e-5, rtol=1e-5)
    sizes = dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)
    program = torch.export.export(layer, (images(3, 14, 15),), dynamic_shapes=(sizes,))
    for x in (images(5, 21, 18), images(3, 15, 16)):
        torch.testing.assert_close(program.module()(x), conv(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('kind', ['3x3', 'stride 2'])
def test_compile(kind, form):
    conv, keep, layer = make(kind, form, dtype=torch.float64)
    torch.compiler.reset()
    compiled = torch.compile(layer, backend='aot_eager', fullgraph=True)
    x = images(dtype=torch.float64)
    conv(x).sin().sum().backward()
    for training in (False, True):
        layer.train(training)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), conv(x))
        layer.zero_grad()
        compiled(x).sin().sum().backward()
        torch.testing.assert_close(layer.weight.grad, rows_of(conv.weight.grad, keep))
    layer.eval()
    with torch.no_grad():
        before = compiled(x)
        layer.load_state_dict({key: 2 * value for key, value in layer.state_dict().items()})
        torch.testing.assert_close(compiled(x), 2 * before)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('kind', ['3x3', 'stride 2', 'reflect'])
def test_onnx(kind, form):
    pytest.importorskip('onnxscript')
    onnxruntime = pytest.importorskip('onnxruntime')
    conv, _, layer = make(kind, form)
    layer.eval()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        program = torch.onnx.export(layer, (images(2),), dynamo=True, verbose=False,
                                    dynamic_shapes=(dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC),))
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    for x in (images(), images(1, 13, 15)):
        output, = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(output), conv(x), atol=1e-5, rtol=1e-5)
