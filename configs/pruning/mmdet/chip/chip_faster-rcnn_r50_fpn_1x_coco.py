# CHIP (arXiv 2110.13981) on Faster R-CNN R50-FPN, COCO: the backbone's channels at the
# ratios that remove 44.8% of ResNet-50's FLOPs on ImageNet. Trains by the detector's
# own schedule.
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['mmprune_ext'], allow_failed_imports=False)
architecture = _base_.model
# The first stage is pruned, too: it has to learn with the others.
architecture.backbone.update(frozen_stages=-1)
checkpoint = 'https://download.openmmlab.com/mmdetection/v2.0/faster_rcnn/faster_rcnn_r50_fpn_1x_coco/faster_rcnn_r50_fpn_1x_coco_20200130-047c8118.pth'
model = dict(
    _delete_=True,
    type='mmprune_ext.CHIP',
    architecture=architecture,
    checkpoint=checkpoint,
    mutator=dict(type='mmprune_ext.CHIPMutator', demo_inputs=(256, 256)),
    calibration=dict(num_batches=50, dataloader={{_base_.train_dataloader}}),
    target_pruning_ratio='[0.]+[0.1]*3+[0.35]*16')
