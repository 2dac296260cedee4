_base_ = [
    '../_base_/models/vgg16_cifar.py',
    '../_base_/datasets/cifar10_folder.py',
    '../_base_/schedules/cifar_train300.py',
    '../_base_/default_runtime.py',
]
