# Stripe-wise pruning (arXiv 2009.14410) of VGG-16 on CIFAR-10: no biases in convolutions, one linear layer.
_base_ = ['../../../_base_/models/vgg16_cifar.py', '../../../_base_/pruning/stripe_cifar10.py']
_base_.model.backbone.update(conv_bias=False)
model = dict(_base_.pop('method'), architecture=_base_.pop('model'))
