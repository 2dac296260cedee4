"""Channel independence: how much of a feature map's nuclear norm a channel alone provides."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mmprune_ext.errors import PruningError

# Distance of the nodes in log t, and how far they reach beyond the eigenvalues. Together they
# leave a relative error of less than 1e-5 of every value (see _integrate), below what is promised.
STEP = 1.0
HEAD = 10.0
TAIL = 22.0
EPS = torch.finfo(torch.float64).eps
# Where the Gram matrix may be off by more than this, relative to the smallest value of the image,
# the singular values are taken from the feature map itself.
DOUBT = 1e-5
MEMORY = 256 * 2 ** 20
PIXELS = 4096


class Spectrum(NamedTuple):
    """What the scores of a group of images are made of.

    Attributes:
        values: ``(N, n)`` squared singular values, exact zeros below the rounding error.
        weights: ``(N, C, n)`` squares of the left singular vectors.
        rest: ``(N, C)`` weight of each channel on eigenvalue 0 that ``weights`` leave out.
        power: ``(N, C)`` sum of squares of each channel.
        error: ``(N,)`` what rounding can have changed in the singular values that matter.
    """

    values: Tensor
    weights: Tensor
    rest: Tensor
    power: Tensor
    error: Tensor


def channel_independence(feature_maps: Tensor, memory_bound: int = MEMORY) -> Tensor:
    r"""Return the channel independence of each channel in each image.

    .. math:: CI_j = \lVert A \rVert_* - \lVert M_j \odot A \rVert_*

    where ``A``, of shape ``(C, H * W)``, is the feature map of one image, ``M_j`` sets row ``j``
    to zero and the norm is the sum of singular values. It is not computed by that definition,
    which takes ``C + 1`` singular value decompositions, but with the eigenvectors of one:

    .. math::
        CI_j = \frac{1}{\pi} \int_0^\infty \sqrt{t}
        \frac{\sum_i w_{ji} l_i / (l_i + t)^2}{t \sum_i w_{ji} / (l_i + t)} dt

    with ``A A^T = V diag(l) V^T`` and ``w_ji = V_ji ** 2``.

    Source: Y. Sui, M. Yin, Y. Xie, H. Phan, S. A. Zonouz, B. Yuan, "CHIP: CHannel
    Independence-based Pruning for Compact Neural Networks", NeurIPS 2021, equation 3
    (https://arxiv.org/abs/2110.13981); the integral is ours.

    Values are exact to 2e-5 of themselves, beside an absolute error of about 1e-14 times the
    largest singular value of the image, which the definition has in double precision, too.

    Args:
        feature_maps: ``(N, C, H, W)``, ``(N, C, L)`` or ``(N, C)``, any real type and device.
        memory_bound: Bytes of temporary memory, about. Images are taken in groups for it, and the
            pixels of large maps in pieces; one image needs about ``8 * C * (10 * n + 640)`` bytes
            at least, where ``n = min(C, H * W)``.

    Returns:
        ``(N, C)``, float64, on the same device; from 0 to the Euclidean norm of the channel, in
        the unit of the activations. Larger is more important; 0 is a channel of zeros.

    Raises:
        PruningError: If ``feature_maps`` has fewer than two dimensions, or holds NaN or infinity.
    """
    maps = feature_maps.detach()
    if maps.dim() < 2 or maps.is_complex():
        raise PruningError('channel_independence: feature maps should be real and of shape (N, C, '
                           f'H, W) or (N, C, L), but got {tuple(maps.shape)}, {maps.dtype}')
    scores = maps.new_zeros(maps.shape[:2], dtype=torch.float64)
    if maps.numel() == 0:
        return scores
    channels, pixels = maps.shape[1], math.prod(maps.shape[2:])
    group, piece = _pieces(channels, pixels, memory_bound)
    for first in range(0, len(maps), group):
        images = slice(first, first + group)
        part = maps[images].reshape(-1, channels, pixels)
        low, high = part.amin((1, 2)).double(), part.amax((1, 2)).double()
        scale = _scale(high.maximum(-low), first, tuple(maps.shape))
        scores[images] = _scores(part, scale, piece) * scale[:, None]
    return scores


def _pieces(channels: int, pixels: int, memory_bound: int) -> tuple[int, int]:
    """Return how many images to take at once, and how many of their pixels."""
    small = min(channels, pixels)
    image = 8 * channels * (10 * small + 640)
    group = max(1, memory_bound // (image + 8 * channels * min(pixels, PIXELS)))
    left = memory_bound // group - image
    return group, min(pixels, max(left // (8 * channels), PIXELS // 16))


def _scale(largest: Tensor, first: int, shape: tuple[int, ...]) -> Tensor:
    """Return the magnitude of each image, 1 for one of zeros; refuse what is not finite."""
    bad = (~largest.isfinite()).nonzero()
    if len(bad):
        raise PruningError(
            f'channel_independence: the feature maps of {len(bad)} image(s), the first of them '
            f'image {first + int(bad[0])} of a batch of shape {shape}, hold NaN or infinity; '
            'check the checkpoint and the images, or run the model in float32')
    return largest.where(largest > 0, 1.0)


def _scores(maps: Tensor, scale: Tensor, piece: int) -> Tensor:
    """Return the scores of a group of images, in units of ``scale``."""
    if maps.shape[1] <= maps.shape[2]:
        spectrum = _from_gram(sum(block @ block.mT for block in _blocks(maps, scale, piece)))
    else:
        spectrum = _from_pixels(maps / scale[:, None, None])
    scores = _integrate(spectrum)
    smallest = scores.where(spectrum.power > 0, torch.inf).amin(1)
    doubtful = spectrum.error > DOUBT * smallest
    if doubtful.any():
        scores[doubtful] = _integrate(_from_map(maps[doubtful], scale[doubtful], piece))
    return scores


def _blocks(maps: Tensor, scale: Tensor, piece: int) -> Iterator[Tensor]:
    """Yield the feature maps in units of ``scale``, float64, a number of pixels at a time."""
    for block in maps.split(piece, dim=2):
        yield block / scale[:, None, None]


def _from_gram(gram: Tensor) -> Spectrum:
    """Decompose ``A A^T``, ``(N, C, C)``."""
    values, vectors = torch.linalg.eigh(gram)
    power = gram.diagonal(dim1=1, dim2=2)
    values, error = _denoise(values, power)
    return Spectrum(values, vectors.square(), torch.zeros_like(power), power, error)


def _from_pixels(maps: Tensor) -> Spectrum:
    """Decompose ``A^T A``, which is smaller where there are more channels than pixels."""
    gram = maps.mT @ maps
    values, vectors = torch.linalg.eigh(gram)
    values, error = _denoise(values, gram.diagonal(dim1=1, dim2=2))
    shares = (maps @ vectors).square()
    weights = torch.where(values[:, None] > 0, shares / values[:, None], 0.0)
    rest = (1 - weights.sum(2)).clamp(min=0)
    return Spectrum(values, weights, rest, maps.square().sum(2), error)


def _denoise(values: Tensor, diagonal: Tensor) -> tuple[Tensor, Tensor]:
    """Set eigenvalues that are rounding errors to zero, and bound the error of the roots.

    An eigenvalue of a Gram matrix has an absolute error of a few eps of the largest one. Zeros
    that rows of zeros account for are exact; others may hide anything below the threshold.
    """
    size = values.shape[1]
    top = values[:, -1:]
    values = values.where(values > size * EPS * top, 0.0)
    hidden = (values == 0).sum(1) > (diagonal == 0).sum(1)
    lowest = values.where(values > 0, torch.inf).amin(1)
    top = top.squeeze(1)
    error = torch.where(hidden, (size * EPS * top).sqrt(),
                        math.sqrt(size) * EPS * top / (2 * lowest.sqrt()))
    return values, error


def _from_map(maps: Tensor, scale: Tensor, piece: int) -> Spectrum:
    """Decompose ``A`` itself: slower than its Gram matrix, with twice as many digits."""
    channels, pixels = maps.shape[1:]
    power = sum(block.square().sum(2) for block in _blocks(maps, scale, piece))
    if channels <= pixels:
        factor = maps.new_zeros((len(maps), 0, channels), dtype=torch.float64)
        for block in _blocks(maps, scale, piece):
            factor = torch.linalg.qr(torch.cat([factor, block.mT], 1), mode='r').R
        maps = factor.mT
    else:
        maps = maps / scale[:, None, None]
    vectors, singular, _ = torch.linalg.svd(maps, full_matrices=False)
    noise = max(maps.shape[1:]) * EPS * singular[:, :1]
    values = singular.where(singular > noise, 0.0).square()
    weights = vectors.square()
    rest = (1 - weights.sum(2)).clamp(min=0) if channels > pixels else torch.zeros_like(power)
    return Spectrum(values, weights, rest, power, noise.squeeze(1))


def _integrate(spectrum: Spectrum) -> Tensor:
    r"""Return the scores, ``(N, C)``, by the trapezoid rule in ``s = log t``.

    The integrand is analytic for ``|Im s| < pi``, with poles at the eigenvalues of ``A A^T`` and,
    of opposite sign, of ``A A^T`` without channel ``j``, which lie between them. Hence the rule's
    error is at most ``2 * (1 + 4 * pi / STEP) * exp(-2 * pi ** 2 / STEP)`` of ``CI_j`` itself,
    7e-8. Towards both ends the integrand is a power of ``t``, so that what the nodes leave out of
    the infinite sum is a geometric series: of ``power * t ** -0.5`` above and of ``t ** 0.5``
    below; there it falls faster for a channel that depends on others, and nothing is left to add.
    """
    top = spectrum.values.amax(1, keepdim=True)
    top = top.where(top > 0, 1.0)
    values = (spectrum.values / top)[:, :, None]
    lowest = float(values.where(values > 0, 1.0).min())
    count = math.ceil((HEAD + TAIL - math.log(lowest)) / STEP) + 1
    steps = torch.arange(count, dtype=torch.float64, device=values.device)
    nodes = (HEAD - STEP * steps).exp()
    resolvent = (values + nodes).reciprocal()
    sums = spectrum.weights @ torch.cat([resolvent, values * resolvent.square()], 2)
    below, above = sums.split(count, 2)
    integrand = nodes.sqrt() * above / (below + spectrum.rest[:, :, None] / nodes)
    head = (spectrum.power / top) * math.exp(-HEAD / 2) / math.expm1(STEP / 2)
    tail = integrand[:, :, -1] / math.expm1(STEP / 2)
    scores = STEP / math.pi * (integrand.sum(2) + head + tail) * top.sqrt()
    return scores.where(spectrum.power > 0, 0.0)
