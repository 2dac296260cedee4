# l1_cifar.py on CIFAR-10 as image folders.
_base_ = ['l1_cifar.py', '../datasets/cifar10_folder.py']
