# CHIP (arXiv 2110.13981) of the backbone of the top-down heatmap model with ResNet-50, COCO. Trains by the model's own
# schedule.
_base_ = ['../../../_base_/pruning/chip_r50.py',
          '../../../_base_/networks/td-hm_res50_8xb64-210e_coco-256x192.py']
model = dict(
    _base_.pop('method'),
    architecture=_base_.pop('model'),
    checkpoint=_base_.pop('checkpoint'),
    mutator=dict(type='mmprune_ext.CHIPMutator', demo_inputs=(256, 192)),
    calibration=dict(num_batches=10, dataloader={{_base_.train_dataloader}}))
