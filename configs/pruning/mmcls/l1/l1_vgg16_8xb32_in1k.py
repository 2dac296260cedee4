# VGG-16 on ImageNet by the layers and the ratio of the paper's VGG-16-pruned-A: half of the first convolution and of the
# eighth to the last. The paper prunes VGG-16 on CIFAR-10 alone: there are no published numbers for this one.
_base_ = ['mmpretrain::vgg/vgg16_8xb32_in1k.py', '../../../_base_/pruning/l1_in1k.py']
model = dict(
    _base_.pop('method'),
    architecture=_base_.pop('model'),
    checkpoint='https://download.openmmlab.com/mmclassification/v0/vgg/vgg16_batch256_imagenet_20210208-db26f1a5.pth',
    target_pruning_ratio=dict.fromkeys(
        [f'backbone.features.{index}.conv' for index in (0, 10, 11, 12, 14, 15, 16)], 0.5))

# As published: 20 epochs at a constant lr of 0.001.
optim_wrapper = dict(optimizer=dict(lr=0.001))
param_scheduler = []
train_cfg = dict(max_epochs=20)
