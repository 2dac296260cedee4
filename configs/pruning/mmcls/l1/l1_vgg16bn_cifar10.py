# L1 filter pruning of VGG-16-BN (PFEC, arXiv 1608.08710): a ratio of
# 0.25 on every layer that is not sensitive. Fine-tunes 40 epochs.
# Needs the weights of the dense network: set checkpoint to a file that fits
# configs/cifar/vgg16bn_cifar10.py (tools/convert_checkpoint.py makes one of the public weights).
_base_ = [
    '../../../_base_/models/vgg16bn_cifar.py',
    '../../../_base_/datasets/cifar10_folder.py',
    '../../../_base_/schedules/cifar_finetune40.py',
    '../../../_base_/default_runtime.py',
]
architecture = {{_base_.model}}
checkpoint = 'checkpoints/vgg16bn_cifar10.pth'
model = dict(
    _delete_=True,
    type='mmprune_ext.L1Norm',
    architecture=architecture,
    checkpoint=checkpoint,
    mutator=dict(type='mmprune_ext.L1Mutator', demo_inputs=(32, 32)),
    target_pruning_ratio={
        'backbone.features.conv0': 0.25,
        'backbone.features.conv10': 0.25,
        'backbone.features.conv11': 0.25,
        'backbone.features.conv12': 0.25,
        'backbone.features.conv14': 0.25,
        'backbone.features.conv15': 0.25,
        'backbone.features.conv16': 0.25,
    })
