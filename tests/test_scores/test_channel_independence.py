"""Channel independence against its definition, closed forms and the facts that follow from it."""
from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmprune_ext.errors import PruningError
from mmprune_ext.scores import channel_independence

# Asked for are 1e-4 and promised 2e-5; this also sees what the nodes beyond the spectrum are worth.
RELATIVE = 2e-6


def definition(image: Tensor, channels: list[int] | None = None) -> Tensor:
    """The nuclear norm of an image (C, ...) less that without each channel, by singular values."""
    rows = image.double().flatten(1)
    whole = torch.linalg.svdvals(rows).sum()
    values = []
    for channel in range(len(rows)) if channels is None else channels:
        masked = rows.clone()
        masked[channel] = 0
        values.append(whole - torch.linalg.svdvals(masked).sum())
    return torch.stack(values)


def assert_agrees(scores: Tensor, image: Tensor, channels: list[int] | None = None) -> None:
    """Compare the scores (C,) of an image with the definition, and the rankings of the two."""
    expected = definition(image, channels)
    found = scores if channels is None else scores[channels]
    # The definition subtracts norms: what is below this is its own rounding error.
    rounding = 1e-12 * torch.linalg.matrix_norm(image.double().flatten(1), 'nuc')
    assert ((found - expected).abs() <= RELATIVE * expected.abs() + rounding).all()
    order = expected.argsort()
    clear = expected[order].diff() > 2 * RELATIVE * expected[order][1:].abs() + 2 * rounding
    assert (found[order].diff()[clear] > 0).all()


def draw(kind: str, *shape: int) -> Tensor:
    """Random feature maps (N, C, L), float32."""
    generator = torch.Generator().manual_seed(sum(shape))
    images, channels, pixels = shape
    maps = torch.randn(shape, generator=generator)
    if kind == 'sparse':
        return (maps - 1.5).relu()
    if kind == 'low rank':
        rank = max(1, min(channels, pixels) // 4)
        return (maps[:, :, :rank] @ torch.randn(images, rank, pixels, generator=generator)).relu()
    if kind == 'correlated':
        return maps * 0.05 + torch.randn(images, 1, pixels, generator=generator)
    if kind == 'graded':
        return maps * torch.logspace(0, -7, channels)[:, None]
    return maps


@pytest.mark.parametrize('kind', ['normal', 'sparse', 'low rank', 'correlated', 'graded'])
@pytest.mark.parametrize('channels, pixels', [
    (1, 1), (1, 9), (16, 1), (2, 2), (16, 16), (16, 100), (48, 16), (63, 64), (64, 63)])
def test_agrees_with_the_definition(kind, channels, pixels):
    maps = draw(kind, 3, channels, pixels)
    for image, scores in zip(maps, channel_independence(maps)):
        assert_agrees(scores, image)


@pytest.mark.parametrize('channels, pixels', [
    (16, 3136), (64, 3136), (256, 3136), (512, 784), (1024, 196), (2048, 49), (2048, 196), (2048, 1)])
@pytest.mark.parametrize('kind', ['normal', 'sparse'])
def test_agrees_on_the_sizes_of_real_layers(kind, channels, pixels):
    maps = draw(kind, 1, channels, pixels)
    picked = torch.linspace(0, channels - 1, 4).long().tolist()
    assert_agrees(channel_independence(maps)[0], maps[0], picked)


def activations(model: nn.Module, images: Tensor) -> list[Tensor]:
    """The result of every call of a ReLU."""
    found: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda _, __, output: found.append(output.clone()))
    with torch.no_grad():
        model.eval()(images)
    return found


def test_agrees_on_feature_maps_of_a_trained_network(tiny_config, dense_checkpoint):
    from mmengine.registry import MODELS
    from mmengine.runner import load_checkpoint
    model = MODELS.build(tiny_config().model)
    load_checkpoint(model, str(dense_checkpoint), map_location='cpu')
    maps = activations(model, torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert len(maps) > 3
    for feature_map in maps:
        for image, scores in zip(feature_map, channel_independence(feature_map)):
            assert_agrees(scores, image)


@pytest.mark.parametrize('depth, channels, size', [(18, 4, 64), (50, 2, 96)])
def test_agrees_on_feature_maps_of_resnets(classifier, depth, channels, size):
    model = classifier({'type': 'ResNet', 'depth': depth}, 512 if depth == 18 else 2048)
    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    maps = activations(model, images)
    assert len(maps) == {18: 17, 50: 49}[depth]
    for feature_map in maps:
        picked = torch.linspace(0, feature_map.shape[1] - 1, channels).long().tolist()
        assert_agrees(channel_independence(feature_map)[0], feature_map[0], picked)


class TestClosedForms:
    def test_one_channel_has_its_norm(self):
        maps = draw('normal', 2, 1, 30)
        torch.testing.assert_close(channel_independence(maps), maps.double().norm(dim=2),
                                   rtol=RELATIVE, atol=0)

    def test_orthogonal_channels_have_their_norms(self):
        # The last is 1e-9 of the first: its eigenvalue is lost in the rounding of a Gram matrix.
        norms = torch.tensor([1.0, 1e-3, 1e-6, 1e-9], dtype=torch.float64)
        rows = torch.linalg.qr(draw('normal', 1, 12, 4)[0].double()).Q.T * norms[:, None]
        for maps in (rows, torch.cat([rows, rows.new_zeros(10, 12)])):
            assert channel_independence(maps[None])[0, :4].tolist() == pytest.approx(
                norms.tolist(), rel=RELATIVE)

    def test_one_pixel(self):
        maps = torch.tensor([3.0, -1.0, 0.0, 0.5]).reshape(1, 4, 1, 1)
        squares = [9.0, 1.0, 0.0, 0.25]
        expected = [math.sqrt(10.25) - math.sqrt(10.25 - square) for square in squares]
        assert channel_independence(maps)[0].tolist() == pytest.approx(expected, rel=RELATIVE)
        assert channel_independence(maps[:, :, 0, 0])[0].tolist() == pytest.approx(expected, rel=RELATIVE)

    @pytest.mark.parametrize('pixels', [3, 40])
    def test_constant_channels_share_one_direction(self, pixels):
        maps = torch.tensor([1.0, 2.0, -4.0, 0.0, 8.0])[None, :, None].expand(1, 5, pixels)
        expected = [math.sqrt(85 * pixels) - math.sqrt((85 - v) * pixels) for v in (1, 4, 16, 0, 64)]
        assert channel_independence(maps)[0].tolist() == pytest.approx(expected, rel=RELATIVE)

    def test_a_copy_leaves_each_a_part_of_the_norm(self):
        rows = torch.zeros(3, 8)
        rows[0, 0] = rows[1, 0] = 2.0
        rows[2, 5] = 3.0
        part = 2 * (math.sqrt(2) - 1)
        assert channel_independence(rows[None])[0].tolist() == pytest.approx(
            [part, part, 3.0], rel=RELATIVE)

    def test_a_weak_copy(self):
        maps = torch.ones(1, 2, 30, dtype=torch.float64)
        maps[:, 1] *= 1e-5
        # sqrt(1 + e ** 2) - 1 = e ** 2 / 2, which is what is left after ten digits cancelled.
        expected = math.sqrt(30) * 1e-10 / 2
        assert channel_independence(maps)[0, 1].item() == pytest.approx(expected, rel=1e-4)

    def test_a_weak_copy_with_a_little_of_its_own(self):
        # A Gram matrix shows the copy but not the 1e-9 beside it, which is a third as important.
        copied, own = 1e-4, 1e-9
        maps = torch.tensor([[[1.0, 0.0], [copied, own]]], dtype=torch.float64)
        expected = math.expm1(math.log1p(copied ** 2 + own ** 2 + 2 * own) / 2)
        assert channel_independence(maps)[0, 1].item() == pytest.approx(expected, rel=1e-4)


class TestDegenerateInput:
    @pytest.mark.parametrize('shape', [(2, 3, 4, 5), (2, 5, 3), (2, 4)])
    def test_zeros(self, shape):
        assert channel_independence(torch.zeros(shape)).tolist() == [[0.0] * shape[1]] * 2

    @pytest.mark.parametrize('channels, pixels', [(8, 20), (20, 8)])
    def test_channels_of_zeros_have_none_and_change_nothing(self, channels, pixels):
        maps = draw('normal', 2, channels, pixels)
        padded = torch.cat([torch.zeros(2, 3, pixels), maps, torch.zeros(2, 9, pixels)], 1)
        scores = channel_independence(padded)
        assert scores[:, :3].count_nonzero() == scores[:, -9:].count_nonzero() == 0
        torch.testing.assert_close(scores[:, 3:-9], channel_independence(maps), rtol=RELATIVE, atol=0)

    @pytest.mark.parametrize('shape', [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4)])
    def test_empty(self, shape):
        assert channel_independence(torch.zeros(shape)).tolist() == torch.zeros(shape[:2]).tolist()

    @pytest.mark.parametrize('dtype, scale', [
        (torch.float32, 1e-20), (torch.float32, 1e20), (torch.float32, 1e38), (torch.float64, 1e-300),
        (torch.float64, 1e300), (torch.bfloat16, 1e-20), (torch.float16, 1.0), (torch.float64, 1.0)])
    def test_types_and_magnitudes(self, dtype, scale):
        maps = draw('sparse', 2, 12, 30).clamp(max=3).double()
        maps = (maps * scale).to(dtype)
        expected = channel_independence(maps.double() / scale)
        scores = channel_independence(maps)
        assert scores.dtype == torch.float64
        torch.testing.assert_close(scores / scale, expected, rtol=RELATIVE, atol=0)

    def test_integers(self):
        maps = torch.arange(24, dtype=torch.uint8).reshape(1, 4, 6)
        assert_agrees(channel_independence(maps)[0], maps[0])

    @pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
    @pytest.mark.parametrize('memory_bound', [1, 2 ** 28])
    def test_values_that_are_not_finite_are_named(self, value, memory_bound):
        maps = torch.ones(5, 3, 2, 2)
        maps[2, 1, 0, 1] = maps[4, 0, 1, 1] = value
        with pytest.raises(PruningError, match=r'image 2 of a batch of shape \(5, 3, 4\).* NaN or infinity'):
            channel_independence(maps.flatten(2), memory_bound)

    def test_what_is_no_feature_map(self):
        with pytest.raises(PruningError, match=r'but got \(7,\)'):
            channel_independence(torch.ones(7))
        with pytest.raises(PruningError, match='complex'):
            channel_independence(torch.ones(1, 2, 3, dtype=torch.complex64))

    def test_input_is_not_changed(self):
        maps = draw('normal', 2, 6, 9).double().requires_grad_()
        before = maps.detach().clone()
        assert not channel_independence(maps).requires_grad
        assert torch.equal(maps, before)

    def test_memory_layout_makes_no_difference(self):
        maps = draw('normal', 2, 6, 12).reshape(2, 6, 3, 4)
        strided = maps.contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(channel_independence(strided), channel_independence(maps), rtol=1e-9, atol=0)


class TestFacts:
    """What holds for every feature map; the last two are theorems on nuclear norms."""

    @pytest.fixture(params=['normal', 'sparse', 'low rank', 'correlated', 'graded'])
    def maps(self, request) -> Tensor:
        return draw(request.param, 4, 24, 60)

    def test_order_of_channels(self, maps):
        order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(channel_independence(maps[:, order]),
                                   channel_independence(maps)[:, order], rtol=RELATIVE, atol=0)

    @pytest.mark.parametrize('factor', [-1.0, 7.0, 1e-12])
    def test_scale(self, maps, factor):
        torch.testing.assert_close(channel_independence(maps.double() * factor),
                                   channel_independence(maps) * abs(factor), rtol=RELATIVE, atol=0)

    def test_rotation_of_the_pixels(self, maps):
        turn = torch.linalg.qr(draw('normal', 1, 60, 60)[0].double()).Q
        torch.testing.assert_close(channel_independence(maps.double() @ turn),
                                   channel_independence(maps), rtol=RELATIVE, atol=0)

    def test_bounds(self, maps):
        scores, rows = channel_independence(maps), maps.double().norm(dim=2)
        singular = torch.linalg.svdvals(maps.double())
        slack = 1 + RELATIVE
        assert (scores <= rows * slack).all()
        assert (scores * slack >= rows.square() / (2 * singular[:, :1])).all()
        assert (scores.sum(1) <= singular.sum(1) * slack).all()

    def test_no_channel_gains_by_another(self, maps):
        # The trace of the root of a Gram matrix is submodular in its set of rows.
        slack = 1 + RELATIVE
        assert (channel_independence(maps)[:, :23]
                <= channel_independence(maps[:, :23]) * slack).all()


class Recorder(TorchDispatchMode):
    """Names of the operators called, and the largest tensor they made, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.calls.append(func.overloadpacket.__name__)
        given = {arg.untyped_storage().data_ptr() for arg in args if isinstance(arg, Tensor)}
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            # A view has no memory of its own.
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in given:
                self.largest = max(self.largest, tensor.numel() * tensor.element_size())
        return result


class TestCost:
    @pytest.mark.parametrize('channels, pixels', [(32, 100), (100, 32)])
    def test_one_decomposition_for_a_group_of_images(self, channels, pixels):
        with Recorder() as recorder:
            channel_independence(draw('normal', 6, channels, pixels))
        assert recorder.calls.count('_linalg_eigh') == 1
        assert recorder.calls.count('_linalg_svd') == 0

    @pytest.mark.parametrize('shape', [(64, 40, 60), (64, 60, 40), (2, 16, 200_000)])
    def test_memory_bound(self, shape):
        maps = draw('sparse', *shape)
        whole = channel_independence(maps, 2 ** 40)
        bound = 2 ** 20
        assert maps.numel() * 8 > bound
        with Recorder() as recorder:
            scores = channel_independence(maps, bound)
        assert 0 < recorder.largest <= bound
        torch.testing.assert_close(scores, whole, rtol=RELATIVE, atol=0)

    def test_least_memory(self):
        maps = draw('graded', 3, 10, 3000)
        torch.testing.assert_close(channel_independence(maps, 1), channel_independence(maps),
                                   rtol=RELATIVE, atol=0)
