"""CHIP as an algorithm for the Runner."""

from mmprune_ext.algorithms.base import CalibratedAlgorithm
from mmprune_ext.registry import MODELS


@MODELS.register_module()
class CHIP(CalibratedAlgorithm):
    """Prune a pretrained model by the channel independence of its feature maps, then train it.

    Source: Sui et al., "CHIP: CHannel Independence-based Pruning for Compact Neural Networks",
    NeurIPS 2021, arXiv 2110.13981. The feature maps are those of a few batches of training data, which
    the dense model runs on while this model is being built. The arguments are those of
    :class:`CalibratedAlgorithm`, with a ``CHIPMutator``::

        model = dict(
            type='mmprune_ext.CHIP',
            architecture=dict(type='ImageClassifier', ...),
            checkpoint='resnet56.pth',
            calibration=dict(num_batches=5, dataloader={{_base_.train_dataloader}}),
            target_pruning_ratio='[0.]+[0.15]*2+[0.4]*27')
    """

    short_name = 'chip'
    mutator_type = 'mmprune_ext.CHIPMutator'
