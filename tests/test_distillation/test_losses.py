"""Losses against plain definitions, in loops of Python's own numbers."""
from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mmprune_ext.distillation import losses


def softmax(logits: list[float], temperature: float) -> list[float]:
    powers = [math.exp(value / temperature) for value in logits]
    return [power / sum(powers) for power in powers]


def divergence(target: list[float], found: list[float]) -> float:
    return sum(p * math.log(p / q) for p, q in zip(target, found) if p > 0)


def average(members: list[list[float]]) -> list[float]:
    return [sum(values) / len(members) for values in zip(*members)]


def softmax_by_definition(student: list[float], teachers: list[list[float]], temperature: float) -> float:
    target = average([softmax(logits, temperature) for logits in teachers])
    return temperature ** 2 * divergence(target, softmax(student, temperature))


def sigmoid_by_definition(student: float, teachers: list[float], temperature: float) -> float:
    def probabilities(logit: float) -> list[float]:
        return softmax([logit, 0.0], temperature)
    target = average([probabilities(logit) for logit in teachers])
    return temperature ** 2 * divergence(target, probabilities(student))


@pytest.fixture
def draw():
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: 3 * torch.randn(*shape, generator=generator)


@pytest.mark.parametrize('temperature', [1.0, 5.0])
@pytest.mark.parametrize('members', [1, 3])
def test_softmax(draw, temperature, members):
    student, teachers = draw(4, 10), [draw(4, 10) for _ in range(members)]
    wanted = [softmax_by_definition(student[n].tolist(), [t[n].tolist() for t in teachers], temperature)
              for n in range(4)]
    found = losses.softmax_loss(student, teachers, temperature)
    torch.testing.assert_close(found, torch.tensor(wanted), rtol=1e-4, atol=1e-5)


def test_softmax_along_another_dimension(draw):
    student, teacher = draw(2, 5, 7), draw(2, 5, 7)
    wanted = [[softmax_by_definition(student[n, k].tolist(), [teacher[n, k].tolist()], 2.0) for k in range(5)]
              for n in range(2)]
    torch.testing.assert_close(losses.softmax_loss(student, [teacher], 2.0, 2), torch.tensor(wanted), rtol=1e-4,
                               atol=1e-5)


@pytest.mark.parametrize('temperature', [1.0, 4.0])
def test_sigmoid(draw, temperature):
    student, teachers = draw(6), [draw(6), draw(6)]
    wanted = [sigmoid_by_definition(float(student[n]), [float(t[n]) for t in teachers], temperature) for n in range(6)]
    torch.testing.assert_close(losses.sigmoid_loss(student, teachers, temperature), torch.tensor(wanted), rtol=1e-4,
                               atol=1e-5)


@pytest.mark.parametrize('sigmoid', [True, False])
def test_class_scores_of_a_detection_head(draw, sigmoid):
    """Two levels, two anchors a place: summed, over the teachers' count of objects."""
    classes, anchors, temperature = 3, 2, 2.0
    sizes = [(3, 2), (1, 1)]
    student, first, second = ([draw(2, anchors * classes, *size) for size in sizes] for _ in range(3))
    total = count = 0.0
    for level, size in enumerate(sizes):
        for n, anchor, row, column in np.ndindex(2, anchors, *size):
            rows = slice(anchor * classes, (anchor + 1) * classes)
            own, *others = (maps[level][n, rows, row, column].tolist() for maps in (student, first, second))
            if sigmoid:
                total += sum(sigmoid_by_definition(own[k], [o[k] for o in others], temperature)
                             for k in range(classes))
                count += max(average([[softmax([z, 0.0], 1)[0] for z in o] for o in others]))
            else:
                total += softmax_by_definition(own, others, temperature)
                count += max(average([softmax(o, 1) for o in others])[:-1])
    assert count > 1
    found = losses.dense_class_loss(student, [first, second], temperature, classes=classes, sigmoid=sigmoid)
    assert float(found) == pytest.approx(total / count, rel=1e-4)


def test_few_objects_count_as_one():
    """Otherwise a batch without any would weigh most."""
    far = [torch.full((1, 2, 1, 1), -9.0)]
    near = [torch.full((1, 2, 1, 1), -8.0)]
    found = losses.dense_class_loss(far, [near], 1.0, classes=2, sigmoid=True)
    assert float(found) == pytest.approx(2 * sigmoid_by_definition(-9.0, [-8.0], 1.0), rel=1e-3)


def test_maps(draw):
    """1 minus the correlation of each channel."""
    student, teacher = draw(2, 3, 4, 5), draw(2, 3, 4, 5)
    wanted = [1 - np.corrcoef(student[:, c].flatten(), teacher[:, c].flatten())[0, 1] for c in range(3)]
    assert float(losses.map_loss(student, teacher)) == pytest.approx(np.mean(wanted), rel=1e-4)
    assert float(losses.map_loss(student, 7 * student - 2)) == pytest.approx(0, abs=1e-5)


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[1e4, -1e4, 0.0]])
    for found in (losses.softmax_loss(-logits, [logits], 0.1), losses.sigmoid_loss(-logits, [logits], 0.1),
                  losses.map_loss(torch.zeros(2, 3), torch.zeros(2, 3))):
        assert bool(found.isfinite().all())
    assert float(losses.softmax_loss(logits, [logits], 0.1).abs().max()) == 0
