# Stripe-wise pruning (arXiv 2009.14410) of the backbone of the top-down heatmap model with ResNet-50, COCO, by the
# model's own schedule.
_base_ = ['../../../_base_/pruning/stripe_backbone.py',
          '../../../_base_/networks/td-hm_res50_8xb64-210e_coco-256x192.py']
model = dict(
    _base_.pop('method'),
    architecture=_base_.pop('model'),
    checkpoint=_base_.pop('checkpoint'),
    mutator=dict(type='mmprune_ext.StripeMutator', demo_inputs=(256, 192)),
    # 61,000 iterations of Adam, which makes a step of the order of its lr, 5e-4, out of any gradient.
    sr=1e-4)
