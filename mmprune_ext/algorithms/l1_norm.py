"""L1 filter pruning as an algorithm for the Runner."""

from mmprune_ext.algorithms.base import OneShotAlgorithm
from mmprune_ext.registry import MODELS


@MODELS.register_module()
class L1Norm(OneShotAlgorithm):
    """Prune a pretrained model by the L1 norm of its filters, then train what is left.

    Source: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, arXiv 1608.08710. The
    arguments are those of :class:`OneShotAlgorithm`, with an ``L1Mutator``::

        model = dict(
            type='mmprune_ext.L1Norm',
            architecture=dict(type='ImageClassifier', ...),
            checkpoint='resnet56.pth',
            mutator=dict(type='mmprune_ext.L1Mutator', exclude='backbone.layer1.0.*'),
            target_pruning_ratio={'backbone.layer1.*.conv1': 0.1})
    """

    short_name = 'l1'
    mutator_type = 'mmprune_ext.L1Mutator'
