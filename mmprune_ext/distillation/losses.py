"""What a student's outputs lose against those of an ensemble, as functions on tensors.

The teacher of an ensemble is the mean of its members' outputs: of probabilities at temperature ``T`` where they are
logits.

Source: Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, section 2: gradients of
softened targets are smaller by ``1 / T^2``, hence the factor ``T^2``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

EPSILON = 1e-6  # of a variance


def softmax_loss(student: Tensor, teachers: Sequence[Tensor], temperature: float, dim: int = 1) -> Tensor:
    """Return ``T^2 KL(mean_t softmax(z_t / T) || softmax(z_s / T))``.

    Args:
        student: Logits ``z_s``, ``(N, K, ...)``, in any order of dimensions.
        teachers: Logits ``z_t`` of each member, of the same shape.
        temperature: ``T``.
        dim: The dimension of the classes.

    Returns:
        The divergence of each distribution: the shape of the logits without ``dim``.
    """
    target = mean(functional.softmax(logits.float() / temperature, dim) for logits in teachers)
    log_student = functional.log_softmax(student.float() / temperature, dim)
    # 0 log 0 is 0: far logits at a low temperature have a probability of exactly 0.
    divergence = torch.xlogy(target, target) - target * log_student
    return divergence.sum(dim) * temperature ** 2


def sigmoid_loss(student: Tensor, teachers: Sequence[Tensor], temperature: float) -> Tensor:
    """Return ``T^2 KL(p || q)`` of two-valued distributions: ``p = mean_t sigmoid(z_t / T)``, ``q = sigmoid(z_s / T)``.

    Args:
        student: Logits ``z_s`` of independent classes, of any shape.
        teachers: Logits ``z_t`` of each member, of the same shape.
        temperature: ``T``.

    Returns:
        The divergence of each logit, of their shape.
    """
    target = mean(torch.sigmoid(logits.float() / temperature) for logits in teachers)
    softened = student.float() / temperature
    negative = 1 - target
    entropy = torch.xlogy(target, target) + torch.xlogy(negative, negative)
    crossed = target * functional.logsigmoid(softened) + negative * functional.logsigmoid(-softened)
    return (entropy - crossed) * temperature ** 2


def dense_class_loss(student: Sequence[Tensor], teachers: Sequence[Sequence[Tensor]], temperature: float, *,
                     classes: int, sigmoid: bool) -> Tensor:
    """Return the divergence of a detection head's class scores at all places, over the number of objects.

    Nearly all places are background, where all agree: a mean over places would vanish beside the head's own losses,
    which are divided by the number of positive places. The teachers' count of these, the sum over places of their
    largest class probability (at T = 1), takes its part, at least 1 in a batch.

    Args:
        student: Logits of each level, ``(N, A * classes, H, W)`` with ``A`` anchors a place.
        teachers: The same of each member.
        temperature: ``T``.
        classes: Outputs of one anchor; with a softmax the last one is the background.
        sigmoid: Whether classes are independent.

    Returns:
        A scalar: summed over classes and places, divided by the count. The batch of one process counts.
    """
    losses, count = [], 0.0
    for level, logits in enumerate(student):
        own, *others = (_by_anchor(given, classes) for given in (logits, *(member[level] for member in teachers)))
        if sigmoid:
            losses.append(sigmoid_loss(own, others, temperature).sum())
            certain = mean(torch.sigmoid(given.float()) for given in others)
        else:
            losses.append(softmax_loss(own, others, temperature, 2).sum())
            certain = mean(functional.softmax(given.float(), 2) for given in others)[:, :, :-1]
        count = count + certain.amax(2).sum()
    return torch.stack(losses).sum() / count.clamp(min=1)


def _by_anchor(logits: Tensor, classes: int) -> Tensor:
    """Return ``(N, A, classes, H, W)``."""
    return logits.unflatten(1, (-1, classes))


def map_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return half the mean squared difference of two maps, each channel with mean 0 and variance 1.

    That is 1 minus Pearson's correlation, averaged over channels: neither scale nor offset of a map matters, which
    differ between networks. Source: Cao et al., "PKD: General Distillation Framework for Object Detectors via Pearson
    Correlation Coefficient", NeurIPS 2022, arXiv 2207.02039, equations 3 to 5.

    Args:
        student: ``(N, C, ...)``; statistics are over all but ``C``.
        teacher: The same shape.
    """
    return 0.5 * (_standardised(student) - _standardised(teacher)).square().mean()


def _standardised(maps: Tensor) -> Tensor:
    values = maps.float().transpose(0, 1).flatten(1)
    centred = values - values.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + EPSILON).sqrt()


def mean(values: Iterable[Tensor]) -> Tensor:
    """Return the mean of tensors of one shape."""
    first, *others = values
    for other in others:
        first = first + other
    return first / (1 + len(others))
