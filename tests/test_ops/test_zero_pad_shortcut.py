"""ZeroPadShortcut against a reference that pads densely and then cuts channels out."""
import copy

import pytest
import torch
import torch.nn.functional as F

from mmprune_ext.ops import ZeroPadShortcut


def dense_reference(x: torch.Tensor, out_channels: int, stride: int) -> torch.Tensor:
    """The shortcut written as loops over channels."""
    batch, in_channels = x.shape[:2]
    small = x[:, :, ::stride, ::stride]
    out = x.new_zeros(batch, out_channels, *small.shape[2:])
    for channel in range(in_channels):
        out[:, channel + (out_channels - in_channels) // 2] = small[:, channel]
    return out


def pruned_reference(x: torch.Tensor, out_channels: int, stride: int, in_keep: torch.Tensor,
                     out_keep: torch.Tensor) -> torch.Tensor:
    """The dense shortcut of an input whose removed channels are zero, at the kept outputs."""
    masked = torch.zeros_like(x)
    masked[:, in_keep] = x[:, in_keep]
    return dense_reference(masked, out_channels, stride)[:, out_keep]


def random_keep(channels: int) -> torch.Tensor:
    return torch.randperm(channels)[:int(torch.randint(1, channels + 1, ()))].sort().values


@pytest.mark.parametrize(('inside', 'outside', 'stride', 'size'),
                         [(16, 32, 2, 8), (3, 8, 1, 5), (4, 4, 2, 7), (5, 8, 3, 7)])
def test_dense_equals_loops_and_the_usual_formula(inside, outside, stride, size):
    x = torch.randn(2, inside, size, size)
    out = ZeroPadShortcut(inside, outside, stride)(x)
    assert torch.equal(out, dense_reference(x, outside, stride))
    if (outside - inside) % 2 == 0:
        pad = (outside - inside) // 2
        assert torch.equal(out, F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, pad, pad)))


@pytest.mark.parametrize('seed', range(20))
def test_random_keeps_equal_the_masked_dense_shortcut(seed):
    torch.manual_seed(seed)
    x = torch.randn(2, 16, 6, 6)
    in_keep, out_keep = random_keep(16), random_keep(32)
    layer = ZeroPadShortcut(16, 32, 2)
    layer.prune(in_keep, out_keep)
    out = layer(x[:, in_keep])
    assert torch.equal(out, pruned_reference(x, 32, 2, in_keep, out_keep))
    assert (layer.in_channels, layer.out_channels) == (len(in_keep), len(out_keep))


def test_inputs_and_outputs_are_independent():
    layer = ZeroPadShortcut(2, 4)  # outputs: zero, input 0, input 1, zero
    layer.prune(torch.tensor([1]), torch.tensor([0, 1, 2]))
    assert layer.sources == (-1, -1, 0)
    assert layer(torch.full((1, 1, 1, 1), 7.)).flatten().tolist() == [0, 0, 7]


def test_no_connection_left_gives_zeros():
    layer = ZeroPadShortcut(2, 4)
    layer.prune(torch.tensor([0]), torch.tensor([2, 3]))
    assert torch.equal(layer(torch.ones(1, 1, 2, 2)), torch.zeros(1, 2, 2, 2))


def test_pruning_twice_composes():
    torch.manual_seed(0)
    x = torch.randn(1, 8, 4, 4)
    first = (torch.tensor([0, 2, 3, 6, 7]), torch.tensor([1, 4, 5, 6, 9, 10, 11, 15]))
    second = (torch.tensor([1, 2, 4]), torch.tensor([0, 3, 5, 6]))
    twice, once = ZeroPadShortcut(8, 16), ZeroPadShortcut(8, 16)
    twice.prune(*first)
    twice.prune(*second)
    in_keep, out_keep = (a[b] for a, b in zip(first, second, strict=True))
    once.prune(in_keep, out_keep)
    assert twice.sources == once.sources
    assert torch.equal(twice(x[:, in_keep]), pruned_reference(x, 16, 1, in_keep, out_keep))


@pytest.mark.parametrize('pruned', [False, True])
def test_copy_trace_gradient_and_state(pruned):
    layer = ZeroPadShortcut(4, 8, 2)
    if pruned:
        layer.prune(torch.tensor([0, 1, 3]), torch.tensor([0, 2, 3, 5]))
    x = torch.randn(2, layer.in_channels, 6, 6, requires_grad=True)
    out = layer(x)
    assert torch.equal(copy.deepcopy(layer)(x), out)
    traced = torch.jit.trace(layer, x.detach())
    other = torch.randn(3, layer.in_channels, 4, 4)  # another size than the traced one
    assert torch.equal(traced(other), layer(other))
    out.sum().backward()
    expected = torch.zeros_like(x)
    reached = [source for source in layer.sources if source != -1]
    expected[:, reached, ::2, ::2] = 1
    assert torch.equal(x.grad, expected)
    assert layer.state_dict() == {}
    assert not list(layer.parameters())


def test_buffer_follows_the_device():
    layer = ZeroPadShortcut(4, 8).to('meta')
    layer.prune(torch.tensor([0, 2]), torch.tensor([2, 4]))
    assert layer(torch.empty(1, 2, 3, 3, device='meta')).shape == (1, 2, 3, 3)
    assert {buffer.device.type for buffer in layer.buffers()} == {'meta'}


def test_repr_names_sizes():
    layer = ZeroPadShortcut(4, 8, 2)
    layer.prune(torch.tensor([0, 2]), torch.tensor([0, 2]))
    assert repr(layer) == 'ZeroPadShortcut(2, 2, stride=2, connected=1)'


@pytest.mark.parametrize(('in_keep', 'out_keep', 'name'), [
    ([], [0], 'in_keep'), ([0], [], 'out_keep'), ([0, 4], [0], 'in_keep'),
    ([0], [8], 'out_keep'), ([1, 0], [0], 'in_keep'), ([0], [2, 2], 'out_keep'),
    ([-1], [0], 'in_keep'),
])
def test_bad_keeps_change_nothing(in_keep, out_keep, name):
    layer = ZeroPadShortcut(4, 8)
    before = layer.sources
    with pytest.raises(ValueError, match=rf'{name} must be ascending channel indices in \[0, '):
        layer.prune(torch.tensor(in_keep, dtype=torch.long),
                    torch.tensor(out_keep, dtype=torch.long))
    assert (layer.in_channels, layer.sources) == (4, before)


@pytest.mark.parametrize('sizes', [(4, 3, 1), (0, 3, 1), (4, 8, 0)])
def test_bad_sizes(sizes):
    with pytest.raises(ValueError, match='1 <= in_channels <= out_channels and stride >= 1'):
        ZeroPadShortcut(*sizes)
