# Group Fisher pruning (arXiv 2108.00708) of ResNet-50 on ImageNet: half of the FLOPs remain. Trains by the network's own
# schedule, from a tenth of its lr.
_base_ = ['mmpretrain::resnet/resnet50_8xb32_in1k.py', '../../../_base_/pruning/fisher_tasks.py']
model = dict(
    _base_.pop('method'),
    architecture=_base_.pop('model'),
    checkpoint='https://download.openmmlab.com/mmclassification/v0/resnet/resnet50_8xb32_in1k_20210831-ea4938fc.pth',
    mutator=dict(type='mmprune_ext.FisherMutator', demo_inputs=(224, 224)),
    # 1,280 images, which all GPUs share.
    calibration=dict(num_batches=40, dataloader={{_base_.train_dataloader}}))
optim_wrapper = dict(optimizer=dict(lr=0.01))
