# l1_cifar.py on CIFAR-100. A config gives its network 100 classes.
_base_ = ['l1_cifar.py', '../datasets/cifar100.py']
