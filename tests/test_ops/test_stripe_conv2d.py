"""The convolution that has lost stripes, against the dense convolution whose weight is masked."""
from __future__ import annotations

import copy
import io
import itertools
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile

from mmprune_ext.ops import StripeConv2d
from tests.test_ops.stripes import CONVS, FORMS, IN, OUT, images, make, masked, rows_of


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
@pytest.mark.parametrize('training', [True, False])
def test_frozen_weights_pass_gradients_on(form, training):
    conv, _, layer = make('3x3', form)
    with torch.inference_mode():  # whose tensors can be in no graph with gradients
        layer.train(training)
        layer(images())
    layer.requires_grad_(False)
    x, own = (images().requires_grad_() for _ in range(2))
    conv(x).sin().sum().backward()
    layer(own).sin().sum().backward()
    torch.testing.assert_close(own.grad, x.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('size', [(1, 1), (2, 2), (4, 4), (7, 7), (1, 9)])
def test_small_maps(size, form):
    conv, _, layer = make('3x3', form)
    for batch in (1, 2, 8):
        with torch.no_grad():
            torch.testing.assert_close(layer.eval()(images(batch, *size)), conv(images(batch, *size)), atol=1e-5,
                                       rtol=1e-5, check_stride=True)


@pytest.mark.parametrize(('batch', 'size', 'columns'), [(8, 4, {8 * 16}), (8, 16, {16 * 16}), (1, 4, {16})])
def test_images_of_small_maps_share_one_product(batch, size, columns):
    layer = make('3x3')[2].eval()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled, torch.no_grad():
        layer(images(batch, size, size))
    products = [event.input_shapes[1] for event in profiled.events() if event.name == 'aten::matmul']
    assert {shape[-1] for shape in products} == columns


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
            output = layer.train(training)(images())
        torch.testing.assert_close(output, masked(conv, keep)(images()), atol=1e-5, rtol=1e-5)
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
@pytest.mark.parametrize('other_form', FORMS)
def test_a_state_dict_serves_both_forms(form, other_form):
    conv, keep, layer = make('even', form)
    state = layer.state_dict()
    assert list(state) == ['weight', 'bias']
    assert torch.equal(state['weight'], rows_of(conv.weight, keep))
    other = StripeConv2d.from_conv(nn.Conv2d(IN, OUT, **CONVS['even']), keep, other_form).eval()
    with torch.no_grad():
        other(images())
        other.load_state_dict(state)
        torch.testing.assert_close(other(images()), conv(images()), atol=1e-5, rtol=1e-5)


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
            output = layer(x)
        torch.testing.assert_close(output, F.conv2d(x, weight, conv.bias[outputs], padding=1), atol=1e-5, rtol=1e-5)


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
        size = len(pickle.dumps(layer))
        expected = layer(images())
        assert len(pickle.dumps(layer)) == size
        other = copied(layer)
        assert torch.equal(other(images()), expected) and other.form == form
        other.weight.zero_()
        assert torch.equal(layer(images()), expected)
        assert not torch.equal(other(images()), expected)


@pytest.mark.parametrize('form', FORMS)
def test_types_and_flags_are_those_of_the_convolution(form):
    conv = nn.Conv2d(IN, OUT, 3, dtype=torch.float64).eval()
    conv.weight.requires_grad_(False)
    keep = torch.ones(OUT, 3, 3, dtype=torch.bool)
    layer = StripeConv2d.from_conv(conv, keep, form)
    keep.zero_()
    assert layer.keep.all()
    assert layer.weight.dtype == torch.float64 and not layer.training
    assert not layer.weight.requires_grad and layer.bias.requires_grad
    with torch.no_grad():
        layer(images(dtype=torch.float64))
        layer.to(torch.bfloat16)
        assert layer(images(dtype=torch.bfloat16)).dtype == torch.bfloat16
        layer.to('meta')
        assert layer(images(dtype=torch.bfloat16).to('meta')).device.type == 'meta'
    assert layer.keep.dtype == torch.bool


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


@pytest.mark.parametrize('form', ['dense', 'stripes'])
@pytest.mark.parametrize('density', [0.0, 0.4])
def test_no_image_and_a_bare_one(form, density):
    """As nn.Conv2d takes them: a detector may have no region."""
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, padding=1)
    keep = torch.rand(6, 3, 3) < density
    layer = StripeConv2d.from_conv(conv, keep, form).eval()
    with torch.no_grad():
        assert layer(torch.zeros(0, 4, 8, 7)).shape == (0, 6, 8, 7)
        image = torch.randn(4, 8, 7)
        torch.testing.assert_close(layer(image), layer.to_conv()(image), rtol=1e-5, atol=1e-5)
