# A small ResNet-20 on scikit-learn's handwritten digits (`mmprune_ext.datasets.write_digits` makes
# data/digits; the variable MMPRUNE_DATA names another folder than data): real images, no download,
# about a minute of training on two CPU cores.
_base_ = ['../_base_/models/resnet20_cifar.py', '../_base_/default_runtime.py']

model = dict(
    # Half the width of the CIFAR network: enough for digits, and four times fewer operations.
    backbone=dict(base_channels=8),
    head=dict(in_channels=32))

data_preprocessor = dict(num_classes=10, mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    # No flip: a mirrored digit is another sign.
    dict(type='RandomCrop', crop_size=32, padding=2),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]

# No workers: on two cores they would take from the training what they give to the loading.
train_dataloader = dict(
    batch_size=128,
    num_workers=0,
    dataset=dict(type='CustomDataset', data_root='{{$MMPRUNE_DATA:data}}/digits', data_prefix='train',
                 pipeline=train_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=True))
val_dataloader = dict(
    batch_size=128,
    num_workers=0,
    dataset=dict(type='CustomDataset', data_root='{{$MMPRUNE_DATA:data}}/digits', data_prefix='val',
                 pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False))
val_evaluator = dict(type='Accuracy', topk=(1, ))
test_dataloader = val_dataloader
test_evaluator = val_evaluator

optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4))
param_scheduler = dict(type='OneCycleLR', eta_max=0.1, by_epoch=True, convert_to_iter_based=True)
train_cfg = dict(by_epoch=True, max_epochs=10, val_interval=5)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=5))
