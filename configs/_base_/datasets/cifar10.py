# CIFAR-10 by mmpretrain's dataset class: data/cifar10/cifar-10-batches-py/, the published python batches. Images are
# arrays in RGB. Nothing is fetched; with dataset.download=True mmpretrain does it.
_base_ = 'cifar10_folder.py'
data_preprocessor = dict(to_rgb=False)

train_pipeline = [
    dict(type='RandomCrop', crop_size=32, padding=4),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='PackInputs')]

train_dataloader = dict(
    dataset=dict(_delete_=True, type='CIFAR10', data_root='data/cifar10', split='train', download=False,
                 pipeline=train_pipeline))
val_dataloader = dict(
    dataset=dict(_delete_=True, type='CIFAR10', data_root='data/cifar10', split='test', download=False,
                 pipeline=test_pipeline))
test_dataloader = dict(
    dataset=dict(_delete_=True, type='CIFAR10', data_root='data/cifar10', split='test', download=False,
                 pipeline=test_pipeline))
