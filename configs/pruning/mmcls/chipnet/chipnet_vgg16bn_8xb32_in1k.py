# ChipNet (arXiv 2102.07156) of VGG-16-BN, ImageNet: half of the FLOPs remain. Fine-tunes by the network's own schedule
# of 100 epochs, at the paper's lr.
_base_ = ['mmpretrain::vgg/vgg16bn_8xb32_in1k.py', '../../../_base_/pruning/chipnet_in1k.py']
model = dict(
    _base_.pop('method'),
    architecture=_base_.pop('model'),
    checkpoint='https://download.openmmlab.com/mmclassification/v0/vgg/vgg16_bn_batch256_imagenet_20210208-7e55cd29.pth')
optim_wrapper = dict(optimizer=dict(lr=0.05))
