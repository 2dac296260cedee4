# ChipNet (arXiv 2102.07156) of VGG-11, ImageNet: half of the FLOPs remain. Fine-tunes by the network's own schedule,
# 100 epochs from lr 0.01; the paper's 0.05 is for networks with normalisation.
_base_ = ['mmpretrain::vgg/vgg11_8xb32_in1k.py', '../../../_base_/pruning/chipnet_in1k.py']
model = dict(
    _base_.pop('method'),
    architecture=_base_.pop('model'),
    checkpoint='https://download.openmmlab.com/mmclassification/v0/vgg/vgg11_batch256_imagenet_20210208-4271cd6c.pth')
