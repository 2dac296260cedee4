"""Which method `prune.py --algorithm` names."""
from __future__ import annotations

import pytest

from mmprune_ext.algorithms import CHIP, L1Norm, OneShotAlgorithm
from mmprune_ext.errors import ConfigError
from mmprune_ext.registry import MODELS
from mmprune_ext.workflows.pruning import one_shot_algorithm


def test_methods_by_their_short_names():
    assert one_shot_algorithm('l1') is L1Norm and one_shot_algorithm('chip') is CHIP
    with pytest.raises(ConfigError, match='unknown algorithm "dcff"; choose from .*chip, l1'):
        one_shot_algorithm('dcff')


def test_a_method_that_custom_imports_brings():
    class Own(OneShotAlgorithm):
        short_name = 'own'
        mutator_type = 'mmprune_ext.L1Mutator'

    MODELS.register_module(module=Own)
    try:
        assert one_shot_algorithm('own') is Own
    finally:
        MODELS.module_dict.pop('Own')
