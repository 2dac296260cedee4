# CHIP (arXiv 2110.13981) of the backbone of Faster R-CNN R50-FPN, COCO. Trains by the detector's own schedule.
_base_ = ['../../../_base_/networks/faster-rcnn_r50_fpn_1x_coco.py', '../../../_base_/pruning/chip_r50.py']
model = dict(
    _base_.pop('method'),
    architecture=_base_.pop('model'),
    checkpoint=_base_.pop('checkpoint'),
    mutator=dict(type='mmprune_ext.CHIPMutator', demo_inputs=(256, 256)),
    calibration=dict(num_batches=50, dataloader={{_base_.train_dataloader}}))
