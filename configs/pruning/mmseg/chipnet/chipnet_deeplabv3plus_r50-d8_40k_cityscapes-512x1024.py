# ChipNet (arXiv 2102.07156) of the backbone of DeepLabV3+ R50-D8, Cityscapes: half of the backbone's FLOPs remain.
# Fine-tunes by the segmentor's own schedule.
_base_ = ['../../../_base_/pruning/chipnet_backbone.py',
          '../../../_base_/networks/deeplabv3plus_r50-d8_40k_cityscapes-512x1024.py']
model = dict(
    _base_.pop('method'),
    architecture=_base_.pop('model'),
    checkpoint=_base_.pop('checkpoint'),
    mutator=dict(type='mmprune_ext.ChipNetMutator', demo_inputs=(128, 256)),
    # The gates sharpen in 20 steps, as published.
    by_epoch=False,
    step_freq=1400)
search = dict(train_cfg=dict(_delete_=True, type='IterBasedTrainLoop', max_iters=28000, val_interval=4000))
