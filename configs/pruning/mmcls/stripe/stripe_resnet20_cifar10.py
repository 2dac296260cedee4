# Stripe-wise pruning (arXiv 2009.14410) of ResNet-20 on CIFAR-10, with the public network's shortcuts without weights.
_base_ = ['../../../_base_/models/resnet20_cifar.py', '../../../_base_/pruning/stripe_cifar10.py']
model = dict(_base_.pop('method'), architecture=_base_.pop('model'))
