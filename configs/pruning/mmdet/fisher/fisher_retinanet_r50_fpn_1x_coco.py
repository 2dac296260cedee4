# Group Fisher pruning (arXiv 2108.00708) of RetinaNet R50-FPN, COCO, with its neck and head: half of the detector's FLOPs
# remain. Trains by the detector's own schedule.
_base_ = ['../../../_base_/networks/retinanet_r50_fpn_1x_coco.py', '../../../_base_/pruning/fisher_tasks.py']
model = dict(
    _base_.pop('method'),
    architecture=_base_.pop('model'),
    checkpoint=_base_.pop('checkpoint'),
    mutator=dict(type='mmprune_ext.FisherMutator', scope=('backbone', 'neck', 'bbox_head'), demo_inputs=(256, 256)),
    calibration=dict(num_batches=100, dataloader={{_base_.train_dataloader}}))
