# Stripe-wise pruning (arXiv 2009.14410) of ResNet-56 on CIFAR-10. As published, shortcuts are 1x1 convolutions, and
# these have no skeleton.
_base_ = ['../../../_base_/models/resnet56_cifar.py', '../../../_base_/pruning/stripe_cifar10.py']
_base_.model.backbone.update(shortcut='B')
_base_.method.mutator.update(exclude=['*.downsample.0'])
model = dict(_base_.pop('method'), architecture=_base_.pop('model'))
