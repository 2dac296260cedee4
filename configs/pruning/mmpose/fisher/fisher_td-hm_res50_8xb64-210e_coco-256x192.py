# Group Fisher pruning (arXiv 2108.00708) of the top-down heatmap model with ResNet-50, COCO, with its head: half of the
# FLOPs remain. Trains by the model's own schedule.
_base_ = ['../../../_base_/pruning/fisher_tasks.py',
          '../../../_base_/networks/td-hm_res50_8xb64-210e_coco-256x192.py']
model = dict(
    _base_.pop('method'),
    architecture=_base_.pop('model'),
    checkpoint=_base_.pop('checkpoint'),
    mutator=dict(type='mmprune_ext.FisherMutator', scope=('backbone', 'head'), demo_inputs=(256, 192)),
    calibration=dict(num_batches=10, dataloader={{_base_.train_dataloader}}))
