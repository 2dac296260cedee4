# CHIP (arXiv 2110.13981) on ResNet-50: 44.8% of the published FLOPs are removed.
_base_ = [
    'mmpretrain::_base_/models/resnet50_label_smooth.py',
    'mmpretrain::_base_/datasets/imagenet_bs32.py',
    'mmpretrain::_base_/default_runtime.py',
    '../../../_base_/pruning/chip_r50.py',
]
model = dict(
    _base_.pop('method'),
    architecture=_base_.pop('model'),
    checkpoint='https://download.openmmlab.com/mmclassification/v0/resnet/resnet50_8xb32_in1k_20210831-ea4938fc.pth',
    mutator=dict(type='mmprune_ext.CHIPMutator', demo_inputs=(224, 224)),
    # 640 images, as published: 20 batches of 32, which all GPUs share.
    calibration=dict(num_batches=20, dataloader={{_base_.train_dataloader}}))

# Batch 256 on 8 GPUs, 200 epochs, lr 0.01 along a cosine.
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.99, weight_decay=1e-4))
param_scheduler = dict(type='CosineAnnealingLR', by_epoch=True, T_max=200, convert_to_iter_based=True)
train_cfg = dict(by_epoch=True, max_epochs=200, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=256)
