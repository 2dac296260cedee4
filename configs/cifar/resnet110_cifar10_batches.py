_base_ = [
    '../_base_/models/resnet110_cifar.py',
    '../_base_/datasets/cifar10.py',
    '../_base_/schedules/cifar_train300.py',
    '../_base_/default_runtime.py',
]
