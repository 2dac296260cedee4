# Stripe-wise pruning (arXiv 2009.14410) of ResNet-18 on ImageNet, alpha = 2e-5: 54.58% fewer FLOPs published.
_base_ = 'stripe_resnet18_8xb32_in1k.py'
model = dict(sr=2e-5)
