# Stripe-wise pruning (arXiv 2009.14410) of the backbone of Faster R-CNN R50-FPN, COCO, by the detector's own schedule.
_base_ = ['../../../_base_/networks/faster-rcnn_r50_fpn_1x_coco.py', '../../../_base_/pruning/stripe_backbone.py']
model = dict(
    _base_.pop('method'),
    architecture=_base_.pop('model'),
    checkpoint=_base_.pop('checkpoint'),
    mutator=dict(type='mmprune_ext.StripeMutator', demo_inputs=(256, 256)),
    # 88,000 iterations, most at lr 0.02.
    sr=1e-4)
