"""Copies of a batch are what copy.deepcopy makes, however they are made."""

import copy
import threading

import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement, InstanceData

from mmprune_ext.evaluation.copies import Copies


def batch() -> dict:
    sample = BaseDataElement(metainfo={'img_shape': (4, 5), 'scale_factor': np.array([1.0, 2.0])})
    sample.gt_instances = InstanceData(bboxes=torch.rand(3, 4), labels=torch.tensor([1, 0, 2]))
    image = torch.rand(3, 4, 5)
    return {'inputs': [image, image], 'data_samples': [sample], 'empty': torch.empty(0), 'none': None}


@pytest.fixture(params=['pickled', 'not to be pickled', 'shared memory', 'a graph'])
def value(request) -> dict:
    value = batch()
    if request.param == 'not to be pickled':
        value['lock'] = Unpicklable()
    elif request.param == 'shared memory':
        value['inputs'].append(value['inputs'][0][1:])
    elif request.param == 'a graph':
        value['leaf'] = torch.ones(2, requires_grad=True)
    return value


class Unpicklable:
    """Has a lock of its own in each copy."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __deepcopy__(self, memo: dict) -> 'Unpicklable':
        return Unpicklable()


def test_a_copy_is_the_value_and_shares_nothing(value):
    copies = Copies(value)
    first, second, plain = copies.new(), copies.new(), copy.deepcopy(value)
    assert first.keys() == plain.keys()
    assert all(torch.equal(one, two) for one, two in zip(first['inputs'], value['inputs']))
    boxes = first['data_samples'][0].gt_instances
    assert torch.equal(boxes.bboxes, value['data_samples'][0].gt_instances.bboxes)
    assert first['data_samples'][0].img_shape == (4, 5)
    boxes.bboxes.zero_()
    first['inputs'][0].zero_()
    first['data_samples'][0].scale_factor[:] = 0
    for untouched in (value, second, copies.new()):
        assert untouched['inputs'][0].sum() > 0
        assert untouched['data_samples'][0].gt_instances.bboxes.sum() > 0
        assert untouched['data_samples'][0].scale_factor.tolist() == [1.0, 2.0]


def test_what_is_one_tensor_stays_one(value):
    first = Copies(value).new()
    assert first['inputs'][0] is first['inputs'][1]
    if len(value['inputs']) > 2:  # a view of it
        first['inputs'][0].zero_()
        assert first['inputs'][2].sum() == 0
