# ResNet-110 #1 to #5: the ratios of round 1 five times, 40 epochs of fine-tuning after each.
_base_ = 'l1_resnet110_cifar10.py'
runner_type = 'mmprune_ext.RoundsRunner'
rounds = 5
