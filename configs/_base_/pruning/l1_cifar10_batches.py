# l1_cifar.py on CIFAR-10 as mmpretrain reads it.
_base_ = ['l1_cifar.py', '../datasets/cifar10.py']
