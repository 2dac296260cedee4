# ChipNet (arXiv 2102.07156) of the backbone of Faster R-CNN R50-FPN, COCO: half of the backbone's FLOPs remain.
# Fine-tunes by the detector's own schedule.
_base_ = ['../../../_base_/networks/faster-rcnn_r50_fpn_1x_coco.py', '../../../_base_/pruning/chipnet_backbone.py']
model = dict(
    _base_.pop('method'),
    architecture=_base_.pop('model'),
    checkpoint=_base_.pop('checkpoint'),
    mutator=dict(type='mmprune_ext.ChipNetMutator', demo_inputs=(256, 256)),
    # The gates sharpen in 20 steps, as published: 4 epochs have 29,300 iterations of 16 images.
    by_epoch=False,
    step_freq=1500)
search = dict(train_cfg=dict(max_epochs=4))
