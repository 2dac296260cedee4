"""Pruning by what readers can make up for, as an algorithm for the Runner."""

from mmprune_ext.algorithms.base import CalibratedAlgorithm
from mmprune_ext.registry import MODELS


@MODELS.register_module()
class OBS(CalibratedAlgorithm):
    """Prune a pretrained model by the error that is left where the layers that read a channel make up for it.

    The channels go for which weights solved for by least squares lose least, so that it belongs together with
    such a repair. The inputs of the layers are those of a few batches of training data, which the dense model runs on
    while this model is being built. The arguments are those of
    :class:`CalibratedAlgorithm`, with an ``OBSMutator``::

        model = dict(
            type='mmprune_ext.OBS',
            architecture=dict(type='ImageClassifier', ...),
            checkpoint='resnet56.pth',
            calibration=dict(num_batches=8, dataloader={{_base_.train_dataloader}}),
            budget=dict(flops=0.5))
    """

    short_name = 'obs'
    mutator_type = 'mmprune_ext.OBSMutator'
