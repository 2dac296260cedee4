# Stripe-wise pruning (arXiv 2009.14410) of the backbone of Faster R-CNN R50-FPN, COCO, by the detector's own schedule.
_base_ = ['mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', '../../../_base_/pruning/stripe_backbone.py']
# The first stage is pruned, too: it has to learn with the others.
_base_.model.backbone.update(frozen_stages=-1)
model = dict(
    _base_.pop('method'),
    architecture=_base_.pop('model'),
    checkpoint='https://download.openmmlab.com/mmdetection/v2.0/faster_rcnn/faster_rcnn_r50_fpn_1x_coco/faster_rcnn_r50_fpn_1x_coco_20200130-047c8118.pth',
    mutator=dict(type='mmprune_ext.StripeMutator', demo_inputs=(256, 256)),
    # 88,000 iterations, most at lr 0.02.
    sr=1e-4)
