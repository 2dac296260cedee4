# ChipNet (arXiv 2102.07156) of the backbone of the top-down heatmap model with ResNet-50, COCO: half of the backbone's
# FLOPs remain. Fine-tunes by the model's own schedule.
_base_ = ['../../../_base_/pruning/chipnet_backbone.py',
          '../../../_base_/networks/td-hm_res50_8xb64-210e_coco-256x192.py']
model = dict(
    _base_.pop('method'),
    architecture=_base_.pop('model'),
    checkpoint=_base_.pop('checkpoint'),
    mutator=dict(type='mmprune_ext.ChipNetMutator', demo_inputs=(256, 192)))
# 20 epochs are 5,900 iterations of 512 images, so the gates learn at lr 5e-3.
search = dict(optim_wrapper=dict(paramwise_cfg=dict(custom_keys=dict(channel_gates=dict(lr_mult=50.)))))
