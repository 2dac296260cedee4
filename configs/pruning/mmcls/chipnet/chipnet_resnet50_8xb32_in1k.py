# ChipNet (arXiv 2102.07156) of ResNet-50, ImageNet: half of the FLOPs remain. Fine-tunes by the network's own schedule
# of 100 epochs, at the paper's lr.
_base_ = ['mmpretrain::resnet/resnet50_8xb32_in1k.py', '../../../_base_/pruning/chipnet_in1k.py']
model = dict(
    _base_.pop('method'),
    architecture=_base_.pop('model'),
    checkpoint='https://download.openmmlab.com/mmclassification/v0/resnet/resnet50_8xb32_in1k_20210831-ea4938fc.pth')
optim_wrapper = dict(optimizer=dict(lr=0.05))
