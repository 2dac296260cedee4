"""The convolution that has lost stripes, against the dense convolution whose weight is masked."""
from __future__ import annotations

import copy
import io
import itertools
import pickle
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.model import ExponentialMovingAverage
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from mmprune_ext.ops import StripeConv2d

FORMS = ['dense', 'stripes']
CONVS = {
    '3x3': dict(kernel_size=3, padding=1),
    'no padding': dict(kernel_size=3),
    'wide padding': dict(kernel_size=3, padding=3),
    'no bias': dict(kernel_size=3, padding=1, bias=False),
    'stride 2': dict(kernel_size=3, padding=1, stride=2),
    'stride 3': dict(kernel_size=5, padding=2, stride=3),
    'strides': dict(kernel_size=3, padding=1, stride=(1, 2)),
    'dilated': dict(kernel_size=3, padding=2, dilation=2),
    'dilated beyond the map': dict(kernel_size=3, padding=12, dilation=12),
    'dilated stride 2': dict(kernel_size=3, padding=(3, 2), dilation=(3, 2), stride=2),
    '1x1': dict(kernel_size=1),
    '1x1 stride 2': dict(kernel_size=1, stride=2),
    '5x5': dict(kernel_size=5, padding=2),
    '7x7 stride 2': dict(kernel_size=7, padding=3, stride=2),
    '1x3': dict(kernel_size=(1, 3), padding=(0, 1)),
    'even': dict(kernel_size=(2, 4), padding=(1, 2)),
    'same': dict(kernel_size=3, padding='same', dilation=2),
    'same, even': dict(kernel_size=(4, 2), padding='same'),
    'valid': dict(kernel_size=(3, 2), padding='valid'),
    'reflect': dict(kernel_size=3, padding=1, padding_mode='reflect'),
    'replicate': dict(kernel_size=5, padding=(2, 1), padding_mode='replicate', stride=2),
    'circular': dict(kernel_size=3, padding='same', padding_mode='circular', dilation=2),
}
IN, OUT = 5, 12


def make(kind: str, form: str = 'stripes', density: float = 0.4, dtype: torch.dtype = torch.float32,
         seed: int = 0) -> tuple[nn.Conv2d, Tensor, StripeConv2d]:
    """Return a convolution whose weight is masked, the mask `(C_out, kH, kW)`, and the layer that has lost stripes."""
    torch.manual_seed(seed)
    conv = nn.Conv2d(IN, OUT, **CONVS[kind]).to(dtype)
    keep = torch.rand(OUT, *conv.kernel_size) < density
    keep[3] = False
    layer = StripeConv2d.from_conv(conv, keep, form)
    return masked(conv, keep), keep, layer


def masked(conv: nn.Conv2d, keep: Tensor) -> nn.Conv2d:
    conv = copy.deepcopy(conv)
    conv.weight.data.mul_(keep[:, None])
    return conv


def images(batch: int = 2, height: int = 9, width: int = 8, dtype: torch.dtype = torch.float32,
           channels: int = IN) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(batch, channels, height, width, generator=generator, dtype=torch.float64).to(dtype)


def rows_of(weight: Tensor, keep: Tensor) -> Tensor:
    """Return the stripes of a dense weight in the order of the state dict, by plain loops."""
    filters, height, width = keep.shape
    return torch.stack([weight[j, :, a, b] for a in range(height) for b in range(width) for j in range(filters)
                        if keep[j, a, b]])


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('kind', CONVS)
def test_it_equals_the_masked_convolution(kind, form):
    conv, _, layer = make(kind, form)
    for batch, (height, width), training, grad in itertools.product(
            [1, 8], [(9, 8), (13, 15)], [True, False], [True, False]):
        x = images(batch, height, width)
        layer.train(training)
        with torch.set_grad_enabled(grad):
            output = layer(x)
        torch.testing.assert_close(output, conv(x), atol=1e-5, rtol=1e-5, check_stride=True)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('keep', [
    [[1, 1, 1], [0, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 1, 0], [0, 0, 0]], [[0, 0, 1], [0, 0, 1], [0, 0, 0]],
    [[0, 1, 0], [0, 0, 0], [0, 1, 0]], [[0, 0, 0], [1, 1, 0], [1, 1, 0]],
], ids=str)
@pytest.mark.parametrize('sizes', [dict(padding=1), dict(padding=0, stride=2), dict(padding=(2, 0), dilation=2),
                                   dict(padding=2, stride=(2, 3)), dict(padding=1, padding_mode='reflect'),
                                   dict(padding='same')], ids=str)
def test_positions_without_stripes(keep, sizes, form):
    torch.manual_seed(0)
    conv = nn.Conv2d(IN, OUT, 3, **sizes)
    stripes = torch.tensor(keep, dtype=torch.bool).expand(OUT, 3, 3) & (torch.rand(OUT, 3, 3) < 0.7)
    layer = StripeConv2d.from_conv(conv, stripes, form).eval()
    for height, width, grad in itertools.product([5, 8, 9], [7, 10], [True, False]):
        x = images(2, height, width)
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(layer(x), masked(conv, stripes)(x), atol=1e-5, rtol=1e-5)


def test_dense_multiplies_no_position_that_lies_outside_all_stripes():
    keep = torch.zeros(OUT, 3, 3, dtype=torch.bool)
    keep[::2, 1] = True
    layer = StripeConv2d.from_conv(nn.Conv2d(IN, OUT, 3, padding=1), keep, 'dense').eval()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled, torch.no_grad():
        layer(images())
    shapes = [event.input_shapes[1] for event in profiled.events() if event.name == 'aten::conv2d']
    assert shapes == [[OUT, IN, 1, 3]]


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('kind', CONVS)
def test_gradients_are_those_of_the_masked_convolution(kind, form):
    conv, keep, layer = make(kind, form, dtype=torch.float64)
    for training in (True, False):
        x = images(dtype=torch.float64).requires_grad_()
        own = x.detach().clone().requires_grad_()
        conv.zero_grad()
        conv(x).sin().sum().backward()
        layer.train(training).zero_grad()
        layer(own).sin().sum().backward()
        torch.testing.assert_close(own.grad, x.grad)
        torch.testing.assert_close(layer.weight.grad, rows_of(conv.weight.grad, keep))
        if conv.bias is not None:
            torch.testing.assert_close(layer.bias.grad, conv.bias.grad)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('size', [(1, 1), (2, 2), (4, 4), (7, 7), (1, 9)])
def test_small_maps(size, form):
    conv, _, layer = make('3x3', form)
    for batch in (1, 2, 8):
        with torch.no_grad():
            torch.testing.assert_close(layer.eval()(images(batch, *size)), conv(images(batch, *size)), atol=1e-5,
                                       rtol=1e-5, check_stride=True)


@pytest.mark.parametrize('form', FORMS)
def test_channels_last(form):
    conv, _, layer = make('3x3', form)
    x = images(4, 13, 15).to(memory_format=torch.channels_last)
    with torch.no_grad():
        torch.testing.assert_close(layer.eval()(x), conv(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('case', ['none', 'none, no bias', 'one', 'one filter', 'all'])
def test_extreme_skeletons(case, form):
    torch.manual_seed(0)
    conv = nn.Conv2d(IN, OUT, 3, padding=1, stride=2, bias=case != 'none, no bias')
    keep = torch.zeros(OUT, 3, 3, dtype=torch.bool)
    if case == 'one':
        keep[4, 0, 2] = True
    elif case == 'one filter':
        keep[4] = True
    elif case == 'all':
        keep[:] = True
    layer = StripeConv2d.from_conv(conv, keep, form)
    assert layer.num_stripes == {'one': 1, 'one filter': 9, 'all': 9 * OUT}.get(case, 0)
    for training, grad in itertools.product([True, False], repeat=2):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(layer.train(training)(images()), masked(conv, keep)(images()), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(layer.to_conv()(images()), masked(conv, keep)(images()))
    if 'none' in case:
        assert layer.weight is None
        assert list(layer.state_dict()) == ([] if conv.bias is None else ['bias'])


@pytest.mark.parametrize('form', FORMS)
def test_layers_before_one_without_stripes_get_gradients_of_zeros(form):
    first = nn.Conv2d(IN, IN, 1)
    layer = StripeConv2d.from_conv(nn.Conv2d(IN, OUT, 3), torch.zeros(OUT, 3, 3, dtype=torch.bool), form)
    layer(first(images())).sum().backward()
    assert torch.equal(first.weight.grad, torch.zeros_like(first.weight))


@pytest.mark.parametrize('form', FORMS)
def test_state_dict(form):
    conv, keep, layer = make('even', form)
    state = layer.state_dict()
    assert list(state) == ['weight', 'bias']
    assert torch.equal(state['weight'], rows_of(conv.weight, keep))
    for other_form in FORMS:
        other = make('even', other_form, seed=1)[2]
        wanted = StripeConv2d.from_conv(conv, keep, other_form)
        other.eval()(images())
        other.keep.copy_(keep)
        same = StripeConv2d.from_conv(nn.Conv2d(IN, OUT, **CONVS['even']), keep, other_form).eval()
        with torch.no_grad():
            same(images())
            same.load_state_dict(state)
            torch.testing.assert_close(same(images()), wanted(images()))


@pytest.mark.parametrize('form', FORMS)
def test_files_shrink_and_dense_weights_are_refused(form):
    conv = nn.Conv2d(64, 64, 3)
    keep = torch.rand(64, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.25
    layer = StripeConv2d.from_conv(conv, keep, form).eval()
    sizes = []
    for module in (conv, layer):
        buffer = io.BytesIO()
        torch.save(module.state_dict(), buffer)
        sizes.append(buffer.tell())
    assert sizes[1] < 0.3 * sizes[0]
    with pytest.raises(RuntimeError, match='size mismatch for weight'):
        layer.load_state_dict(conv.state_dict())


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('kind', ['even', 'no bias', 'reflect', '1x1', 'same, even'])
def test_to_conv(kind, form):
    conv, _, layer = make(kind, form, density=0.2)
    layer.weight.requires_grad_(False)
    plain = layer.eval().to_conv()
    assert type(plain) is nn.Conv2d and not plain.training and not plain.weight.requires_grad
    assert torch.equal(plain.weight, conv.weight) and str(plain) == str(conv)
    torch.testing.assert_close(plain(images()), conv(images()))
    with torch.no_grad():
        before = layer(images())
        plain.weight.zero_()
        if plain.bias is not None:
            plain.bias.fill_(3)
        assert torch.equal(layer(images()), before)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('in_keep', [None, [0, 3, 4]])
@pytest.mark.parametrize('out_keep', [None, [1, 2, 5, 11], [3]])
def test_slim(in_keep, out_keep, form):
    conv, keep, layer = make('3x3', form)
    layer.bias.requires_grad_(False)
    layer.eval()(images())
    places = [None if kept is None else torch.tensor(kept) for kept in (in_keep, out_keep)]
    layer.slim(*places)
    inputs, outputs = (range(size) if kept is None else kept for size, kept in zip((IN, OUT), (in_keep, out_keep)))
    inputs, outputs = list(inputs), list(outputs)
    assert (layer.in_channels, layer.out_channels) == (len(inputs), len(outputs))
    assert torch.equal(layer.keep, keep[outputs]) and layer.num_stripes == int(keep[outputs].sum())
    weight = conv.weight.detach()[outputs][:, inputs]
    if outputs != [3]:  # all of whose stripes are gone
        assert torch.equal(layer.weight, rows_of(weight, keep[outputs])) and layer.weight.requires_grad
    assert torch.equal(layer.bias, conv.bias[outputs]) and not layer.bias.requires_grad
    x = images(channels=len(inputs))
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(layer(x), F.conv2d(x, weight, conv.bias[outputs], padding=1), atol=1e-5, rtol=1e-5)


def test_slim_twice_and_in_another_order():
    conv, keep, layer = make('stride 2')
    layer.slim(None, torch.tensor([9, 0, 4, 5]))
    layer.slim(torch.tensor([1, 2]), torch.tensor([2, 1]))
    torch.testing.assert_close(layer.to_conv().weight, conv.weight[[4, 0]][:, [1, 2]])


def test_set_form_keeps_parameters():
    conv, _, layer = make('3x3', 'stripes')
    layer.eval()
    weight = layer.weight
    for form in ('dense', 'stripes', 'dense'):
        layer.set_form(form)
        assert layer.form == form and layer.weight is weight
        with torch.no_grad():
            torch.testing.assert_close(layer(images()), conv(images()), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="form should be one of dense, stripes, got 'sparse'"):
        layer.set_form('sparse')


def write_in_place(layer: StripeConv2d) -> None:
    with torch.no_grad():
        layer.weight.mul_(2)


def replace_data(layer: StripeConv2d) -> None:
    layer.weight.data = 2 * layer.weight.data


def replace_parameter(layer: StripeConv2d) -> None:
    layer.weight = nn.Parameter(2 * layer.weight.detach())


def load(layer: StripeConv2d) -> None:
    layer.load_state_dict({**layer.state_dict(), 'weight': 2 * layer.weight.detach()})


def step(layer: StripeConv2d) -> None:
    layer.weight.grad = -layer.weight.detach().clone()
    torch.optim.SGD([layer.weight], lr=1.0).step()


def swap(layer: StripeConv2d) -> None:
    layer.weight.data.mul_(2)  # as mmengine's EMAHook writes, before the mode is set for validation
    layer.eval()


@pytest.mark.parametrize('change', [write_in_place, replace_data, replace_parameter, load, step, swap],
                         ids=lambda f: f.__name__)
@pytest.mark.parametrize('form', FORMS)
def test_new_weights_count(form, change):
    conv, keep, layer = make('no bias', form)
    layer.eval()
    with torch.no_grad():
        layer(images())
        change(layer)
        torch.testing.assert_close(layer(images()), 2 * conv(images()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('copied', [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=['deepcopy', 'pickle'])
def test_copies_are_independent(form, copied):
    conv, _, layer = make('3x3', form)
    layer.eval()
    with torch.no_grad():
        expected = layer(images())
        other = copied(layer)
        assert torch.equal(other(images()), expected) and other.form == form
        other.weight.zero_()
        assert torch.equal(layer(images()), expected)
        assert not torch.equal(other(images()), expected)


@pytest.mark.parametrize('form', FORMS)
def test_types_and_flags_are_those_of_the_convolution(form):
    conv = nn.Conv2d(IN, OUT, 3, dtype=torch.float64).eval()
    conv.weight.requires_grad_(False)
    layer = StripeConv2d.from_conv(conv, torch.ones(OUT, 3, 3, dtype=torch.bool), form)
    assert layer.weight.dtype == torch.float64 and not layer.training
    assert not layer.weight.requires_grad and layer.bias.requires_grad
    with torch.no_grad():
        layer(images(dtype=torch.float64))
        layer.to(torch.bfloat16)
        assert layer(images(dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert layer.keep.dtype == torch.bool


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


def test_what_it_does_not_take():
    conv = nn.Conv2d(4, 8, 3)
    with pytest.raises(ValueError, match='groups=1'):
        StripeConv2d.from_conv(nn.Conv2d(4, 8, 3, groups=2), torch.ones(8, 3, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r'keep should be bool \(8, 3, 3\), got torch.bool \(8, 1, 3\)'):
        StripeConv2d.from_conv(conv, torch.ones(8, 1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match='got torch.float32'):
        StripeConv2d.from_conv(conv, torch.ones(8, 3, 3))
    with pytest.raises(ValueError, match='form should be one of'):
        StripeConv2d.from_conv(conv, torch.ones(8, 3, 3, dtype=torch.bool), 'best')


def test_repr_tells_stripes_and_form():
    text = str(make('dilated stride 2', 'dense')[2])
    assert 'stride=(2, 2), padding=(3, 2), dilation=(3, 2)' in text
    assert f'stripes={int(make("dilated stride 2")[1].sum())}/{9 * OUT}, form=dense' in text
