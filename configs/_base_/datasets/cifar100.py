# CIFAR-100 by mmpretrain's dataset class: data/cifar100/cifar-100-python/, the published python batches.
_base_ = 'cifar10.py'
# Statistics of its training images, RGB, as in mmpretrain.
data_preprocessor = dict(num_classes=100, mean=[129.304, 124.070, 112.434], std=[68.170, 65.392, 70.418])
train_dataloader = dict(dataset=dict(type='CIFAR100', data_root='data/cifar100'))
val_dataloader = dict(dataset=dict(type='CIFAR100', data_root='data/cifar100'))
test_dataloader = dict(dataset=dict(type='CIFAR100', data_root='data/cifar100'))
