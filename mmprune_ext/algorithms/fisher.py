"""Group Fisher pruning as an algorithm for the Runner."""

from mmprune_ext.algorithms.base import CalibratedAlgorithm
from mmprune_ext.registry import MODELS


@MODELS.register_module()
class Fisher(CalibratedAlgorithm):
    """Prune a pretrained model by how much its loss depends on each channel, then train it.

    Source: Liu et al., "Group Fisher Pruning for Practical Network Compression", ICML 2021, arXiv
    2108.00708. The gradients are those of the model's own loss on a few batches of training data, which the
    dense model runs on while this model is being built. The arguments are those of
    :class:`CalibratedAlgorithm`, with a ``FisherMutator``::

        model = dict(
            type='mmprune_ext.Fisher',
            architecture=dict(type='ImageClassifier', ...),
            checkpoint='resnet56.pth',
            calibration=dict(num_batches=5, dataloader={{_base_.train_dataloader}}),
            budget=dict(flops=0.5, spread='global'))
    """

    short_name = 'fisher'
    mutator_type = 'mmprune_ext.FisherMutator'
